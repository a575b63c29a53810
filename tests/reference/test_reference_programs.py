"""Whole programs on the reference executor: against Schedule IR's evaluator, transformers and the CPU executor."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_models import BLOCKS, OPTIONS, VOCABULARY, make_batch, native_class, one_sequence, random_ids

from tessera_compiler.schedule.evaluator import Cache
from tessera_runtime.errors import CacheNotAllocated, InvalidRequest, StepInvalid, StepTooLarge, WeightsInvalid
from tessera_runtime.executor.cpu.executor import CpuExecutor
from tessera_runtime.executor.reference import weights as weights_module
from tessera_runtime.executor.reference.executor import ReferenceExecutor

DTYPES = ("fp32", "bf16", "int8", "int4", "fp32+int8")
CASES = [(kind, dtype) for kind in OPTIONS for dtype in DTYPES]
# A sum in another order may fall on the other side of a bfloat16 or int8 boundary, and then a whole step of it apart.
BUDGET = {"fp32": 2e-6, "bf16": 5e-3, "int8": 2e-2, "int4": 2e-2, "fp32+int8": 5e-3}


def error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape and np.isfinite(found).all()
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def open_executor(model, **options) -> ReferenceExecutor:
    executor = ReferenceExecutor(model.program, model.weights, **options)
    executor.allocate_cache(BLOCKS)
    return executor


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_a_step_is_what_schedule_ir_says(compiled, kind, dtype):
    model = compiled(kind, dtype)
    batch = one_sequence(random_ids(37))
    assert error(open_executor(model).step(batch), model.evaluate(batch, Cache(BLOCKS))) < BUDGET[dtype]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("llama", "fp32"), ("gemma2", "bf16"), ("gpt2", "int8"), ("llama", "int4"), ("gemma2", "fp32+int8")],
)
def test_the_native_target_agrees(compiled, tmp_path: Path, kind, dtype):
    model = compiled(kind, dtype, native_class())
    target = next(each for each in model.compiled.targets if each.name == "cpu")
    path = tmp_path / f"{native_class()}.so"
    path.write_bytes(target.files[path.name])
    batch = one_sequence(random_ids(37))
    with CpuExecutor(target.program, path, model.weights, 1) as native:
        native.allocate_cache(BLOCKS)
        assert error(open_executor(model).step(batch), native.step(batch)) < BUDGET[dtype]


@pytest.mark.parametrize("kind", OPTIONS)
def test_fp32_is_what_transformers_computes(compiled, saved, kind):
    ids = random_ids(37)
    with torch.no_grad():
        expected = saved(kind)[1](torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
    assert error(open_executor(compiled(kind, "fp32")).step(one_sequence(ids)), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), CASES)
@pytest.mark.parametrize("size", [1, 5, 16])
def test_chunks_give_what_the_whole_gives(compiled, kind, dtype, size):
    executor = open_executor(compiled(kind, dtype))
    ids = random_ids(37)
    whole = executor.step(one_sequence(ids))
    executor.allocate_cache(BLOCKS)
    parts = [executor.step(one_sequence(ids[start : start + size], start)) for start in range(0, len(ids), size)]
    assert error(np.concatenate(parts), whole) < BUDGET[dtype]


@pytest.mark.parametrize("kind", OPTIONS)
def test_sequences_mixed_in_one_step(compiled, kind):
    """Three sequences, one of them begun earlier, in blocks that lie between each other's."""
    model = compiled(kind, "fp32")
    executor = open_executor(model)
    tables = [[5, 2, 9, 0], [1, 7, 0, 0], [3, 4, 8, 6]]
    lengths = [37, 9, 50]
    prompts = [random_ids(length, seed) for seed, length in enumerate(lengths)]
    begun = 33
    executor.step(make_batch([(int(token), p, 2) for p, token in enumerate(prompts[2][:begun])], tables, []))
    tokens = [
        (int(token), position, sequence)
        for sequence, prompt in enumerate(prompts)
        for position, token in enumerate(prompt)
        if sequence != 2 or position >= begun
    ]
    rows = [len(tokens) - 1, 36, 0, 45]
    mixed = executor.step(make_batch(tokens, tables, rows))
    for row, logits in zip(rows, mixed, strict=True):
        _, position, sequence = tokens[row]
        alone = model.evaluate(one_sequence(prompts[sequence][: position + 1]), Cache(BLOCKS))
        assert error(logits, alone[-1]) < BUDGET["fp32"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_need_not_be_kept(compiled, dtype, monkeypatch):
    model = compiled("gpt2", dtype)
    batch = one_sequence(random_ids(20))
    kept = open_executor(model)
    expected = kept.step(batch)
    np.testing.assert_array_equal(kept.step(batch), expected)
    monkeypatch.setattr(weights_module, "_BLOCK_ELEMENTS", 700)
    never = open_executor(model, unpacked_bytes=0)
    assert error(never.step(batch), expected) < BUDGET[dtype]
    assert not [weight.name for weight in never._weights if weight._kept is not None]
    some = open_executor(model, unpacked_bytes=20_000)
    assert error(some.step(batch), expected) < BUDGET[dtype]
    held = sum(weight._kept.nbytes for weight in some._weights if weight._kept is not None)
    assert 0 < held <= 20_000


def test_trace_gives_the_layers_that_the_program_names(compiled):
    model = compiled("llama", "fp32")
    batch = one_sequence(random_ids(7))
    groups = model.evaluate_traced(batch)
    program = copy.deepcopy(model.program)
    wanted = [3, len(groups) // 2]
    program["layers"] = []
    for index in wanted:
        last = program["launches"][index]["args"][-1]
        if not last.startswith("buffer:"):
            continue
        program["layers"].append({"path": f"group.{index}", "end": index + 1, "buffer": int(last.split(":")[1])})
    assert program["layers"]
    executor = ReferenceExecutor(program, model.weights)
    executor.allocate_cache(BLOCKS)
    outputs = executor.trace(batch)
    assert [path for path, _ in outputs] == [layer["path"] for layer in program["layers"]]
    for path, values in outputs:
        expected = groups[int(path.partition(".")[2])][-1]
        assert error(values, expected.reshape(len(expected), -1)) < 1e-5


def test_a_broken_token_leaves_those_before_it_alone(compiled):
    """A token whose values are not finite must not reach, as 0 * infinity, those that do not see it."""
    model = compiled("gpt2", "fp32")
    weights = {name: array.copy() for name, array in model.weights.items()}
    ids = random_ids(12)
    ids[8] = 90
    ids[:8] = np.minimum(ids[:8], 80)
    name = next(each["name"] for each in model.program["weights"] if each["shape"] == [VOCABULARY, 32])
    weights[name][90 // 16, :, 90 % 16] = np.inf
    executor = ReferenceExecutor(model.program, weights)
    executor.allocate_cache(BLOCKS)
    logits = executor.step(one_sequence(ids))
    finite = np.isfinite(np.delete(logits, 90, axis=1)).all(axis=1)
    assert finite[:8].all() and not finite[8:].any()


def test_an_executor_keeps_the_interface(compiled):
    model = compiled("llama", "fp32")
    executor = ReferenceExecutor(model.program, model.weights)
    batch = one_sequence(random_ids(5))
    with pytest.raises(CacheNotAllocated, match="allocate_cache"):
        executor.step(batch)
    with pytest.raises(InvalidRequest, match="at least one block"):
        executor.allocate_cache(0)
    executor.allocate_cache(BLOCKS)
    assert executor.limits.vocab_size == VOCABULARY and executor.limits.block_tokens == 16
    assert executor.description.startswith("reference, ")
    assert executor.step(make_batch([(5, 0, 0)], [[0]], [])).shape == (0, VOCABULARY)
    first = executor.step(batch)
    kept = first.copy()
    executor.step(one_sequence(random_ids(5, 1)))
    np.testing.assert_array_equal(first, kept)
    with pytest.raises(StepTooLarge, match="1 to 64"):
        executor.step(one_sequence(random_ids(65)))
    with pytest.raises(StepInvalid, match=f"block {BLOCKS}"):
        executor.step(make_batch([(5, 0, 0)], [[BLOCKS]]))
    with executor:
        pass
    with pytest.raises(CacheNotAllocated):
        executor.trace(batch)


def test_a_new_cache_is_empty(compiled):
    executor = open_executor(compiled("llama", "bf16"))
    before = executor.step(one_sequence(random_ids(1, 3), start=20))
    executor.step(one_sequence(random_ids(30)))
    after = executor.step(one_sequence(random_ids(1, 3), start=20))
    executor.allocate_cache(BLOCKS)
    again = executor.step(one_sequence(random_ids(1, 3), start=20))
    np.testing.assert_array_equal(before, again)
    assert not np.array_equal(before, after)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda array: None, "no tensor"),
        (lambda array: array[..., :-1], "and the package has it as"),
        (lambda array: array.astype(np.float64), "float64"),
    ],
)
def test_weights_that_do_not_fit_are_refused(compiled, change, words):
    model = compiled("llama", "fp32")
    name = model.program["weights"][0]["name"]
    changed = {**model.weights, name: change(model.weights[name])}
    with pytest.raises(WeightsInvalid, match=words):
        ReferenceExecutor(model.program, {key: array for key, array in changed.items() if array is not None})
