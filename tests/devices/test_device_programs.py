"""Programs for devices, launch by launch in NumPy, against the meaning of their schedule."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_machine import DeviceMachine, DevicePlan, logical_weight, plan_for, run_in_numpy
from numpy.typing import NDArray
from programs import slow_from, tiny_model
from safetensors.numpy import save_file

from tessera_compiler.schedule.evaluator import Cache, evaluate_program
from tessera_pack.checkpoint import Checkpoint
from tessera_pack.weights import pack_weights

Array = NDArray[Any]
TARGET = "cuda-sm90"
TOLERANCE = {"fp32": 1e-5, "bf16": 0.03, "int8": 0.1, "int4": 0.03, "fp16": 0.005, "fp8": 0.2}
"""Of the largest logit: what rounding to bfloat16 within attention and another order of sums can do."""

PROGRAMS = [
    *(("llama", "fp32"), ("gemma2", "bf16"), ("llama", "int8"), ("granite", "bf16")),
    *(("llama", "int4"), ("qwen3", "fp32"), ("gpt2", "bf16"), ("glm", "fp32"), ("gemma2", "int4")),
    *(("llama", "fp8"), ("qwen3", "fp16")),
]
TABLES = np.array([[5, 1, 9], [3, 0, 7], [2, 6, 6]], np.int32)
FOR_THE_EVALUATOR = np.arange(30, dtype=np.int32).reshape(3, 10)
"""Its blocks hold 16 positions."""


@cache
def plan_of(name: str, dtype: str) -> DevicePlan:
    return plan_for(name, dtype, (TARGET,))


def packed(plan: DevicePlan, name: str, folder: Path) -> dict[str, Array]:
    save_file(tiny_model(name).weights, folder / "model.safetensors")
    return {tensor.name: tensor.array for tensor in pack_weights(plan.recipes, Checkpoint(folder))}


class Conversation:
    """Three sequences of random tokens, of which each step computes some."""

    def __init__(self, vocab_size: int, length: int = 150) -> None:
        self.ids = np.random.default_rng(7).integers(0, vocab_size, (3, length)).astype(np.int32)
        self.done = [0, 0, 0]

    def step(self, *parts: tuple[int, int]) -> dict[str, Array]:
        """(sequence, tokens) in order; the logits of all rows."""
        sequences = np.concatenate([np.full(count, each) for each, count in parts]).astype(np.int32)
        positions = np.concatenate([np.arange(self.done[s], self.done[s] + n) for s, n in parts]).astype(np.int32)
        for each, count in parts:
            self.done[each] += count
        return {
            "token_ids": self.ids[sequences, positions],
            "positions": positions,
            "sequences": sequences,
            "logit_rows": np.arange(len(positions), dtype=np.int32),
        }


def run(machine: DeviceMachine, step: dict[str, Array]) -> Array:
    return machine.step(step["token_ids"], step["positions"], step["sequences"], TABLES, step["logit_rows"])


@pytest.mark.parametrize(("name", "dtype"), slow_from(5, PROGRAMS))
def test_logits_are_those_of_the_schedule(name: str, dtype: str, tmp_path: Path) -> None:
    plan = plan_of(name, dtype)
    tensors = packed(plan, name, tmp_path)
    machine, cache_ = DeviceMachine(plan, TARGET, tensors, run_in_numpy), Cache(64)
    conversation = Conversation(tiny_model(name).vocab_size)
    for parts in ([(0, 70), (1, 3), (2, 1)], [(0, 50), (1, 1), (2, 1)], [(2, 1), (0, 1), (1, 1)]):
        step = conversation.step(*parts)
        found = run(machine, step)
        inputs = {**step, "block_tables": FOR_THE_EVALUATOR}
        wanted = evaluate_program(
            plan.module, lambda op: logical_weight(plan, tensors, op.weight_name.data), inputs, cache_
        )
        assert np.isfinite(found).all()
        assert np.abs(found - wanted).max() <= TOLERANCE[dtype] * np.abs(wanted).max()
    used = {symbol.partition("_")[2].partition("_")[2] for symbol in machine.launched if "attention" in symbol}
    assert {"blocks16", "fold"} <= used and used & {"tiles16", "tiles64", "tiles128"}


def test_a_token_gives_the_same_alone_in_a_tile_and_block_by_block(tmp_path: Path) -> None:
    """The same arithmetic in the same order; NumPy's sums of a row may depend on the rows beside it, so almost."""
    plan = plan_of("llama", "fp32")
    tensors = packed(plan, "llama", tmp_path)
    conversation = Conversation(301)
    together = run(DeviceMachine(plan, TARGET, tensors, run_in_numpy), conversation.step((0, 140)))
    alone = Conversation(301)
    machine = DeviceMachine(plan, TARGET, tensors, run_in_numpy)
    run(machine, alone.step((0, 137)))
    rows = [run(machine, alone.step((0, 1)))[0] for _ in range(3)]
    np.testing.assert_allclose(rows, together[137:], atol=2e-6)
    assert "attention_0_blocks16" in machine.launched and "attention_0_fold" in machine.launched


def test_padding_is_computed_and_never_matters(tmp_path: Path) -> None:
    plan = plan_of("llama", "fp32")
    tensors = packed(plan, "llama", tmp_path)
    step = Conversation(301).step((0, 20), (1, 1))
    plain = run(DeviceMachine(plan, TARGET, tensors, run_in_numpy), step)
    tables = np.concatenate([TABLES, np.full((1, 3), 11, np.int32)])
    padded = {name: np.concatenate([values, np.zeros(6, np.int32)]) for name, values in step.items()}
    padded["sequences"][-6:] = 3
    machine = DeviceMachine(plan, TARGET, tensors, run_in_numpy, tokens=len(step["token_ids"]))
    found = machine.step(padded["token_ids"], padded["positions"], padded["sequences"], tables, padded["logit_rows"])
    np.testing.assert_array_equal(found[: len(plain)], plain)


def test_ids_that_the_device_drew_are_looked_up(tmp_path: Path) -> None:
    plan = plan_of("llama", "fp32")
    tensors = packed(plan, "llama", tmp_path)
    step = Conversation(301).step((0, 5))
    plain = run(DeviceMachine(plan, TARGET, tensors, run_in_numpy), step)
    machine = DeviceMachine(plan, TARGET, tensors, run_in_numpy)
    machine.feedback[2 * 16] = step["token_ids"][3]
    machine.feedback[16] = -1
    ids = step["token_ids"].copy()
    ids[3] = -1 - 2
    np.testing.assert_array_equal(run(machine, {**step, "token_ids": ids}), plain)
    ids[3] = -1 - 1
    clamped = run(DeviceMachine(plan, TARGET, tensors, run_in_numpy), {**step, "token_ids": np.where(ids < 0, 0, ids)})
    found = run(machine, {**step, "token_ids": ids.astype(np.int32)})
    np.testing.assert_array_equal(found, clamped)


def test_a_wrong_kernel_is_noticed(tmp_path: Path) -> None:
    plan = plan_of("llama", "fp32")
    tensors = packed(plan, "llama", tmp_path)

    def broken(kernel: Any, buffers: Any, **counts: int) -> Any:
        after = run_in_numpy(kernel, buffers, **counts)
        if "_tiles" in kernel.symbol:
            after[-1][0, 0] += 0.5
        return after

    step = Conversation(301).step((0, 5))
    plain = run(DeviceMachine(plan, TARGET, tensors, run_in_numpy), step)
    assert np.abs(run(DeviceMachine(plan, TARGET, tensors, broken), step) - plain).max() > 1e-3
