"""The GPU targets: code objects of all kernels, and the program that says how to run them.

docs/spec/program-gpu.md is the page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessera_compiler.module import CompiledTarget, WeightRecipe
from tessera_compiler.schedule.physical import IN_WORDS, weight_shape
from tessera_compiler.targets.triton.architectures import Architecture, architecture_of
from tessera_compiler.targets.triton.boxes import Tensor
from tessera_compiler.targets.triton.drawing.plan import DrawingPlan, plan_drawing, with_drawing_buffers
from tessera_compiler.targets.triton.emission import emit_source
from tessera_compiler.targets.triton.functions import FLOAT8
from tessera_compiler.targets.triton.toolchain import Box, CompiledKernel, Job, compile_all
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.lowering.device_attention import PARTIALS
from tessera_compiler.tile.lowering.device_context import (
    BLOCK_TOKENS,
    PARTIAL_ROWS,
    DeviceCacheLayer,
)
from tessera_compiler.tile.lowering.device_linear import SPLIT_SUMS
from tessera_compiler.tile.lowering.device_lower import DeviceGroup, DeviceProgram, DeviceVariant
from tessera_compiler.tile.types import BYTES

GPU_ABI = 2
GRAPH_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Sizes of steps of decoding that are worth a recorded graph."""
ARENA_ALIGNMENT = 256
SCRATCH_POINTERS = 2
"""That Triton's kernels take after their own parameters."""


@dataclass(frozen=True)
class _Kernel:
    """A kernel of one target: its Tile IR's symbol with the options that it is compiled with."""

    name: str
    tuned: bool | None
    job: Job
    lowered: tile.KernelOp | None
    """None: it was written by hand."""


def compile_triton(
    description: Mapping[str, Any], recipes: tuple[WeightRecipe, ...], lowered: DeviceProgram, targets: tuple[str, ...]
) -> tuple[CompiledTarget, ...]:
    """One target for each name, all kernels compiled in one go."""
    drawing = _drawing(description, lowered)
    kernels = {
        target: _kernels(lowered, architecture_of(target)) | _kernels_that_draw(drawing, architecture_of(target))
        for target in targets
    }
    jobs = [kernel.job for target in targets for kernel in kernels[target].values()]
    compiled = iter(compile_all(jobs))
    return tuple(
        _target(
            description,
            recipes,
            lowered,
            architecture_of(target),
            {name: (kernel, next(compiled)) for name, kernel in kernels[target].items()},
        )
        for target in targets
    )


def kernel_jobs(lowered: DeviceProgram, target: str) -> dict[str, Job]:
    """What has to be compiled of a program that does not draw, by the name of the kernel."""
    return {name: kernel.job for name, kernel in _kernels(lowered, architecture_of(target)).items()}


def assembled(
    description: Mapping[str, Any],
    recipes: tuple[WeightRecipe, ...],
    lowered: DeviceProgram,
    target: str,
    compiled: Mapping[str, CompiledKernel],
) -> CompiledTarget:
    """The target of such a program, from its compiled kernels."""
    architecture = architecture_of(target)
    kernels = {name: (kernel, compiled[name]) for name, kernel in _kernels(lowered, architecture).items()}
    return _target(description, recipes, lowered, architecture, kernels, draws=False)


def _kernels(lowered: DeviceProgram, architecture: Architecture) -> dict[str, _Kernel]:
    kernels: dict[str, _Kernel] = {}
    for group in lowered.groups.values():
        for stage in group.stages:
            for variant in stage.variants[architecture.target]:
                if variant.kernel is not None:
                    source = emit_source(
                        variant.kernel,
                        dependent=architecture.dependent,
                        float8=architecture.float8 or FLOAT8,
                        descriptors=architecture.descriptors,
                    )
                    name = _name(variant)
                    job = Job(source, architecture, variant.warps, variant.stages)
                    kernels[name] = _Kernel(name, _is_tuned(group, architecture.target), job, variant.kernel)
    return kernels


def _is_tuned(group: DeviceGroup, target: str) -> bool | None:
    return None if group.tuned is None else target in group.tuned


def _kernels_that_draw(drawing: DrawingPlan, architecture: Architecture) -> dict[str, _Kernel]:
    jobs = drawing.jobs(architecture)
    return {stage.name: _Kernel(stage.name, None, jobs[stage.name], stage.kernel) for stage in drawing.stages}


def _name(variant: DeviceVariant) -> str:
    assert variant.kernel is not None
    return f"{variant.kernel.symbol}_w{variant.warps}s{variant.stages}"


