"""Schedules for devices: how products are blocked, how weights lie, what a program says; and errors before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from device_machine import plan_for
from programs import tiny_model

from tessera_compiler.device_driver import DeviceOptions, compile_for_devices, device_passes
from tessera_compiler.errors import UnsupportedModel
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.types import type_of
from tessera_compiler.module import WeightRecipe, merge_recipes
from tessera_compiler.schedule import device_tuned_cache
from tessera_compiler.schedule.device_blocking import (
    TURNED,
    WARP_GROUP_TARGETS,
    DeviceBlocking,
    broken_rule,
    default_device_blocking,
    device_schedule_key,
)
from tessera_compiler.schedule.device_tuned_cache import load_device_tuned
from tessera_compiler.schedule.dialect import GroupOp, MatmulOp, WeightOp, element_name
from tessera_compiler.schedule.linear_maps import tuned_for
from tessera_compiler.schedule.passes.plan_device_tiles import device_blockings_of
from tessera_compiler.schedule.tuned_cache import InvalidTuning, shipped_cache
from tessera_compiler.targets.program import ProgramLimits
from tessera_compiler.targets.triton import toolchain
from tessera_compiler.targets.triton.architectures import ARCHITECTURES, UnknownTarget, architecture_of
from tessera_compiler.targets.triton.drawing.plan import plan_drawing
from tessera_compiler.targets.triton.emission import emit_source
from tessera_compiler.targets.triton.functions import HALVED_FLOAT8
from tessera_compiler.targets.triton.target import compile_triton
from tessera_compiler.targets.triton.toolchain import TritonMissing
from tessera_compiler.tile.lowering.device_lower import lower_for_devices
from tessera_runtime.executor.gpu.arena_check import check_arena
from tessera_runtime.executor.gpu.program import read_program

LIMITS = ProgramLimits(128, 160, 160)
KEY = "cuda-sm90/matmul/bf16/128x64"
EIGHT_BITS = "cuda-sm90/matmul/f8_e4m3/128x64"


@pytest.mark.parametrize("target", ARCHITECTURES)
@pytest.mark.parametrize("form", ["f32", "bf16", "u8", "bf16xu8", "bf16xu4"])
@pytest.mark.parametrize(("panels", "depth"), [(36, 576), (96, 576), (5, 22), (3072, 1536), (256, 4096)])
@pytest.mark.parametrize(("parts", "splits"), [(1, 1), (2, 1), (1, 4), (2, 4)])
def test_default_blockings_fit(target: str, form: str, panels: int, depth: int, parts: int, splits: int) -> None:
    choices = default_device_blocking(target, form, panels, depth, parts=parts, splits=splits)
    assert choices[-1].max_tokens == 0 and all(each.max_tokens for each in choices[:-1])
    size = {"f32": (4, 4), "bf16": (2, 2), "u8": (1, 1), "bf16xu8": (2, 1), "bf16xu4": (2, 0.5)}[form]
    for each in choices:
        assert panels * 16 % each.outputs == 0
        assert each.rows >= 16 and each.outputs >= 16 and each.depth >= 32
        taken = (each.rows * size[0] + each.outputs * parts * size[1]) * each.depth * each.stages
        assert taken <= architecture_of(target).shared_bytes
    assert broken_rule(target, form, choices) is None


@pytest.mark.parametrize("form", TURNED)
@pytest.mark.parametrize("target", WARP_GROUP_TARGETS)
def test_weights_made_in_registers_are_the_operand_that_may_stay_there(target: str, form: str) -> None:
    for panels in (4, 36, 256):
        for parts, splits in ((1, 1), (2, 1), (2, 8)):
            choices = default_device_blocking(target, form, panels, 4096, parts=parts, splits=splits)
            assert min(each.outputs for each in choices) >= 64


@pytest.mark.parametrize(
    ("target", "form", "blockings", "rule"),
    [
        ("cuda-sm100", "bf16", [(16, 16, 16, 128, 4, 4), (0, 64, 64, 64, 4, 3)], "at least 64 rows, or they add in an"),
        ("cuda-sm100", "bf16", [(0, 64, 64, 64, 2, 3)], "warps come in groups of 4"),
        ("cuda-sm90", "bf16", [(16, 16, 64, 128, 4, 4, 1), (64, 64, 16, 128, 2, 4), (0, 128, 64, 64, 8, 3)], None),
        ("cuda-sm90", "f16", [(16, 16, 16, 128, 1, 4), (0, 64, 64, 64, 4, 3)], None),
        ("cuda-sm100", "bf16", [(16, 16, 64, 128, 4, 4, 1), (0, 64, 64, 64, 4, 3)], "not known that turned products"),
        ("hip-gfx942", "f16", [(0, 64, 64, 64, 4, 3, 1)], "not known that turned products of f16 on hip-gfx942"),
        ("cuda-sm90", "f8_e4m3", [(0, 64, 64, 128, 4, 3, 1)], "not known that turned products of f8_e4m3"),
        ("cuda-sm90", "f8_e4m3", [(0, 16, 64, 128, 4, 3)], "blocks have at least 64 rows"),
        ("cuda-sm90", "bf16", [(0, 64, 64, 16, 4, 3)], "a round of bf16 takes at least 32 columns; found 16"),
        (
            *("cuda-sm90", "bf16xu4", [(16, 16, 32, 128, 4, 4), (0, 64, 64, 128, 4, 3)]),
            "blocks of 64 outputs and more add in another",
        ),
        ("cuda-sm90", "bf16xu4", [(0, 64, 64, 64, 4, 3)], "a round of bf16xu4 takes at least 128 columns"),
        ("cuda-sm90", "f8_e4m3", [(0, 64, 64, 64, 4, 3)], "eight-bit floats are added 128 columns at a time; found 64"),
        ("cuda-sm90", "u8", [(16, 16, 16, 64, 4, 4), (0, 64, 64, 64, 2, 3)], None),
        ("cuda-sm90", "f32", [(0, 16, 16, 32, 2, 3)], None),
        ("cuda-sm90", "f16", [(16, 16, 16, 128, 1, 4), (0, 64, 64, 64, 4, 3, 0, 1)], None),
        ("cuda-sm90", "u8", [(0, 64, 64, 64, 4, 3, 0, 1)], "operands of u8 are not read by descriptors"),
    ],
)
def test_rules_that_keep_results_the_same(
    target: str, form: str, blockings: list[tuple[int, ...]], rule: str | None
) -> None:
    found = broken_rule(target, form, [DeviceBlocking(*each) for each in blockings])
    assert (found is None) if rule is None else (found is not None and rule in found)


@pytest.mark.parametrize("form", ["bf16", "f16"])
@pytest.mark.parametrize(("panels", "depth", "parts"), [(9496, 1024, 1), (384, 4096, 1), (64, 3072, 1), (192, 1024, 2)])
def test_products_are_blocked_as_measured(form: str, panels: int, depth: int, parts: int) -> None:
    """Few rows of large matrices are turned; of small ones there are as many instances as can be."""
    few, more, some, many = default_device_blocking("cuda-sm90", form, panels, depth, parts=parts)
    assert (few.max_tokens, more.max_tokens) == (16, 64)
    assert [each.descriptors for each in (few, more, some, many)] == [0, 0, 1, 1]
    largest = (256, 128, 8) if depth == 4096 else (128, 256, 8) if parts == 2 else (128, 128, 4)
    assert (many.rows, many.outputs * parts, many.warps) == largest
    wide = panels >= 384
    assert (few.turned, more.turned) == ((1, 1) if wide else (0, 0))
    for each in (few, more):
        assert panels * 16 // each.outputs >= (88 if panels > 64 else 64)
        assert each.outputs >= 64 if each.turned else each.outputs <= 32
    elsewhere = default_device_blocking("cuda-sm100", form, panels, depth, parts=parts)
    assert not any(each.turned or each.descriptors for each in elsewhere)


def test_sums_of_parts_stand_beside_each_other() -> None:
    """A product in parts has more warps for the same block."""
    *_, many = default_device_blocking("cuda-sm90", "bf16", 64, 2048, splits=2)
    assert (many.rows, many.outputs, many.warps) == (128, 128, 8)


def test_blocks_of_quantized_outputs_are_whole_groups() -> None:
    assert {each.outputs for each in default_device_blocking("cuda-sm90", "u8", 96, 576, together=4)} == {64}


def test_weights_lie_as_matrices() -> None:
    plan = plan_for("llama", "int8", ("cuda-sm90",))
    weights = [op for op in plan.module.walk() if isinstance(op, WeightOp)]
    assert {op.layout.data for op in weights} == {"matrix_signed", "rows"}
    four = [op for op in plan_for("llama", "int4", ("cuda-sm90",)).module.walk() if isinstance(op, WeightOp)]
    assert {op.layout.data for op in four} == {"matrix_signed", "matrix4", "columns4", "rows"}
    names = {op.weight_name.data for op in weights}
    for op in weights:
        assert op.weight_name.data.endswith(f".{op.layout.data}") == (op.layout.data != "rows")
        assert op.scales_of is None or op.scales_of.data in names


def test_tensors_that_targets_share_are_stored_once() -> None:
    one = WeightRecipe("a", (4,), "f32", "rows", ("a",))
    other = WeightRecipe("b.matrix", (4, 4), "bf16", "matrix", ("b",))
    assert merge_recipes((one,), (one, other)) == (one, other)
    with pytest.raises(ValueError, match="two tensors are named 'a'"):
        merge_recipes((one,), (WeightRecipe("a", (5,), "f32", "rows", ("a",)),))


def test_a_tuned_blocking_is_used_and_marked() -> None:
    model = tiny_model("qwen3")
    plain = plan_for("qwen3", "bf16", ("cuda-sm90",))
    group = next(group for group in plain.groups if group.kind.data == "linear")
    assert tuned_for(group) == ()
    chosen = (DeviceBlocking(0, 64, 16, 32, 4, 2),)
    key = device_schedule_key("cuda-sm90", "bf16", 128, 64)
    module = model.graph()
    targets = ("cuda-sm80", "cuda-sm90")
    for each in device_passes(DeviceOptions(targets, "bf16", LIMITS, tuned={key: chosen})):
        each.apply(module)
    groups = [op for op in entry_function(module).body.block.ops if isinstance(op, GroupOp)]
    tuned = [each for each in groups if tuned_for(each)]
    assert tuned and {device_blockings_of(each, "cuda-sm90") for each in tuned} == {chosen}
    assert {tuned_for(each) for each in tuned} == {("cuda-sm90",)}
    lowered = lower_for_devices(groups, targets)
    marked = {group.tuned for group in lowered.groups.values()}
    assert marked == {None, (), ("cuda-sm90",)}


@pytest.mark.parametrize(("name", "dtype"), [("llama", "bf16"), ("gemma2", "int8"), ("qwen3", "int4")])
def test_programs_are_sound(name: str, dtype: str) -> None:
    """The runtime's own checks, on all of a program but its code."""
    plan = plan_for(name, dtype, ("cuda-sm90",))
    program: dict[str, Any] = {
        **plan.program,
        "driver": 0,
        "warp_size": 32,
        "modules": [{"file": "0" * 32 + ".cubin", "kind": "cubin", "sha256": "0" * 64, "bytes": 1, "fallback": None}],
        "kernels": {},
    }
    kernels = plan.lowered.kernels()
    signatures = {symbol: emit_source(kernel).signature for symbol, kernel in kernels.items()}
    drawing = plan_drawing(plan.program["buffers"], plan.program["output"], LIMITS.max_tokens)
    jobs = drawing.jobs(architecture_of("cuda-sm90"))
    signatures |= {symbol: job.source.signature for symbol, job in jobs.items()}
    for group in program["groups"].values():
        for variant in group["variants"]:
            if variant["kernel"]:
                symbol = variant["kernel"] if group["kind"] == "drawing" else variant["kernel"].rpartition("_w")[0]
                kinds = [kind for _, kind in signatures[symbol]]
                program["kernels"][variant["kernel"]] = {
                    "module": 0,
                    "entry": symbol,
                    "warps": 4,
                    "shared_bytes": 0,
                    "parameters": ["pointer" if kind.startswith("*") else kind for kind in kinds],
                    "tensor_maps": [],
                    "scratch_pointers": 2,
                    "scratch_bytes": 0,
                    "scratch_alignment": 1,
                    "cluster": 1,
                    "dependent": False,
                }
    read = read_program(program)
    assert "buffers" in check_arena(read)
    assert read.cache.tile_tokens > 1 and read.cache.chunk_tokens % read.cache.block_tokens == 0


