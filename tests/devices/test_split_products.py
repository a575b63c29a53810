"""Products whose columns are cut into parts: the same sums in the same order whichever kernels add them up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
from device_machine import DevicePlan, plan_for, run_in_numpy
from numpy.typing import NDArray
from product_checks import launched_as_scheduled
from test_device_programs import TARGET

from tessera_compiler.schedule import device_blocking
from tessera_compiler.schedule.device_blocking import SPLIT_TOKENS, SPLIT_UNIT, STACKED_UNIT, splits_of
from tessera_compiler.schedule.passes.plan_device_tiles import device_splits_of
from tessera_compiler.targets.triton.architectures import ARCHITECTURES
from tessera_compiler.tile.dialect import KernelOp
from tessera_compiler.tile.lowering import device_linear
from tessera_compiler.tile.types import element_name, numpy_dtype

Array = NDArray[Any]
MODEL = "mistral"
PARTS = {256: 2, 512: 4}
"""By the columns of its products, into how many parts they are cut."""


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device so large, and so quick to launch, that even a tiny model's products are cut."""
    wide = {**programs.MODELS["qwen3"], "hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    monkeypatch.setitem(programs.MODELS, MODEL, wide)
    for target, machine in device_blocking._MACHINES.items():
        large = replace(machine, multiprocessors=10_000, bytes_of_a_launch=0)
        monkeypatch.setitem(device_blocking._MACHINES, target, large)
    yield


def plan_of(dtype: str) -> DevicePlan:
    return plan_for(MODEL, dtype, (TARGET,))


@pytest.mark.parametrize("dtype", ["fp32", "int4", "int8"])
def test_programs_mean_what_their_schedule_does(dtype: str, tmp_path: Path) -> None:
    steps = ([(0, 70), (1, 3)], [(0, 1), (1, 2)])
    launched = launched_as_scheduled(plan_of(dtype), MODEL, dtype, steps, tmp_path)
    used = {word for symbol in launched if "linear" in symbol for word in symbol.split("_")}
    assert {"parts2", "fold2", "parts4", "fold4"} <= used


def kernels_of(plan: DevicePlan, splits: int) -> tuple[KernelOp, KernelOp, KernelOp]:
    """Of a linear map that is cut so: the one that does everything, that of the parts, and that which goes on."""
    kernels = list(plan.lowered.kernels().values())
    fold = next(each for each in kernels if f"_fold{splits}_" in each.symbol)
    name = fold.symbol.partition("_fold")[0]
    parts = next(each for each in kernels if each.symbol.startswith(f"{name}_parts{splits}_"))
    whole = next(each for each in kernels if each.symbol.startswith(f"{name}_of{splits}_"))
    return whole, parts, fold


def test_parts_are_added_in_ascending_order_by_both(tmp_path: Path) -> None:
    """With numbers of which the order of addition can be told."""
    whole, parts, fold = kernels_of(plan_of("fp32"), 4)
    in_order = np.array([1e8, 3.0, -1e8, 5.0], np.float32)
    results = []
    for kernels in ((whole,), (parts, fold)):
        buffers = buffers_of(whole)
        x, weight = buffers[0], buffers[1]
        x[...], weight[...] = 0, 0
        for part, value in enumerate(in_order):
            x[:, part * 128 + 7] = 1
            weight[:, part * 128 + 7] = value
        for kernel in kernels:
            run_in_numpy(kernel, buffers, tokens=5)
        results.append(buffers[-1][:5, :16])
    total = np.float32(0)
    for value in in_order:
        total = np.float32(total + value)
    np.testing.assert_array_equal(results[0], np.full((5, 16), total))
    np.testing.assert_array_equal(results[0], results[1])


def buffers_of(kernel: KernelOp) -> list[Array]:
    """Zeros for what the kernel reads, with room for 64 rows."""
    shapes = [[64 if size < 0 else size for size in each.type.get_shape()] for each in kernel.buffers]  # type: ignore[attr-defined]
    pairs = zip(shapes, kernel.buffers, strict=True)
    return [np.zeros(shape, numpy_dtype(element_name(each.type))) for shape, each in pairs]


def test_a_wrong_order_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        device_linear._DeviceLinearLowering,
        "_added",
        lambda self, total, sums: [self._builder.binary("sub", *pair) for pair in zip(total, sums, strict=True)],
    )
    with pytest.raises(AssertionError):
        test_parts_are_added_in_ascending_order_by_both(tmp_path)


def test_few_rows_have_a_second_launch_and_many_have_none() -> None:
    plan = plan_of("fp32")
    for group in plan.lowered.groups.values():
        for stage in group.stages:
            if group.kind == "linear" and stage.name.endswith("_fold"):
                first, last = stage.variants[TARGET]
                assert next(iter(first.limits.values())) <= SPLIT_TOKENS and first.kernel is not None
                assert last.kernel is None and not last.limits
                return
    pytest.fail("no product was cut")


def test_products_are_cut_by_their_shape() -> None:
    groups = [group for group in plan_of("fp32").groups if group.kind.data == "linear"]
    assert {device_splits_of(group, TARGET) for group in groups} == set(PARTS.values())


def test_the_buffer_of_sums_has_its_place() -> None:
    program = plan_of("fp32").program
    (sums,) = (buffer for buffer in program["buffers"] if buffer["name"] == "split_sums")
    assert sums["rows"] == max(PARTS.values()) * SPLIT_TOKENS
    index = program["buffers"].index(sums)
    writers = [launch for launch in program["launches"] if index in launch["writes"]]
    readers = [launch for launch in program["launches"] if f"buffer:{index}" in launch["args"]]
    assert len(readers) == 2 * len(writers) > 0
    assert all(launch["group"].endswith("_sums") for launch in writers)
    assert sums["offset"]["bytes"] + sums["rows"] * sums["row_bytes"] <= program["arena"]["bytes"]


@pytest.mark.parametrize("target", ARCHITECTURES)
@pytest.mark.parametrize("form", ["f32", "bf16", "u8", "bf16xu4"])
@pytest.mark.parametrize(("outputs", "depth"), [(64, 256), (4096, 4096), (1536, 8960), (1024, 3072), (576, 1536)])
def test_parts_are_equal_and_whole(target: str, form: str, outputs: int, depth: int, monkeypatch: Any) -> None:
    splits = splits_of(target, form, outputs // 16, depth)
    unit = STACKED_UNIT if form == "bf16" and target in ("cuda-sm80", "cuda-sm90", "cuda-sm120") else SPLIT_UNIT
    assert splits == 1 or (splits & (splits - 1) == 0 and depth % (splits * unit) == 0)
    monkeypatch.undo()
    assert splits_of(target, form, outputs // 16, depth) <= splits


def test_only_what_gains_more_than_a_launch_costs_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    cut = {
        (outputs, depth, form): splits_of("cuda-sm90", form, outputs // 16, depth)
        for outputs, depth, form in (
            (576, 1536, "bf16"),
            (1536, 8960, "bf16"),
            (1024, 3072, "bf16"),
            (4096, 4096, "bf16"),
            (4096, 4096, "bf16xu4"),
            (4096, 12288, "bf16xu4"),
        )
    }
    assert list(cut.values()) == [1, 4, 4, 1, 2, 2]