class _Modules:
    """Code objects by content."""

    def __init__(self) -> None:
        self.listed: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self._index: dict[str, int] = {}

    def add(self, code: bytes, kind: str, fallback: int | None = None) -> int:
        digest = hashlib.sha256(code).hexdigest()
        file = f"{digest[:32]}.{kind}"
        if file not in self._index:
            self._index[file] = len(self.listed)
            self.files[file] = code
            self.listed.append({"file": file, "kind": kind, "sha256": digest, "bytes": len(code), "fallback": fallback})
        return self._index[file]


def _target(
    description: Mapping[str, Any],
    recipes: tuple[WeightRecipe, ...],
    lowered: DeviceProgram,
    architecture: Architecture,
    kernels: Mapping[str, tuple[_Kernel, CompiledKernel]],
    *,
    draws: bool = True,
) -> CompiledTarget:
    modules = _Modules()
    described = {}
    for name, (kernel, code) in sorted(kernels.items()):
        fallback = modules.add(code.ptx, "ptx") if architecture.portable_ptx else None
        module = modules.add(code.code, architecture.code_kind, fallback)
        described[name] = _describe_kernel(kernel, code, module, architecture)
    program = describe_launches(description, recipes, lowered, architecture.target, draws=draws)
    program |= {
        "driver": architecture.driver,
        "warp_size": architecture.warp_size,
        "modules": modules.listed,
        "kernels": described,
    }
    return CompiledTarget(architecture.target, program, modules.files)


def describe_launches(
    description: Mapping[str, Any],
    recipes: tuple[WeightRecipe, ...],
    lowered: DeviceProgram,
    target: str,
    *,
    draws: bool = True,
) -> dict[str, Any]:
    """All of a program but its code: what is launched, on what, in what order."""
    buffers, shared, extent = _buffers(description, lowered)
    arena = {**description["arena"], "bytes": extent}
    drawing = _drawing(description, lowered) if draws else None
    if drawing is not None:
        buffers, arena = with_drawing_buffers(drawing, buffers, arena)
    return {
        **description,
        "abi": GPU_ABI,
        "target": target,
        "weights": _weights(description, recipes),
        "buffers": buffers,
        "arena": arena,
        "cache": _cache(description, lowered, target),
        "groups": {
            stage.name: {
                "kind": group.kind,
                "tuned": _is_tuned(group, target),
                "source": group.source,
                "variants": [_describe_variant(variant) for variant in stage.variants[target]],
            }
            for group in lowered.groups.values()
            for stage in group.stages
        }
        | (drawing.groups() if drawing is not None else {}),
        "launches": _launches(description, lowered, shared),
        "layers": _layers(description, lowered),
        "drawing": drawing.launches() if drawing is not None else None,
        "seats": drawing.seats() if drawing is not None else [],
        "graph_tokens": list(GRAPH_TOKENS),
    }


def _describe_kernel(kernel: _Kernel, code: CompiledKernel, module: int, architecture: Architecture) -> dict[str, Any]:
    return {
        "module": module,
        "entry": code.entry,
        "warps": code.warps,
        "shared_bytes": code.shared_bytes,
        "parameters": [_parameter(kind) for _, kind in kernel.job.source.signature],
        "tensor_maps": [_tensor_map(*each) for each in zip(kernel.job.source.tensors, code.boxes, strict=True)],
        "scratch_pointers": SCRATCH_POINTERS,
        "scratch_bytes": code.scratch_bytes,
        "scratch_alignment": code.scratch_alignment,
        "cluster": 1,
        "dependent": architecture.dependent,
        "registers": code.registers,
        "spilled_bytes": code.spilled_bytes,
        "code_bytes": code.code_bytes,
        "tuned": kernel.tuned,
    }


def _parameter(kind: str) -> str:
    if kind.startswith("tensordesc"):
        return "tensor_map"
    return "pointer" if kind.startswith("*") else kind


def _tensor_map(tensor: Tensor, box: Box) -> dict[str, Any]:
    _, columns = tensor.shape
    return {
        "dtype": tensor.element,
        "shape": list(tensor.shape),
        "strides": [columns * BYTES[tensor.element]],
        "box": list(box.shape),
        "swizzle": box.swizzle,
    }


def _describe_variant(variant: DeviceVariant) -> dict[str, Any]:
    if variant.kernel is None:
        return {"limits": dict(variant.limits), "kernel": None, "grid": [1]}
    return {"limits": dict(variant.limits), "kernel": _name(variant), "grid": variant.kernel.grid_entries}


def _weights(description: Mapping[str, Any], recipes: tuple[WeightRecipe, ...]) -> list[dict[str, Any]]:
    weights = []
    for entry, recipe in zip(description["weights"], recipes, strict=True):
        elements = 1
        for extent in weight_shape(recipe.shape, recipe.layout):
            elements *= extent
        size = BYTES["i32" if recipe.layout in IN_WORDS else recipe.dtype]
        weights.append({**entry, "bytes": elements * size})
    return weights