def test_an_unknown_device_is_named_before_any_work() -> None:
    model = tiny_model("qwen3")
    with pytest.raises(UnknownTarget, match=r"found 'cuda-sm75'"):
        compile_for_devices(model.graph(), DeviceOptions(("cuda-sm75",), "bf16", LIMITS))


def test_a_dtype_without_kernels_is_named() -> None:
    with pytest.raises(UnsupportedModel, match="found 'int2'. Pack with --dtype int8"):
        compile_for_devices(tiny_model("qwen3").graph(), DeviceOptions(("cuda-sm90",), "int2", LIMITS))


def test_eight_bit_floats_need_matrix_units_that_take_them() -> None:
    options = DeviceOptions(("cuda-sm90", "cuda-sm80"), "fp8", LIMITS)
    with pytest.raises(UnsupportedModel, match=r"The matrix units of cuda-sm80 make no products.*int8 or bf16"):
        compile_for_devices(tiny_model("qwen3").graph(), options)


@pytest.mark.parametrize(("dtype", "of_head"), [("int4", ("bf16", "u8")), ("fp8", ("bf16", "bf16"))])
def test_the_head_is_wider(dtype: str, of_head: tuple[str, str]) -> None:
    module = plan_for("qwen3", dtype, ("cuda-sm90",)).module
    *others, head = (op for op in module.walk() if isinstance(op, MatmulOp))
    found = [tuple(element_name(type_of(each)) for each in op.arguments[:2]) for op in (*others, head)]
    assert found[-1] == of_head
    assert set(found[:-1]) == {{"int4": ("bf16", "u4"), "fp8": ("f8_e4m3", "f8_e4m3")}[dtype]}


