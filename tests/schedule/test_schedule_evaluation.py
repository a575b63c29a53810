"""A program means the same before and after every pass; and natively, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from programs import MODELS, compiled, make_batch, open_executor, packed_weights, slow_from, tiny_model
from small_programs import Array, RandomProgram, fresh_cache, step_inputs, weight_values
from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.driver import CompileOptions, compile_module, schedule_passes
from tessera_compiler.graph.evaluator import evaluate_module
from tessera_compiler.graph.pipeline import PASSES
from tessera_compiler.module import CompiledModule
from tessera_compiler.schedule.evaluator import evaluate_program
from tessera_compiler.targets.cpu.object_code import CPU_CLASSES
from tessera_runtime.executor.cpu.processor import choose_class, read_processor

TOKENS = 37
DIFFERENCE = {"fp32": 1e-5, "bf16": 5e-2, "int8": 2e-1, "int4": 5e-1}
"""What rounding weights and activations of a random model may change of its logits, relative to the largest."""
BEST_CLASS = choose_class(
    {name: {"features": entry.required_flags} for name, entry in CPU_CLASSES.items()}, read_processor()
)


def evaluate(module: ModuleOp, weights: dict[str, Array], inputs: dict[str, Array]) -> Array:
    return evaluate_program(module, lambda op: weight_values(op, weights), inputs, fresh_cache())


def graph_logits(module: ModuleOp, weights: dict[str, Array], inputs: dict[str, Array]) -> Array:
    names = ("token_ids", "positions", "logit_rows")
    return evaluate_module(module, weights.__getitem__, *(inputs[name] for name in names))


def relative(found: Array, wanted: Array) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize(
    ("name", "dtype"),
    slow_from(
        2,
        [
            ("gemma2", "int8"),
            ("llama", "bf16"),
            ("llama", "int8"),
            ("gpt2", "int4"),
            *((name, "fp32") for name in MODELS),
        ],
    ),
)
def test_every_pass_keeps_the_meaning(name: str, dtype: str) -> None:
    model = tiny_model(name)
    module, inputs = model.graph(), step_inputs(TOKENS, 160)
    wanted = graph_logits(module, model.weights, inputs)
    numerics_chosen = None
    for each in schedule_passes(model.options(dtype, tuple(CPU_CLASSES))):
        each.apply(module)
        module.verify()
        if len(module.body.block.first_op.body.block.args) == 3:  # type: ignore[union-attr]
            continue
        found = evaluate(module, model.weights, inputs)
        assert relative(found, wanted) < DIFFERENCE[dtype], type(each).__name__
        if numerics_chosen is None:
            numerics_chosen = found
        # Everything after the choice of numerics only says where and when things are computed.
        np.testing.assert_allclose(found, numerics_chosen, rtol=0, atol=1e-6 * float(np.abs(wanted).max()))


@pytest.mark.parametrize(
    ("name", "dtype"),
    slow_from(
        2,
        [
            ("llama", "fp32"),
            ("llama", "int8"),
            ("llama", "bf16"),
            ("gpt2", "int8"),
            ("llama", "int4"),
            *((name, "fp32") for name in MODELS if name != "llama"),
        ],
    ),
)
def test_native_code_computes_what_the_program_means(name: str, dtype: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    result = compiled(name, dtype, (BEST_CLASS,))
    inputs = step_inputs(TOKENS, 160)
    module = model.graph()
    for each in schedule_passes(model.options(dtype, (BEST_CLASS,))):
        each.apply(module)
    wanted = evaluate(module, model.weights, inputs)
    found = native(result, model.weights, inputs, tmp_path)
    # One element that is rounded to the other side changes what follows by one unit of int8 or bf16.
    assert relative(found, wanted) < {"fp32": 1e-5, "bf16": 2e-2, "int8": 4e-2, "int4": 4e-2}[dtype]


def native(result: CompiledModule, weights: dict[str, Array], inputs: dict[str, Array], folder: Path) -> Array:
    tensors = packed_weights(result, weights, folder)
    with open_executor(result, tensors, BEST_CLASS, folder, threads=2) as executor:
        executor.allocate_cache(4)
        tokens = list(zip(*(inputs[n].tolist() for n in ("token_ids", "positions", "sequences")), strict=True))
        return executor.step(make_batch(tokens, inputs["block_tables"], inputs["logit_rows"].tolist()))


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_keep_their_meaning(seed: int) -> None:
    random = RandomProgram(seed)
    inputs = step_inputs(20, seed=seed)
    wanted = graph_logits(random.module, random.weights, inputs)
    for dtype in ("fp32", "int8"):
        module = random.module.clone()
        for each in schedule_passes(CompileOptions(dtype, 48, 11, classes=(BEST_CLASS,))):
            each.apply(module)
            module.verify()
        if dtype == "fp32":
            assert relative(evaluate(module, random.weights, inputs), wanted) < 1e-5
        else:
            assert np.isfinite(evaluate(module, random.weights, inputs)).all()


@pytest.mark.parametrize("seed", slow_from(4, range(12)))
def test_random_programs_run_natively(seed: int, tmp_path: Path) -> None:
    random = RandomProgram(seed)
    inputs = step_inputs(20, seed=seed)
    wanted = graph_logits(random.module, random.weights, inputs)
    options = CompileOptions("fp32", 48, 11, classes=(BEST_CLASS,))
    # Simplified, little would be left of what makes them odd.
    result = compile_module(random.module.clone(), options, done=len(PASSES))
    found = native(result, random.weights, inputs, tmp_path)
    assert relative(found, wanted) < 1e-5
