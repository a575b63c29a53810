"""Products computed as `weight @ x.T`: the same numbers, with the matrix units' blocks of 64 laid along the outputs."""

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
from tessera_compiler.schedule.device_blocking import DeviceBlocking
from tessera_compiler.targets.triton.architectures import architecture_of
from tessera_compiler.targets.triton.emission import emit_source
from tessera_compiler.targets.triton.toolchain import Job, compile_all
from tessera_compiler.tile.dialect import KernelOp
from tessera_compiler.tile.lowering.device_products import Product

Array = NDArray[Any]
MODEL = "qwen2"
"""Which no other test of devices makes, for models are kept by their names."""
TURNED = (
    (DeviceBlocking(16, 16, 64, 64, 4, 5, turned=1),),
    (DeviceBlocking(64, 64, 16, 128, 4, 4, turned=1),),
    (DeviceBlocking(0, 128, 32, 64, 8, 3),),
)


@pytest.fixture(autouse=True)
def everything_turned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few rows of all products are; on a device so large that those of few outputs are cut into parts besides."""
    wide = {**programs.MODELS["qwen3"], "hidden_size": 192, "intermediate_size": 512, "head_dim": 64}
    monkeypatch.setitem(programs.MODELS, MODEL, wide)
    for of_parts in (False, True):
        monkeypatch.setitem(device_blocking._MEASURED, (TARGET, of_parts), TURNED)
    large = replace(device_blocking._MACHINES[TARGET], multiprocessors=10_000, bytes_of_a_launch=0)
    monkeypatch.setitem(device_blocking._MACHINES, TARGET, large)
    monkeypatch.setattr(device_blocking, "LEAST_CUT", 512)
    yield


def plan_of(dtype: str) -> DevicePlan:
    return plan_for(MODEL, dtype, (TARGET,))


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_programs_mean_what_their_schedule_does(dtype: str, tmp_path: Path) -> None:
    steps = ([(0, 30), (1, 3)], [(0, 1), (1, 2)], [(0, 64), (1, 1)])
    launched = launched_as_scheduled(plan_of(dtype), MODEL, dtype, steps, tmp_path)
    used = [symbol for symbol in launched if "_turned_" in symbol]
    assert any("_turned_16x" in symbol for symbol in used) and any("_parts4_turned_64x" in symbol for symbol in used)
    assert all("turned" not in symbol for symbol in launched if "_128x" in symbol or "_fold" in symbol)


def kernels_of(plan: DevicePlan, turned: str) -> tuple[KernelOp, KernelOp]:
    """Of one product, for few rows and for many."""
    kernels = plan.lowered.kernels()
    few = next(each for symbol, each in kernels.items() if f"_turned_{turned}x" in symbol and "parts" not in symbol)
    name = few.symbol.partition("_turned")[0]
    return few, next(each for symbol, each in kernels.items() if symbol.startswith(f"{name}_128x"))


@pytest.mark.parametrize("tokens", [1, 11, 16])
def test_both_ways_give_the_same_numbers(tokens: int, tmp_path: Path) -> None:
    few, many = kernels_of(plan_of("bf16"), "16")
    counts = {"tokens": tokens, "logit_rows": tokens}
    results = [run_in_numpy(kernel, whole_numbers(kernel, tokens), **counts)[-1] for kernel in (few, many)]
    results.append(run_in_triton(few, whole_numbers(few, tokens), tmp_path, **counts)[-1])
    for found in results[1:]:
        np.testing.assert_array_equal(found, results[0])


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_bytes_go_from_memory_to_the_matrix_units(dtype: str) -> None:
    """Nothing takes them through registers on their way: of many rows, the loop stores nothing where these read."""
    groups = plan_of(dtype).lowered.groups.values()
    (group,) = (group for group in groups if group.kind == "linear" and "down_proj" in group.source)
    variant = group.stages[0].variants[TARGET][-1]
    assert variant.kernel is not None
    job = Job(emit_source(variant.kernel, dependent=True), architecture_of(TARGET), variant.warps, variant.stages)
    (code,) = compile_all([job])
    before = code.ptx.partition(b"griddepcontrol.wait")[2].rpartition(b"wgmma.mma_async")[0]
    assert b"cp.async" in before
    assert not any(word in before for word in (b"st.shared", b"stmatrix", b"ld.shared", b"fence.proxy"))


def test_a_few_columns_of_bytes_are_multiplied_like_others(tmp_path: Path) -> None:
    """Of 66 columns two are left after a group, and the matrix units take no less than 32 bytes."""
    plan = plan_for("llama", "int8", (TARGET,))
    group = next(group for group in plan.lowered.groups.values() if group.kind == "linear")
    for variant in group.stages[0].variants[TARGET]:
        kernel = variant.kernel
        assert kernel is not None
        job = Job(emit_source(kernel, dependent=True), architecture_of(TARGET), variant.warps, variant.stages)
        assert compile_all([job])[0].spilled_bytes == 0
        counts = {"tokens": 5, "logit_rows": 5}
        wanted, found = (
            run(kernel, whole_numbers(kernel, 5), **counts)[-1]
            for run in (run_in_numpy, lambda *given, **rest: run_in_triton(*given, tmp_path, **rest))
        )
        np.testing.assert_array_equal(found, wanted)


def test_a_wrong_sum_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upright = Product.upright

    def less(self: Product, sums: list[Any]) -> list[Any]:
        right = upright(self, sums)
        return [self._builder.binary("sub", each, 1.0) for each in right] if self._turned else right

    monkeypatch.setattr(Product, "upright", less)
    with pytest.raises(AssertionError):
        test_both_ways_give_the_same_numbers(11, tmp_path)


def test_few_tokens_are_few_columns_of_the_matrix_units() -> None:
    """And both operands come straight from memory to where these read them, rounds ahead."""
    few, _ = kernels_of(plan_of("bf16"), "16")
    (code,) = compile_all([Job(emit_source(few, dependent=True), architecture_of(TARGET), 4, 5)])
    assert b"wgmma.mma_async.sync.aligned.m64n16k16" in code.ptx and b"m64n64k16" not in code.ptx
    rounds = code.ptx.partition(b"griddepcontrol.wait")[2].rpartition(b"wgmma.mma_async")[0]
    assert b"cp.async.cg.shared.global" in rounds and b"ld.global" not in rounds
    assert code.spilled_bytes == 0
