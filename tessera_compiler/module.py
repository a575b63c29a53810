"""What the compiler hands back: a plain description of a compiled model, with no IR object and no weight in it.

`tessera_pack` turns it, together with the checkpoint's tensors, into a package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class WeightRecipe:
    """How one tensor of the package is made from tensors of the checkpoint.

    The sources are read, each transposed if `transposed`, concatenated along axis 0, and converted to `dtype` in
    `layout` (docs/spec/program.md, "Layouts of weights"). A tensor with `constant` has no source.
    """

    name: str
    shape: tuple[int, ...]
    """Logical shape, before padding: [N, K] for matrices, [N] for vectors."""
    dtype: str
    """`f32`, `bf16`, `f16`, `u8` (quantized with one scale per row n, zero point 128), `f8_e4m3` (with one scale per
    row), or `u4` (with a scale and a zero for each row and group of columns)."""
    layout: str
    """`rows`, `panels_k1`, `panels_k2`, `panels_k4`, or `panels_k8` (of `u4`, two of which share a byte); for devices
    `matrix`, `matrix_signed` (of `u8`), `matrix4` (of `u4`) or `columns4` (of what belongs to its groups)."""
    sources: tuple[str, ...] = ()
    transposed: bool = False
    scales_of: str | None = None
    """Set on the tensor of scales that belongs to the quantized tensor of this name; it has the same sources."""
    part: str | None = None
    """What of a `u4` tensor this is: its `scales` or `zeros`, one for each row and group; None: its factors."""
    group: int | None = None
    """Columns that share a scale, of `u4` and of what belongs to it."""
    constant: NDArray[np.float32] | None = None


def merge_recipes(first: tuple[WeightRecipe, ...], second: tuple[WeightRecipe, ...]) -> tuple[WeightRecipe, ...]:
    """Both, tensors that they have in common once. Scales are the same tensor whichever layout their weight is in."""
    known = {recipe.name: recipe for recipe in first}
    merged = list(first)
    for recipe in second:
        other = known.get(recipe.name)
        if other is None:
            merged.append(recipe)
        elif (other.shape, other.dtype, other.layout) != (recipe.shape, recipe.dtype, recipe.layout):
            raise ValueError(f"two tensors are named {recipe.name!r}: {other} and {recipe}")
    return tuple(merged)


@dataclass(frozen=True)
class CompiledTarget:
    """The folder `tile_kernels/<name>/`: its program and the files beside it."""

    name: str
    program: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class CompiledModule:
    graph_ir: str
    schedule_ir: str
    tile_ir: str
    targets: tuple[CompiledTarget, ...]
    weights: tuple[WeightRecipe, ...]
    dtype: str
    max_model_len: int
    vocab_size: int
    schedules: dict[str, Any]
    """What was chosen for each kernel and whether it was tuned or a default; goes to `schedule_cache/`."""
