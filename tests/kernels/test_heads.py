"""What a product's kernel does head by head gives the bits that kernels of its own give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from head_programs import VOCABULARY, HeadProgram
from native_kernels import NATIVE_CLASSES, Array
from programs import make_batch, open_executor, packed_weights, slow_from, tiny_model
from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.driver import CompileOptions, compile_planned, schedule_passes
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.module import CompiledModule
from tessera_compiler.schedule.dialect import GroupOp
from tessera_compiler.schedule.heads import heads_in
from tessera_compiler.schedule.passes.form_groups import FormGroups

LENGTH = 41
TABLE = [4, 1, 3]
PROGRAMS = {
    "half of a head with the other": HeadProgram(),
    "interleaved": HeadProgram(interleaved=True),
    "part of a head": HeadProgram(width=32, rotated=16),
    "neighbours in part of a head": HeadProgram(width=32, rotated=8, interleaved=True, bias=True),
    "not at all": HeadProgram(rotated=0, bias=True),
    "after a norm": HeadProgram(norm=True),
    "after a bias and a norm": HeadProgram(width=64, rotated=64, queries=3, keys=1, bias=True, norm=True),
    "only a norm": HeadProgram(rotated=0, norm=True),
    "heads wider than a panel that fill no panels": HeadProgram(width=40, rotated=40, queries=2, keys=1),
    "heads that share panels": HeadProgram(width=8, rotated=8, queries=6, keys=1),
    "an odd number of heads in a block": HeadProgram(width=22, rotated=22),
    "heads of many panels": HeadProgram(width=144, rotated=144, queries=2, keys=1),
    "rows with padding": HeadProgram(queries=15, keys=1, interleaved=True),
}
DTYPES = ("int8", "bf16", "fp32", "int4")
CASES = [
    *((name, DTYPES[number % len(DTYPES)], "auto", NATIVE_CLASSES[0]) for number, name in enumerate(PROGRAMS)),
    ("part of a head", "fp32", "auto", NATIVE_CLASSES[-1]),
    ("heads that share panels", "int8", "auto", NATIVE_CLASSES[-1]),
    ("interleaved", "bf16", "int8", NATIVE_CLASSES[0]),
    ("after a bias and a norm", "int8", "int8", NATIVE_CLASSES[0]),
    ("an odd number of heads in a block", "int8", "int8", NATIVE_CLASSES[0]),
]
MODELS = [("gemma2", "int8"), ("qwen3", "int4"), ("glm", "fp32"), ("gpt2", "bf16")]


def planned(module: ModuleOp, options: CompileOptions, *, heads: bool) -> CompiledModule:
    for each in schedule_passes(options):
        (FormGroups(heads=heads) if isinstance(each, FormGroups) else each).apply(module)
    module.verify()
    return compile_planned(module, options)


def both_ways(
    module: ModuleOp, options: CompileOptions, weights: dict[str, Array], folder: Path
) -> tuple[list[Array], list[Array]]:
    """The logits and then the cache, from kernels that go on head by head, and from kernels that do not."""
    (cpu_class,) = options.classes
    random = np.random.default_rng(3)
    ids = random.integers(0, options.vocab_size, LENGTH).tolist()
    found = []
    for heads in (True, False):
        mine = folder / str(heads)
        mine.mkdir()
        copy = module.clone()
        result = planned(copy, options, heads=heads)
        groups = [op for op in entry_function(copy).body.block.ops if isinstance(op, GroupOp)]
        assert any(heads_in(group) for group in groups) == heads
        with open_executor(result, packed_weights(result, weights, mine), cpu_class, mine, 2) as executor:
            found.append(_run(executor, ids))
    return found[0], found[1]


def _run(executor, ids: Sequence[int]) -> list[Array]:  # type: ignore[no-untyped-def]
    parts = []
    for sizes in ([LENGTH], [1, 2, 3, 5, 9, 17, 4]):
        executor.allocate_cache(6)
        start = 0
        for size in sizes:
            parts.append(executor.step(make_batch([(ids[p], p, 0) for p in range(start, start + size)], TABLE)))
            start += size
        parts.append(executor.raw_cache())
    return parts


@pytest.mark.parametrize(("name", "dtype", "kv_dtype", "cpu_class"), slow_from(2, CASES))
def test_programs(name: str, dtype: str, kv_dtype: str, cpu_class: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    options = CompileOptions(dtype, 48, VOCABULARY, max_tokens=64, classes=(cpu_class,), kv_dtype=kv_dtype)
    one, other = both_ways(program.module(), options, program.weights(), tmp_path)
    assert all(np.isfinite(each).all() and each.any() for each in one)
    assert [each.tobytes() for each in one] == [each.tobytes() for each in other]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), MODELS)
def test_models(name: str, dtype: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    options = model.options(dtype, NATIVE_CLASSES[:1])
    one, other = both_ways(model.graph(), options, model.weights, tmp_path)
    assert [each.tobytes() for each in one] == [each.tobytes() for each in other]