def _buffers(
    description: Mapping[str, Any], lowered: DeviceProgram
) -> tuple[list[dict[str, Any]], dict[str, int], int]:
    """The buffers with those that only stages of a group share, the index of each of these by its name, and the bytes
    of the arena that do not grow with the step."""
    shared = {
        PARTIALS: (PARTIAL_ROWS, lowered.partial_width),
        SPLIT_SUMS: (lowered.split_rows, lowered.split_width),
    }
    added: list[dict[str, Any]] = []
    size = 0
    for name, (rows, width) in shared.items():
        if width:
            row_bytes = -(-width * 4 // 64) * 64
            added.append(
                {
                    "name": name,
                    "dtype": "f32",
                    "shape": [width],
                    "row_bytes": row_bytes,
                    "rows": rows,
                    "offset": {"tokens": 0, "logit_rows": 0, "bytes": size},
                }
            )
            size += -(-rows * row_bytes // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
    buffers = [
        {**buffer, "offset": {**buffer["offset"], "bytes": buffer["offset"]["bytes"] + size}}
        for buffer in description["buffers"]
    ]
    places = {entry["name"]: len(buffers) + number for number, entry in enumerate(added)}
    return [*buffers, *added], places, size


def _drawing(description: Mapping[str, Any], lowered: DeviceProgram) -> DrawingPlan:
    buffers, _, _ = _buffers(description, lowered)
    return plan_drawing(buffers, description["output"], description["limits"]["max_tokens"])


def _cache(description: Mapping[str, Any], lowered: DeviceProgram, target: str) -> dict[str, Any]:
    layers = []
    for entry, layer in zip(description["cache"]["layers"], lowered.cache.layers, strict=True):
        assert isinstance(layer, DeviceCacheLayer)
        layers.append({**entry, "key_bytes": layer.key_bytes, "value_bytes": layer.value_bytes})
    return {
        **description["cache"],
        "block_tokens": BLOCK_TOKENS,
        "tile_tokens": lowered.tile_tokens[target],
        "chunk_tokens": BLOCK_TOKENS,
        "layers": layers,
    }


def _launches(
    description: Mapping[str, Any], lowered: DeviceProgram, shared: Mapping[str, int]
) -> list[dict[str, Any]]:
    launches = []
    for unit in lowered.units:
        group = lowered.groups[lowered.names[unit[0]]]
        if group.parts:
            launches.append(_joined_launch(description, lowered, unit))
            continue
        launch, arguments = description["launches"][unit[0]], lowered.arguments[unit[0]]
        first = arguments.inputs + len(arguments.caches)
        before, results = launch["args"][:first], launch["args"][first:]
        for stage in group.stages:
            extras = [f"buffer:{shared[extra]}" if extra in shared else extra for extra in stage.extras]
            written = [int(each.partition(":")[2]) for each in results]
            if not stage.name.endswith("fold"):
                written += [shared[extra] for extra in stage.extras if extra in shared]
            launches.append(
                {
                    "group": stage.name,
                    "args": [*before, *extras, *results, "size:T", "size:L", "size:W"],
                    "layer": launch["layer"],
                    "writes": written,
                    "updates": [],
                    "reads_cache": launch["reads_cache"],
                    "writes_cache": launch["writes_cache"],
                }
            )
    return launches


def _joined_launch(description: Mapping[str, Any], lowered: DeviceProgram, unit: tuple[int, ...]) -> dict[str, Any]:
    """One launch of a kernel that several groups share."""
    group = lowered.groups[lowered.names[unit[0]]]
    launches = [description["launches"][number] for number in unit]
    given: dict[int, str] = {}
    written: list[int] = []
    for number, launch, part in zip(unit, launches, group.parts, strict=True):
        first = lowered.arguments[number].inputs + len(lowered.arguments[number].caches)
        before, results = launch["args"][:first], launch["args"][first:]
        given.update(zip(part.parameters, [*before, *part.extras, *results], strict=True))
        written += [int(each.partition(":")[2]) for each in results]
    return {
        "group": group.name,
        "args": [*(given[number] for number in sorted(given)), "size:T", "size:L", "size:W"],
        "layer": launches[0]["layer"],
        "writes": written,
        "updates": [],
        "reads_cache": sorted({cache for launch in launches for cache in launch["reads_cache"]}),
        "writes_cache": sorted({cache for launch in launches for cache in launch["writes_cache"]}),
    }


def _layers(description: Mapping[str, Any], lowered: DeviceProgram) -> list[dict[str, Any]]:
    """`end` counts launches, of which a group may be several, or several groups one."""
    ends = [0]
    for unit in lowered.units:
        ends += [ends[-1] + len(lowered.groups[lowered.names[unit[0]]].stages)] * len(unit)
    return [{**layer, "end": ends[layer["end"]]} for layer in description["layers"]]
