"""Compiles simplified Graph IR for GPUs: its own schedule, the same Tile IR, one target for each device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.errors import UnsupportedModel
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.module import CompiledTarget, WeightRecipe
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.device_blocking import DeviceBlocking
from tessera_compiler.schedule.linear_maps import tuned_for
from tessera_compiler.schedule.passes.choose_numerics import ChooseNumerics
from tessera_compiler.schedule.passes.flatten_concats import FlattenConcats
from tessera_compiler.schedule.passes.form_groups import FormGroups
from tessera_compiler.schedule.passes.join_rounding import JoinRounding
from tessera_compiler.schedule.passes.mark_layers import MarkLayers
from tessera_compiler.schedule.passes.plan_device_tiles import (
    LayOutForDevices,
    PlanDeviceTiles,
    device_blockings_of,
)
from tessera_compiler.schedule.passes.plan_memory import PlanMemory
from tessera_compiler.schedule.passes.plan_phases import PlanPhases
from tessera_compiler.targets.program import ProgramLimits, describe_program
from tessera_compiler.targets.triton.architectures import architecture_of
from tessera_compiler.targets.triton.target import compile_triton
from tessera_compiler.tile.lowering.device_lower import DeviceProgram, lower_for_devices

DEVICE_DTYPES = ("fp32", "bf16", "fp16", "int8", "fp8", "int4")


class Pass(Protocol):
    def apply(self, module: ModuleOp) -> None: ...


@dataclass(frozen=True)
class DeviceOptions:
    targets: tuple[str, ...]
    """Names of `architectures.ARCHITECTURES`."""
    dtype: str
    limits: ProgramLimits
    layer_paths: tuple[str, ...] = ()
    tuned: Mapping[str, tuple[DeviceBlocking, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class CompiledDevices:
    targets: tuple[CompiledTarget, ...]
    weights: tuple[WeightRecipe, ...]
    schedule_ir: ModuleOp
    tile_ir: ModuleOp
    schedules: dict[str, dict[str, Any]]
    """By target, what was chosen for each kernel that leaves a choice."""


Observer = Callable[[str, ModuleOp], None]


def device_passes(options: DeviceOptions) -> tuple[Pass, ...]:
    """What turns simplified Graph IR into a program planned for devices, in order."""
    return (
        MarkLayers(options.layer_paths),
        ChooseNumerics(options.dtype, for_devices=True),
        LayOutForDevices(),
        FlattenConcats(),
        FormGroups(),
        JoinRounding(),
        PlanDeviceTiles(options.targets, options.tuned),
        PlanPhases(),
        PlanMemory(),
    )


def compile_for_devices(module: ModuleOp, options: DeviceOptions, observe: Observer | None = None) -> CompiledDevices:
    """Compiles for all targets at once; `module` is changed in place.

    Raises `UnknownTarget`, or `UnsupportedModel` for a dtype that devices do not have, before any work.
    """
    for target in options.targets:
        architecture_of(target)
    if options.dtype not in DEVICE_DTYPES:
        raise UnsupportedModel(
            f"GPUs compute with {', '.join(DEVICE_DTYPES)}; found {options.dtype!r}. Pack with --dtype int8, or leave "
            "out --target cuda-… and hip-…."
        )
    without = [target for target in options.targets if architecture_of(target).float8 is None]
    if options.dtype == "fp8" and without:
        raise UnsupportedModel(
            f"The matrix units of {', '.join(without)} make no products of eight-bit floats. Pack for it with --dtype "
            "int8 or bf16, or leave the target out."
        )
    for each in device_passes(options):
        each.apply(module)
        module.verify()
        if observe is not None:
            observe(f"Device{type(each).__name__}", module)
    groups = [op for op in entry_function(module).body.block.ops if isinstance(op, schedule.GroupOp)]
    lowered = lower_for_devices(groups, options.targets)
    kernels = lowered.kernels()
    tile_ir = ModuleOp([kernels[symbol].clone() for symbol in sorted(kernels)])
    shared = describe_program(module, lowered, options.limits)
    targets = compile_triton(shared.description, shared.weights, lowered, options.targets)
    return CompiledDevices(targets, shared.weights, module, tile_ir, _schedules(groups, lowered, options.targets))


def _schedules(
    groups: list[schedule.GroupOp], lowered: DeviceProgram, targets: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    chosen: dict[str, dict[str, Any]] = {target: {} for target in targets}
    for group, name in zip(groups, lowered.names, strict=True):
        if group.kind.data != "linear":
            continue
        for target in targets:
            chosen[target][name] = {
                "tuned": target in tuned_for(group),
                "blocking": [each.listed() for each in device_blockings_of(group, target)],
            }
    return chosen
