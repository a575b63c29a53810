"""Checks that the program of a GPU target hangs together (docs/spec/program-gpu.md), without a device.

As in `program_check`, each function raises with the first mistake and returns a sentence on what it saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from tessera_runtime.errors import DigestMismatch, FileMissing, ProgramInvalid, WeightsInvalid
from tessera_runtime.executor.gpu.arena_check import check_arena, sizes_to_try
from tessera_runtime.executor.gpu.binding import choose_variant
from tessera_runtime.executor.gpu.grid import evaluate_grid
from tessera_runtime.executor.gpu.program import GpuProgram, read_program
from tessera_runtime.package.safetensors_reader import TensorEntry


def is_gpu_target(name: str) -> bool:
    return name.startswith(("cuda-", "hip-"))


def gpu_checks(
    raw: Mapping[str, Any], tensors: Callable[[], Mapping[str, TensorEntry]], read: Callable[[str], bytes]
) -> dict[str, Callable[[], str]]:
    """The checks of one program by name. `tensors` gives those of the package, `read` a file beside program.json."""
    return {
        "weights": lambda: _check_weights(read_program(raw), tensors()),
        "launches": lambda: _check_launches(read_program(raw)),
        "arena": lambda: check_arena(read_program(raw)),
        "cache": lambda: _check_cache(read_program(raw)),
        "code objects": lambda: _check_code(read_program(raw), read),
    }


def _check_weights(program: GpuProgram, tensors: Mapping[str, TensorEntry]) -> str:
    size = 0
    for weight in program.weights:
        entry = tensors.get(weight.name)
        if entry is None:
            raise WeightsInvalid(f"The program needs the tensor {weight.name!r}, which is not among the weights.")
        if entry.size != weight.size:
            raise WeightsInvalid(f"The tensor {weight.name!r} should have {weight.size} bytes but has {entry.size}.")
        size += entry.size
    return f"{len(program.weights)} tensors, {size} bytes"


def _check_launches(program: GpuProgram) -> str:
    """Every launch has a grid that a device takes, at every corner of the sizes."""
    for sizes in sizes_to_try(program):
        by_symbol = sizes.by_symbol()
        for name, variants in program.groups.items():
            variant = choose_variant(variants, by_symbol)
            if variant.kernel is not None:
                evaluate_grid(variant.grid, by_symbol, f"groups.{name}")
    used = {variant.kernel for variants in program.groups.values() for variant in variants}
    unused = sorted(set(program.kernels) - used)
    if unused:
        raise ProgramInvalid(f"The kernel {unused[0]!r} is never launched.")
    return f"{len(program.launches)} launches of {len(program.kernels)} kernels"


def _check_cache(program: GpuProgram) -> str:
    cache = program.cache
    extents = []
    for index, layer in enumerate(cache.layers):
        extents.append((layer.key_offset, layer.key_offset + layer.key_bytes, index))
        extents.append((layer.value_offset, layer.value_offset + layer.value_bytes, index))
    reached = 0
    for start, end, index in sorted(extents):
        if start < reached or end > cache.bytes_per_block:
            raise ProgramInvalid(
                f"Layer {index} of the cache overlaps another or leaves its block of {cache.bytes_per_block} bytes."
            )
        reached = end
    return f"{len(cache.layers)} layers, {cache.bytes_per_block} bytes for {cache.block_tokens} positions"


def _check_code(program: GpuProgram, read: Callable[[str], bytes]) -> str:
    size = 0
    for module in program.modules:
        try:
            code = read(module.file)
        except FileMissing as error:
            raise ProgramInvalid(f"The program launches code of {module.file!r}: {error.message}") from None
        digest = hashlib.sha256(code).hexdigest()
        if digest != module.sha256 or len(code) != module.size:
            raise DigestMismatch(
                f"The program says {module.size} bytes with the SHA-256 {module.sha256} for {module.file!r}; the file "
                f"has {len(code)} with {digest}."
            )
        size += len(code)
    return f"{len(program.modules)} code objects, {size} bytes"
