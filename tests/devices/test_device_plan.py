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
from tessera_compiler.module import WeightRecipe, merge_recipes
from tessera_compiler.schedule.device_tuned_cache import load_device_tuned
from tessera_compiler.schedule.dialect import GroupOp, WeightOp
from tessera_compiler.schedule.passes.plan_device_tiles import (
    DeviceBlocking,
    default_device_blocking,
    device_blockings_of,
    device_schedule_key,
)
from tessera_compiler.schedule.tuned_cache import InvalidTuning
from tessera_compiler.targets.program import ProgramLimits
from tessera_compiler.targets.triton import toolchain
from tessera_compiler.targets.triton.architectures import ARCHITECTURES, UnknownTarget, architecture_of
from tessera_compiler.targets.triton.emission import emit_source
from tessera_compiler.targets.triton.target import compile_triton
from tessera_compiler.targets.triton.toolchain import TritonMissing
from tessera_runtime.executor.gpu.arena_check import check_arena
from tessera_runtime.executor.gpu.program import read_program

LIMITS = ProgramLimits(128, 160, 160)


@pytest.mark.parametrize("target", ARCHITECTURES)
@pytest.mark.parametrize("element", ["f32", "bf16", "u8"])
@pytest.mark.parametrize(("panels", "depth"), [(36, 576), (96, 576), (5, 22), (3072, 1536), (256, 4096)])
def test_default_blockings_fit(target: str, element: str, panels: int, depth: int) -> None:
    choices = default_device_blocking(target, element, panels, depth)
    assert choices[-1].max_tokens == 0 and all(each.max_tokens for each in choices[:-1])
    size = {"f32": 4, "bf16": 2, "u8": 1}[element]
    for each in choices:
        assert panels * 16 % each.outputs == 0
        assert each.rows >= 16 and each.outputs >= 16 and each.depth >= 32
        assert (each.rows + each.outputs) * each.depth * size * each.stages <= architecture_of(target).shared_bytes


def test_blocks_of_quantized_outputs_are_whole_groups() -> None:
    assert {each.outputs for each in default_device_blocking("cuda-sm90", "u8", 96, 576, together=4)} == {64}


def test_weights_lie_as_matrices() -> None:
    plan = plan_for("llama", "int8", ("cuda-sm90",))
    weights = [op for op in plan.module.walk() if isinstance(op, WeightOp)]
    assert {op.layout.data for op in weights} == {"matrix", "rows"}
    names = {op.weight_name.data for op in weights}
    for op in weights:
        assert op.weight_name.data.endswith(".matrix") == (op.layout.data == "matrix")
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
    assert group.tuned is None
    chosen = (DeviceBlocking(0, 32, 16, 32, 2, 2),)
    key = device_schedule_key("cuda-sm90", "bf16", 128, 64)
    module = model.graph()
    for each in device_passes(DeviceOptions(("cuda-sm90",), "bf16", LIMITS, tuned={key: chosen})):
        each.apply(module)
    groups = [op for op in entry_function(module).body.block.ops if isinstance(op, GroupOp)]
    tuned = [device_blockings_of(each, "cuda-sm90") for each in groups if each.tuned is not None]
    assert tuned and set(tuned) == {chosen}


@pytest.mark.parametrize(("name", "dtype"), [("llama", "bf16"), ("gemma2", "int8")])
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
    for group in program["groups"].values():
        for variant in group["variants"]:
            if variant["kernel"]:
                symbol = variant["kernel"].rpartition("_w")[0]
                kinds = [kind for _, kind in emit_source(kernels[symbol]).signature]
                program["kernels"][variant["kernel"]] = {
                    "module": 0,
                    "entry": symbol,
                    "warps": 4,
                    "shared_bytes": 0,
                    "parameters": ["pointer" if kind.startswith("*") else kind for kind in kinds],
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
    with pytest.raises(UnsupportedModel, match="found 'int4'. Pack with --dtype int8"):
        compile_for_devices(tiny_model("qwen3").graph(), DeviceOptions(("cuda-sm90",), "int4", LIMITS))


def write_tuning(folder: Path, entries: Any) -> Path:
    (folder / "cuda-sm90").mkdir()
    (folder / "cuda-sm90" / "linear.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def test_measured_schedules_are_read(tmp_path: Path) -> None:
    cache = write_tuning(tmp_path, {"key": [[16, 16, 32, 256, 4, 4], [None, 128, 64, 64, 8, 3]]})
    assert load_device_tuned(cache, ("cuda-sm90", "hip-gfx942")) == {
        "key": (DeviceBlocking(16, 16, 32, 256, 4, 4), DeviceBlocking(0, 128, 64, 64, 8, 3))
    }


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"key": [[16, 16, 32, 256, 4, 4]]}, "the last blocking must be for any number"),
        ({"key": [[None, 16, 48, 64, 4, 4]]}, "extents are powers of two"),
        ({"key": [[None, 16, 32, 64, 0, 4]]}, "warps and stages are from 1 to 32"),
        ({"key": [[None, 16]]}, "should map keys to lists"),
        ([1], "should map keys to lists"),
    ],
)
def test_files_that_are_no_schedules_are_named(tmp_path: Path, entries: Any, message: str) -> None:
    with pytest.raises(InvalidTuning, match=message):
        load_device_tuned(write_tuning(tmp_path, entries), ("cuda-sm90",))


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    key = device_schedule_key("cuda-sm90", "bf16", 128, 64)
    tuned = {key: (DeviceBlocking(0, 32, 256, 32, 2, 2),)}
    module = tiny_model("qwen3").graph()
    with pytest.raises(InvalidTuning, match="blocks of 256 outputs, which do not fit 128"):
        for each in device_passes(DeviceOptions(("cuda-sm90",), "bf16", LIMITS, tuned=tuned)):
            each.apply(module)


def test_without_triton_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolchain, "triton_is_installed", lambda: False)
    plan = plan_for("qwen3", "bf16", ("cuda-sm90",))
    with pytest.raises(TritonMissing, match=r"Install tessera\[triton\]"):
        compile_triton(plan.description, plan.recipes, plan.lowered, ("cuda-sm90",))