def test_eight_bit_floats_are_what_the_device_calls_so() -> None:
    kernels = plan_for("llama", "fp8", ("cuda-sm90",)).lowered.kernels().values()
    usual = "".join(emit_source(each).text for each in kernels)
    halved = "".join(emit_source(each, float8=HALVED_FLOAT8).text for each in kernels)
    assert "tl.float8e4nv" in usual and "tl.float8e4b8" not in usual and "* 4.0" not in usual
    assert "tl.float8e4b8" in halved and "tl.float8e4nv" not in halved and "* 4.0" in halved and "* 0.5" in halved


def write_tuning(folder: Path, entries: Any) -> Path:
    (folder / "cuda-sm90").mkdir()
    (folder / "cuda-sm90" / "linear.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def test_measured_schedules_are_read(tmp_path: Path) -> None:
    blockings = (
        DeviceBlocking(16, 16, 64, 256, 4, 4, turned=1),
        DeviceBlocking(256, 128, 64, 64, 4, 3, descriptors=1),
        DeviceBlocking(0, 128, 64, 64, 8, 3),
    )
    entry: list[list[int | None]] = [
        [16, 16, 64, 256, 4, 4, 1],
        [256, 128, 64, 64, 4, 3, 0, 1],
        [None, 128, 64, 64, 8, 3],
    ]
    cache = write_tuning(tmp_path, {KEY: entry})
    assert load_device_tuned(cache, ("cuda-sm90", "hip-gfx942")) == {KEY: blockings}
    assert [each.listed() for each in blockings] == [[*entry[0], 0], entry[1], [*entry[2], 0, 0]]


def test_what_was_measured_of_other_kernels_counts_as_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blockings = [[None, 128, 64, 64, 8, 3]]
    would_be_wrong = {EIGHT_BITS: {"kernels": 2, "blockings": [[None, 16, 32, 128, 4, 4]]}}
    cache = write_tuning(tmp_path, {KEY: {"kernels": 1, "blockings": blockings}, **would_be_wrong})
    assert load_device_tuned(cache, ("cuda-sm90",)).keys() == {KEY}
    assert load_device_tuned(shipped_cache(), ("cuda-sm90",))
    monkeypatch.setattr(device_tuned_cache, "KERNELS", 3)
    assert load_device_tuned(cache, ("cuda-sm90",)) == load_device_tuned(shipped_cache(), ("cuda-sm90",)) == {}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({KEY: [[16, 16, 32, 256, 4, 4]]}, "the last blocking must be for any number"),
        ({KEY: [[None, 16, 48, 64, 4, 4]]}, "extents are powers of two"),
        ({KEY: [[None, 16, 32, 64, 0, 4]]}, "warps and stages are from 1 to 32"),
        ({KEY: [[None, 16]]}, "should map keys to lists"),
        ({KEY: {"kernels": 0, "blockings": []}}, "'kernels' is a number from 1 on; found 0"),
        ({KEY: [[None, 64, 32, 64, 4, 4, 2]]}, "what follows the stages is 0 or 1"),
        ({EIGHT_BITS: [[None, 16, 32, 128, 4, 4]]}, "would change results: blocks have at least 64 rows"),
        ({"cuda-sm80/matmul/bf16/64x64": [[None, 16, 32, 64, 4, 4]]}, "a key reads cuda-sm90/matmul/"),
        ({"key": [[None, 64, 32, 64, 4, 4]]}, "a key reads cuda-sm90/matmul/"),
        ([1], "should map keys to lists"),
    ],
)
def test_files_that_are_no_schedules_are_named(tmp_path: Path, entries: Any, message: str) -> None:
    with pytest.raises(InvalidTuning, match=message):
        load_device_tuned(write_tuning(tmp_path, entries), ("cuda-sm90",))


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    key = device_schedule_key("cuda-sm90", "bf16", 128, 64)
    tuned = {key: (DeviceBlocking(0, 64, 256, 32, 4, 2),)}
    module = tiny_model("qwen3").graph()
    with pytest.raises(InvalidTuning, match="blocks of 256 outputs, which do not fit 128"):
        for each in device_passes(DeviceOptions(("cuda-sm90",), "bf16", LIMITS, tuned=tuned)):
            each.apply(module)


def test_without_triton_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolchain, "triton_is_installed", lambda: False)
    plan = plan_for("qwen3", "bf16", ("cuda-sm90",))
    with pytest.raises(TritonMissing, match=r"Install tessera\[triton\]"):
        compile_triton(plan.description, plan.recipes, plan.lowered, ("cuda-sm90",))
