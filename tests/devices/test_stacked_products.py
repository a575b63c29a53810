"""Products whose columns are cut into parts that are added next to each other: what a part comes to, and all of them,
is what one kernel makes that adds one part after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
from device_machine import DevicePlan, plan_for, run_in_numpy
from interpreting import run_in_triton
from numpy.typing import NDArray
from product_checks import launched_as_scheduled, whole_numbers
from test_device_programs import TARGET

from tessera_compiler.schedule import device_blocking
from tessera_compiler.schedule.device_blocking import DeviceBlocking, broken_rule, default_device_blocking
from tessera_compiler.schedule.passes.plan_device_tiles import device_splits_of
from tessera_compiler.targets.triton.architectures import architecture_of
from tessera_compiler.targets.triton.emission import emit_source
from tessera_compiler.targets.triton.toolchain import CompiledKernel, Job, compile_all
from tessera_compiler.tile import stacks
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.dialect import KernelOp, WhenOp
from tessera_compiler.tile.types import buffer_type

Array = NDArray[Any]
MODEL = "olmo2"
"""Which no other test of devices makes so, for models are kept by their names."""
COLUMNS, PARTS, PART = 1792, 4, 448
"""A part is three rounds of 128 columns, and one of 64."""


@pytest.fixture(autouse=True)
def long_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model whose down projection is long for its outputs, as far as `splits_of` can tell."""
    wide = {**programs.MODELS["qwen3"], "hidden_size": 192, "intermediate_size": COLUMNS, "head_dim": 64}
    monkeypatch.setitem(programs.MODELS, MODEL, wide)
    monkeypatch.setattr(device_blocking, "LEAST_CUT", COLUMNS)
    yield


def plan_of(dtype: str = "bf16") -> DevicePlan:
    return plan_for(MODEL, dtype, (TARGET,))


def kernels_of(plan: DevicePlan) -> tuple[KernelOp, KernelOp]:
    """For few rows and for many."""
    kernels = plan.lowered.kernels()
    few = next(kernel for symbol, kernel in kernels.items() if "_stacked_" in symbol)
    name = few.symbol.partition("_stacked")[0]
    assert name.endswith(f"_of{PARTS}")
    return few, next(each for symbol, each in kernels.items() if symbol.startswith(name) and kernel_rows(symbol) > 64)


def kernel_rows(symbol: str) -> int:
    return int(symbol.rpartition("_")[2].partition("x")[0])


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_programs_mean_what_their_schedule_does(dtype: str, tmp_path: Path) -> None:
    steps = ([(0, 70), (1, 3)], [(0, 1), (1, 2)], [(0, 20), (1, 1)])
    launched = launched_as_scheduled(plan_of(dtype), MODEL, dtype, steps, tmp_path)
    used = {part for symbol in launched for part in symbol.split("_")}
    assert {"stacked", f"of{PARTS}", f"parts{PARTS}", f"fold{PARTS}"} <= used


def test_few_rows_have_one_launch() -> None:
    """The sums of parts that are added next to each other go through no memory."""
    folds = [
        [(dict(each.limits), each.kernel is not None) for each in stage.variants[TARGET]]
        for group in plan_of().lowered.groups.values()
        for stage in group.stages
        if group.kind == "linear" and stage.name.endswith("_fold")
    ]
    assert folds == [[({"T": 16}, False), ({"T": 64}, True), ({}, False)]]


@pytest.mark.parametrize("tokens", [1, 5, 16])
def test_both_ways_give_the_same_numbers(tokens: int, tmp_path: Path) -> None:
    few, many = kernels_of(plan_of())
    counts = {"tokens": tokens, "logit_rows": tokens}
    results = [run_in_numpy(kernel, whole_numbers(kernel, tokens), **counts)[-1] for kernel in (many, few)]
    results += [run_in_triton(kernel, whole_numbers(kernel, tokens), tmp_path, **counts)[-1] for kernel in (many, few)]
    assert np.abs(results[0]).max() > 0
    for found in results[1:]:
        np.testing.assert_array_equal(found, results[0])


def test_parts_are_added_one_after_the_other(tmp_path: Path) -> None:
    """With numbers of which the order of addition can be told, and rows past the end that hold anything."""
    few, many = kernels_of(plan_of())
    in_order = np.array([2.0**26, 3.0, -(2.0**26), 5.0], np.float32)
    wanted = np.float32(0)
    for value in in_order:
        wanted = np.float32(wanted + value)
    assert wanted != np.float32(8)
    for kernel in (few, many):
        for run in (run_in_numpy, lambda *given, **counts: run_in_triton(*given, tmp_path, **counts)):
            buffers = [np.zeros_like(each) for each in whole_numbers(kernel, 24)]
            x, weight = buffers[0], buffers[1]
            x[5:] = np.nan
            for part, value in enumerate(in_order):
                x[:5, part * PART + 130] = 1
                weight[:, part * PART + 130] = value
            result = run(kernel, buffers, tokens=5, logit_rows=5)[-1]
            np.testing.assert_array_equal(result[:5], np.full_like(result[:5], wanted))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_stack_is_taken_apart_in_order(count: int, tmp_path: Path) -> None:
    """Each tile is added in its place, whatever the order in which Triton's halves come."""
    columns = 16 * count
    builder = KernelBuilder("added", [1], [buffer_type([16, size], "f32") for size in (columns, 16)])
    zero = builder.constant(0)
    stack = builder.load_stack(builder.buffers[0], zero, zero, (count, 16, 16), 16)
    builder.store_block(builder.sum_stack(stack), builder.buffers[1], zero, zero, row_step=1, lane_step=1)
    kernel = builder.finish()
    random = np.random.default_rng(count)
    tiles = random.standard_normal((count, 16, 16)) * 2.0 ** random.integers(0, 30, (count, 16, 16))
    buffers = [tiles.astype(np.float32).transpose(1, 0, 2).reshape(16, columns), np.zeros((16, 16), np.float32)]
    wanted = np.zeros((16, 16), np.float32)
    for each in tiles.astype(np.float32):
        wanted = wanted + each
    counts = {"tokens": 1, "logit_rows": 1}
    np.testing.assert_array_equal(run_in_triton(kernel, buffers, tmp_path, **counts)[-1], wanted)
    np.testing.assert_array_equal(run_in_numpy(kernel, buffers, **counts)[-1], wanted)


