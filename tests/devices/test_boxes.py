"""Products that read their operands as boxes of tensors: the same numbers, copied by descriptors where a device can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
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
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.schedule import device_blocking
from tessera_compiler.schedule.device_blocking import DeviceBlocking, default_device_blocking
from tessera_compiler.targets.triton import target as triton_target
from tessera_compiler.targets.triton.architectures import architecture_of
from tessera_compiler.targets.triton.boxes import tensors_of
from tessera_compiler.targets.triton.emission import emit_source
from tessera_compiler.targets.triton.toolchain import Box, Job, KernelNotCompiled, compile_all
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.dialect import KernelOp
from tessera_compiler.tile.lowering.device_linear import _DeviceLinearLowering
from tessera_compiler.tile.types import buffer_type

Array = NDArray[Any]
MODEL = "phi3"
"""Which no other test of devices makes, for models are kept by their names."""
BLOCKINGS = (
    (DeviceBlocking(16, 16, 64, 64, 4, 5, turned=1, descriptors=1),),
    (DeviceBlocking(64, 64, 32, 128, 4, 4, descriptors=1),),
    (DeviceBlocking(0, 128, 32, 64, 4, 3, descriptors=1),),
)


@pytest.fixture(autouse=True)
def boxes_for_everything(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    wide = {**programs.MODELS["qwen3"], "hidden_size": 192, "intermediate_size": 512, "head_dim": 64}
    monkeypatch.setitem(programs.MODELS, MODEL, wide)
    for of_parts in (False, True):
        monkeypatch.setitem(device_blocking._MEASURED, (TARGET, of_parts), BLOCKINGS)
    yield


@cache
def plan_of(dtype: str) -> DevicePlan:
    return plan_for(MODEL, dtype, (TARGET,))


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_programs_mean_what_their_schedule_does(dtype: str, tmp_path: Path) -> None:
    steps = ([(0, 70), (1, 3)], [(0, 1), (1, 2)], [(0, 20)])
    launched = launched_as_scheduled(plan_of(dtype), MODEL, dtype, steps, tmp_path)
    assert all("_boxes_" in symbol for symbol in launched if symbol.startswith("linear"))


def kernels_of(plan: DevicePlan, group: int = 1) -> dict[str, KernelOp]:
    """Those of one product, by the rows of their blocks. The second one adds to what was there; the third is a gate."""
    made = [each for symbol, each in plan.lowered.kernels().items() if symbol.startswith(f"linear_{group}")]
    return {symbol.rpartition("_")[2].partition("x")[0]: each for each in made for symbol in (each.symbol,)}


def result_of(kernel: KernelOp, tokens: int) -> Array:
    return run_in_numpy(kernel, whole_numbers(kernel, tokens), tokens=tokens, logit_rows=tokens)[-1]


@pytest.mark.parametrize("group", [1, 2])
def test_boxes_hold_the_same_numbers(group: int, tmp_path: Path) -> None:
    kernels = kernels_of(plan_of("bf16"), group)
    few, some, many = kernels["16"], kernels["64"], kernels["128"]
    for each in (few, some, many):
        found = run_in_triton(each, whole_numbers(each, 11), tmp_path, tokens=11, logit_rows=11)[-1]
        # What is next to nothing, the two make of an exponential each in its own way.
        np.testing.assert_allclose(found, result_of(many, 11), rtol=0, atol=1e-30)


def wanted_blocks(kernel: KernelOp, tokens: int) -> Array:
    """The first product of a program, as NumPy makes it."""
    x, weight, *_ = whole_numbers(kernel, tokens)
    return (x @ weight.T).astype(np.float32)


@pytest.mark.parametrize("tokens", [1, 129, 8 * 128, 10 * 128 + 5])
def test_every_block_is_computed_once_in_whatever_order(tokens: int) -> None:
    """Also where the last group of blocks of rows is not full."""
    kernel = kernels_of(plan_of("bf16"), 0)["128"]
    found = result_of(kernel, tokens)
    np.testing.assert_array_equal(found, wanted_blocks(kernel, tokens)[:, : found.shape[1]])


def test_a_block_that_is_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, of_rows: Any, of_outputs: Any, limit: Any, outputs: int) -> Any:
        return of_rows, self._builder.index("div", of_outputs, 2)

    monkeypatch.setattr(_DeviceLinearLowering, "_in_groups", wrong)
    plan_of.cache_clear()
    with pytest.raises(AssertionError):
        test_every_block_is_computed_once_in_whatever_order(129)
    plan_of.cache_clear()


@pytest.mark.parametrize(("dtype", "name"), [("bf16", "bf16"), ("fp16", "fp16")])
def test_a_device_copies_boxes(dtype: str, name: str) -> None:
    """No thread loads anything for the matrix units, and the gate's two blocks of weights come by one descriptor."""
    for group, of_weights in ((1, 1), (2, 2)):
        kernel = kernels_of(plan_of(dtype), group)["128"]
        source = emit_source(kernel, dependent=True, descriptors=True)
        kinds = [kind for _, kind in source.signature]
        assert [kind for kind in kinds if "tensordesc" in kind] == [
            f"tensordesc<{name}[128,64]>",
            f"tensordesc<{name}[32,64]>",
        ]
        (code,) = compile_all([Job(source, architecture_of(TARGET), 4, 3)])
        rounds = code.ptx.partition(b"griddepcontrol.wait")[2].rpartition(b"wgmma.mma_async")[0]
        assert rounds.count(b"cp.async.bulk.tensor.2d.shared") >= 1 + of_weights
        assert b"ld.global" not in rounds and b"cp.async.cg" not in rounds and b"prefetch" not in code.ptx
        assert code.boxes == (Box((128, 64), 128), Box((32, 64), 128)) and code.spilled_bytes == 0
        assert b"st.global.v4" in code.ptx


