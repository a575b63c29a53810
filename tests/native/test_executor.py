"""The whole way: LLVM IR by hand, linked, checked, mapped, and run by the executor."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tessera_runtime.errors import (
    AbiMismatch,
    CacheNotAllocated,
    InvalidRequest,
    NativeLoadFailed,
    ObjectRejected,
    ProgramInvalid,
    StepInvalid,
    StepTooLarge,
    TargetUnavailable,
    WeightsInvalid,
)
from tessera_runtime.executor.cpu.executor import CpuExecutor, open_cpu_executor


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_steps_compute_what_the_program_says(open_toy, batch_of, expect, toy_weights, threads):
    with open_toy(threads) as executor:
        for tokens in (1, 2, 7, 64):
            batch = batch_of(tokens)
            np.testing.assert_array_equal(executor.step(batch), expect(batch, toy_weights["bias"]))


def test_logits_stay_the_callers(open_toy, batch_of):
    executor = open_toy()
    first = executor.step(batch_of(5))
    kept = first.copy()
    executor.step(batch_of(5, token_ids=[9, 8, 7, 6, 5]))
    np.testing.assert_array_equal(first, kept)


def test_a_step_without_logits(open_toy, batch_of):
    assert open_toy(2).step(batch_of(9, logit_rows=[])).shape == (0, 16)


def test_trace_gives_every_layer(open_toy, batch_of, toy_weights):
    executor = open_toy(2)
    batch = batch_of(5)
    first, second = executor.trace(batch)
    values = np.arange(5, dtype=np.float32)[:, None] + toy_weights["bias"][:16]
    assert first[0] == "first" and second[0] == "second"
    np.testing.assert_array_equal(first[1], values)
    np.testing.assert_array_equal(second[1], values[::-1] * 2)


def test_launch_limit_stops_before_later_launches(open_toy, batch_of):
    executor = open_toy(2, layers=[{"path": "second", "end": 1, "buffer": 1}])
    assert not executor.trace(batch_of(5))[0][1].any(), "the second launch ran although the limit was 1"


def test_description_names_class_and_threads(open_toy):
    assert re.fullmatch(r"cpu, [\w-]+, 2 threads", open_toy(2).description)


def test_open_chooses_the_best_class(tmp_path, toy_program, toy_objects, toy_weights, batch_of):
    for name, data in toy_objects.items():
        (tmp_path / f"{name}.so").write_bytes(data)
    with open_cpu_executor(toy_program, tmp_path, toy_weights) as executor:
        executor.allocate_cache(1)
        assert executor.step(batch_of(2)).shape == (2, 16)


def test_every_class_that_runs_here_gives_the_same(tmp_path, toy_program, toy_objects, toy_weights, batch_of, expect):
    ran = 0
    for name, data in toy_objects.items():
        path = tmp_path / f"{name}.so"
        path.write_bytes(data)
        try:
            executor = CpuExecutor(toy_program, path, toy_weights, 1)
        except TargetUnavailable:
            continue
        with executor:
            executor.allocate_cache(4)
            batch = batch_of(8)
            np.testing.assert_array_equal(executor.step(batch), expect(batch, toy_weights["bias"]))
        ran += 1
    assert ran >= 1


def test_a_class_this_machine_lacks_is_refused(open_toy, toy_program):
    classes = {name: {**entry, "features": ["warp_drive"]} for name, entry in toy_program["classes"].items()}
    with pytest.raises(TargetUnavailable, match=r"warp_drive.*tessera pack"):
        open_toy(classes=classes)


def test_a_step_needs_a_cache(tmp_path, open_toy, batch_of):
    executor = open_toy()
    executor.close()
    with pytest.raises(CacheNotAllocated, match="allocate_cache"):
        executor.step(batch_of(1))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"token_ids": [0, 16, 0]}, StepInvalid, "token_ids must lie in 0 to 15"),
        ({"token_ids": [0, -1, 0]}, StepInvalid, "-1 does not"),
        ({"positions": [0, 1, 64]}, StepTooLarge, "Positions reach 64"),
        ({"positions": [-1, 0, 1]}, StepInvalid, "positions must lie"),
        ({"positions": [0, 1, 1]}, StepInvalid, "ascending"),
        ({"positions": [0, 1, 4]}, StepInvalid, "1 entries per sequence"),
        ({"positions": [0, 1]}, StepInvalid, "as many positions"),
        ({"sequences": [0, 1, 0]}, StepInvalid, "sequences must lie"),
        ({"block_tables": [[32]]}, StepInvalid, "block 32"),
        ({"block_tables": [[-1]]}, StepInvalid, "block -1"),
        ({"block_tables": [0]}, StepInvalid, "2 dimension"),
        ({"logit_rows": [3]}, StepInvalid, "logit_rows must lie"),
        ({"logit_rows": [0, 0, 0, 0]}, StepInvalid, "no 4 rows"),
    ],
)
def test_inputs_out_of_range_never_reach_native_code(open_toy, batch_of, changes, error, words):
    with pytest.raises(error, match=words):
        open_toy().step(batch_of(3, **changes))


def test_entries_past_a_sequence_are_not_looked_at(open_toy, batch_of):
    open_toy().step(batch_of(3, block_tables=[[31, -7, 1 << 30]]))


def test_wrong_kinds_of_arrays_are_refused(open_toy, batch_of):
    batch = batch_of(4)
    object.__setattr__(batch, "token_ids", batch.token_ids.astype(np.int64))
    with pytest.raises(StepInvalid, match="int64"):
        open_toy().step(batch)
    batch = batch_of(4)
    object.__setattr__(batch, "positions", np.zeros(8, np.int32)[::2])
    with pytest.raises(StepInvalid, match="C-contiguous"):
        open_toy().step(batch)


def test_too_many_tokens(open_toy, batch_of):
    with pytest.raises(StepTooLarge, match="1 to 64 tokens"):
        open_toy().step(batch_of(65))


def _misaligned(array: np.ndarray) -> np.ndarray:
    """A copy four bytes past a multiple of 64."""
    raw = np.zeros(len(array) + 32, np.float32)
    start = -raw.ctypes.data % 64 // 4 + 1
    return raw[start : start + len(array)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda array: {}, "no tensor 'bias'"),
        (lambda array: {"bias": array[:32]}, r"f32 \[64\]"),
        (lambda array: {"bias": array.astype(np.uint8)}, "uint8"),
        (lambda array: {"bias": _misaligned(array)}, "multiple of 64"),
    ],
)
def test_weights_that_do_not_fit_are_refused(open_toy, toy_weights, change, words):
    with pytest.raises(WeightsInvalid, match=words):
        open_toy(weights=change(toy_weights["bias"]))


def test_wrong_versions_and_numbers_are_refused(open_toy, toy_objects):
    with pytest.raises(AbiMismatch, match="ABI 9"):
        open_toy(abi=9)
    with pytest.raises(InvalidRequest, match="1 to 64"):
        open_toy(0)
    with pytest.raises(ObjectRejected, match="bytes"):
        open_toy(data=b"\x7fELF")
    with pytest.raises(ObjectRejected):
        open_toy(data=b"")


def test_files_that_are_not_there(tmp_path, toy_program, toy_weights):
    with pytest.raises(NativeLoadFailed, match="cannot be opened"):
        open_cpu_executor(toy_program, tmp_path, toy_weights)
    with pytest.raises(ProgramInvalid, match=r"other\.so"):
        CpuExecutor(toy_program, tmp_path / "other.so", toy_weights, 1)
