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
from tessera_compiler.targets.triton.drawing.plan import DrawingPlan, plan_drawing, with_drawing_buffers
from tessera_compiler.targets.triton.emission import emit_source
from tessera_compiler.targets.triton.functions import FLOAT8
from tessera_compiler.targets.triton.toolchain import CompiledKernel, Job, compile_all
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.lowering.device_attention import PARTIALS
from tessera_compiler.tile.lowering.device_context import (
    BLOCK_TOKENS,
    PARTIAL_CHUNKS,
    PARTIAL_SINGLES,
    DeviceCacheLayer,
)
from tessera_compiler.tile.lowering.device_linear import SPLIT_SUMS
from tessera_compiler.tile.lowering.device_lower import DeviceProgram, DeviceVariant
from tessera_compiler.tile.types import BYTES

GPU_ABI = 1
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


def _kernels(lowered: DeviceProgram, architecture: Architecture) -> dict[str, _Kernel]:
    kernels: dict[str, _Kernel] = {}
    for group in lowered.groups.values():
        for stage in group.stages:
            for variant in stage.variants[architecture.target]:
                if variant.kernel is not None:
                    source = emit_source(
                        variant.kernel, dependent=architecture.dependent, float8=architecture.float8 or FLOAT8
                    )
                    name = _name(variant)
                    job = Job(source, architecture, variant.warps, variant.stages)
                    kernels[name] = _Kernel(name, group.tuned, job, variant.kernel)
    return kernels


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
) -> CompiledTarget:
    modules = _Modules()
    described = {}
    for name, (kernel, code) in sorted(kernels.items()):
        fallback = modules.add(code.ptx, "ptx") if architecture.portable_ptx else None
        module = modules.add(code.code, architecture.code_kind, fallback)
        described[name] = _describe_kernel(kernel, code, module, architecture)
    program = describe_launches(description, recipes, lowered, architecture.target)
    program |= {
        "driver": architecture.driver,
        "warp_size": architecture.warp_size,
        "modules": modules.listed,
        "kernels": described,
    }
    return CompiledTarget(architecture.target, program, modules.files)


def describe_launches(
    description: Mapping[str, Any], recipes: tuple[WeightRecipe, ...], lowered: DeviceProgram, target: str
) -> dict[str, Any]:
    """All of a program but its code: what is launched, on what, in what order."""
    buffers, shared, extent = _buffers(description, lowered)
    drawing = _drawing(description, lowered)
    buffers, arena = with_drawing_buffers(drawing, buffers, {**description["arena"], "bytes": extent})
    return {
        **description,
        "abi": GPU_ABI,
        "target": target,
        "weights": _weights(description, recipes),
        "buffers": buffers,
        "arena": arena,
        "cache": _cache(description, lowered),
        "groups": {
            stage.name: {
                "kind": group.kind,
                "tuned": group.tuned,
                "source": group.source,
                "variants": [_describe_variant(variant) for variant in stage.variants[target]],
            }
            for group in lowered.groups.values()
            for stage in group.stages
        }
        | drawing.groups(),
        "launches": _launches(description, lowered, shared),
        "layers": _layers(description, lowered),
        "tensor_maps": [],
        "drawing": drawing.launches(),
        "seats": drawing.seats(),
        "graph_tokens": list(GRAPH_TOKENS),
    }


def _describe_kernel(kernel: _Kernel, code: CompiledKernel, module: int, architecture: Architecture) -> dict[str, Any]:
    return {
        "module": module,
        "entry": code.entry,
        "warps": code.warps,
        "shared_bytes": code.shared_bytes,
        "parameters": ["pointer" if kind.startswith("*") else kind for _, kind in kernel.job.source.signature],
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
        PARTIALS: (PARTIAL_SINGLES * PARTIAL_CHUNKS, lowered.partial_width),
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


def _cache(description: Mapping[str, Any], lowered: DeviceProgram) -> dict[str, Any]:
    layers = []
    for entry, layer in zip(description["cache"]["layers"], lowered.cache.layers, strict=True):
        assert isinstance(layer, DeviceCacheLayer)
        layers.append({**entry, "key_bytes": layer.key_bytes, "value_bytes": layer.value_bytes})
    return {
        **description["cache"],
        "block_tokens": BLOCK_TOKENS,
        "tile_tokens": lowered.tile_tokens,
        "chunk_tokens": lowered.chunk_tokens,
        "layers": layers,
    }


def _launches(
    description: Mapping[str, Any], lowered: DeviceProgram, shared: Mapping[str, int]
) -> list[dict[str, Any]]:
    launches = []
    for launch, name, arguments in zip(description["launches"], lowered.names, lowered.arguments, strict=True):
        group = lowered.groups[name]
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


def _layers(description: Mapping[str, Any], lowered: DeviceProgram) -> list[dict[str, Any]]:
    """`end` counts launches, of which a group may be several."""
    ends = [0]
    for name in lowered.names:
        ends.append(ends[-1] + len(lowered.groups[name].stages))
    return [{**layer, "end": ends[layer["end"]]} for layer in description["layers"]]