def test_a_wrong_order_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stacks.SumStackOp, "evaluate", lambda self, operand: (operand[::-1].sum(0),))
    with pytest.raises(AssertionError):
        test_parts_are_added_one_after_the_other(tmp_path)


def test_parts_of_a_prompt_are_one_loop() -> None:
    """So that loads for a part are under way while the one before ends."""
    _, many = kernels_of(plan_of())
    assert any(isinstance(op, WhenOp) for op in many.walk())
    code = compiled(many, 8, 3)
    rounds = code.ptx.partition(b"griddepcontrol.wait")[2]
    assert rounds.count(b"wgmma.mma_async.sync.aligned.m64n") <= 4 and code.spilled_bytes == 0


def test_each_warp_multiplies_a_part() -> None:
    """A tile of 16 rows by 16 outputs is two products of the matrix units for 16 columns of a part: one warp makes both
    for its own part, straight from where rounds ahead were copied to."""
    few, _ = kernels_of(plan_of())
    code = compiled(few, PARTS, 4)
    rounds = code.ptx.partition(b"griddepcontrol.wait")[2]
    assert rounds.count(b"mma.sync.aligned.m16n8k16") == 2 * (128 + 64) // 16
    assert b"cp.async.cg.shared.global" in rounds and b"ldmatrix" in rounds and code.spilled_bytes == 0


@pytest.mark.parametrize("target", ["cuda-sm80", "cuda-sm120"])
def test_other_devices_of_one_instruction_do_the_same(target: str, tmp_path: Path) -> None:
    """Code for them: each warp multiplies for a part, and what all add up is in registers."""
    plan = plan_for(MODEL, "bf16", (target,))
    variants = [
        variant
        for group in plan.lowered.groups.values()
        for stage in group.stages
        for variant in stage.variants[target]
        if variant.kernel is not None and f"_of{PARTS}_" in variant.kernel.symbol
    ]
    jobs = [Job(emit_source(each.kernel), architecture_of(target), each.warps, each.stages) for each in variants]  # type: ignore[arg-type]
    assert any(each.blocking is not None and each.blocking.stacked for each in variants) and len(jobs) > 2
    for code in compile_all(jobs):
        assert code.spilled_bytes == 0 and code.shared_bytes <= architecture_of(target).shared_bytes
    tokens = 5
    counts = {"tokens": tokens, "logit_rows": tokens}
    kernels = [each.kernel for each in variants if each.kernel is not None]
    results = [run_in_numpy(kernel, whole_numbers(kernel, tokens), **counts)[-1] for kernel in kernels]
    for found in results[1:]:
        np.testing.assert_array_equal(found, results[0])


def compiled(kernel: KernelOp, warps: int, stages: int) -> CompiledKernel:
    (code,) = compile_all([Job(emit_source(kernel, dependent=True), architecture_of(TARGET), warps, stages)])
    return code


def test_products_are_cut_if_they_are_long_for_their_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    shapes = {(1024, 3072): 4, (1024, 2048): 4, (1536, 8960): 4, (1536, 1536): 1, (4096, 12288): 1, (896, 4864): 4}
    found = {
        (outputs, depth): device_blocking.splits_of(TARGET, "bf16", outputs // 16, depth) for outputs, depth in shapes
    }
    assert found == shapes
    first, *_ = default_device_blocking(TARGET, "bf16", 64, 3072, splits=4)
    assert first == DeviceBlocking(16, 16, 16, 128, 4, 4, stacked=1)
    for target, depth in (("cuda-sm80", 64), ("cuda-sm120", 64)):
        assert device_blocking.splits_of(target, "f16", 64, 3072) == 4
        first, *_ = default_device_blocking(target, "f16", 64, 3072, splits=4)
        assert first == DeviceBlocking(16, 16, 16, depth, 4, 4, stacked=1)
    assert not any(each.stacked for each in default_device_blocking("hip-gfx942", "bf16", 64, 3072, splits=4))


def test_what_a_cut_product_was_measured_with_is_not_taken_for_a_whole_one() -> None:
    keys = {device_blocking.device_schedule_key(TARGET, "bf16", 1024, 3072, splits=splits) for splits in (1, 4)}
    assert len(keys) == 2
    groups = [group for group in plan_of().groups if group.kind.data == "linear"]
    assert {device_splits_of(group, TARGET) for group in groups} == {1, PARTS}


@pytest.mark.parametrize(
    ("target", "form", "changed", "rule"),
    [
        ("cuda-sm100", "bf16", {}, "parts of bf16 are not added next to each other on cuda-sm100"),
        (TARGET, "u8", {}, "parts of u8 are not added next to each other"),
        (TARGET, "bf16", {"turned": 1}, "neither turned nor read by descriptors"),
        (TARGET, "bf16", {}, None),
    ],
)
def test_rules(target: str, form: str, changed: dict[str, int], rule: str | None) -> None:
    blocking = replace(DeviceBlocking(0, 16, 16, 128, 4, 4, stacked=1), **changed)
    found = broken_rule(target, form, [blocking])
    assert (found is None) if rule is None else (found is not None and rule in found)