def test_what_a_program_says_of_boxes() -> None:
    kernel = kernels_of(plan_of("bf16"), 1)["64"]
    source = emit_source(kernel, dependent=True, descriptors=True)
    job = Job(source, architecture_of(TARGET), 4, 3)
    (code,) = compile_all([job])
    made = triton_target._Kernel("name", None, job, kernel)
    described = triton_target._describe_kernel(made, code, 0, architecture_of(TARGET))
    depth = source.tensors[0].shape[1]
    assert described["parameters"][:2] == ["tensor_map", "tensor_map"]
    assert described["tensor_maps"] == [
        {"dtype": "bf16", "shape": ["T", depth], "strides": [2 * depth], "box": [64, 64], "swizzle": 128},
        {"dtype": "bf16", "shape": [192, depth], "strides": [2 * depth], "box": [32, 64], "swizzle": 128},
    ]
    with pytest.raises(KernelNotCompiled, match="makes no descriptors of 2 parameters"):
        compile_all([replace(job, source=replace(emit_source(kernel), tensors=source.tensors))])


def test_only_buffers_of_boxes_alone_are_described() -> None:
    """What is read in another way too, or as boxes of two shapes, is read by pointers."""
    builder = KernelBuilder("mixed", ["T/16"], [buffer_type([None, 64], "bf16")] * 4)
    start = builder.constant(0)
    shapes: dict[int, list[tuple[int, int]]] = {0: [(16, 32)], 1: [(16, 32), (16, 16)], 2: [(16, 32)], 3: [(12, 32)]}
    for number, of_boxes in shapes.items():
        for shape in of_boxes:
            builder.load_block(builder.buffers[number], start, start, shape, box=True, row_step=1, lane_step=1)
    builder.load(builder.buffers[2], start, start, (1, 16))
    kernel = builder.finish()
    assert list(tensors_of(kernel)) == [kernel.buffers[0]]
    kinds = [kind for _, kind in emit_source(kernel, descriptors=True).signature]
    assert kinds[:4] == ["tensordesc<bf16[16,32]>", "*bf16", "*bf16", "*bf16"]
    assert [kind for _, kind in emit_source(kernel).signature][:4] == ["*bf16"] * 4


def test_rounds_that_do_not_divide_the_columns_have_no_boxes() -> None:
    plan = plan_of("bf16")
    assert any(
        isinstance(op, tile.LoadBlockOp) and op.box for each in plan.lowered.kernels().values() for op in each.walk()
    )
    assert not device_blocking.has_boxes("bf16", DeviceBlocking(0, 64, 64, 128, 4, 3, descriptors=1), 192)
    assert not device_blocking.has_boxes("f32", DeviceBlocking(0, 64, 64, 64, 4, 3, descriptors=1), 192)
    chosen = default_device_blocking(TARGET, "bf16", 12, 192)
    assert all(192 % each.depth == 0 for each in chosen)


def test_boxes_have_plain_steps() -> None:
    builder = KernelBuilder("crooked", ["T/16"], [buffer_type([None, 64], "bf16")])
    start = builder.constant(0)
    builder.load_block(builder.buffers[0], start, start, (16, 32), box=True, row_step=2, lane_step=1)
    with pytest.raises(VerifyException, match="a box has the steps"):
        builder.finish()
