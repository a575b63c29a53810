"""Makes the tensors of a package from those of a checkpoint, one at a time and some rows at a time.

What is held at once is the finished tensor and one block of rows; a transposed source is held whole besides, as it is
stored.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessera_compiler.module import WeightRecipe
from tessera_compiler.tile.float8 import LARGEST
from tessera_pack.checkpoint import Checkpoint, as_float32
from tessera_pack.errors import ShapeMismatch
from tessera_pack.layouts import STORAGE, empty, physical_bytes, place, round_up, to_bf16
from tessera_pack.layouts import physical_shape as layout_shape
from tessera_pack.quantize import float8_rows, float16_rows, quantize_rows, row_scales
from tessera_pack.quantize_groups import GroupParameters, quantize_groups

Scales: TypeAlias = NDArray[np.float32] | GroupParameters
"""Of a `u8` or `f8_e4m3` tensor one number for each row; of `u4` what belongs to its groups."""

_BLOCK_ELEMENTS = 2**18
"""Small enough that a block stays in the processor's cache through all the passes over it."""
_BLOCK_ROWS = 64


@dataclass(frozen=True)
class PackedTensor:
    """One tensor as it is written: `array` has its physical shape; bf16 is its 16 bits."""

    name: str
    dtype: str
    array: NDArray[Any]


def physical_shape(recipe: WeightRecipe) -> tuple[int, ...]:
    """The shape that the recipe's tensor has in the package."""
    return layout_shape(recipe.shape, recipe.layout)


def recipe_bytes(recipe: WeightRecipe) -> int:
    """How many bytes the recipe's tensor takes in the package."""
    return physical_bytes(recipe.shape, recipe.dtype, recipe.layout)


def pack_weights(
    recipes: Iterable[WeightRecipe], checkpoint: Checkpoint, names: Mapping[str, str] | None = None
) -> Iterator[PackedTensor]:
    """The tensors of the recipes, in their order.

    `names` maps a recipe's source names to the checkpoint's; a name that it lacks stands for itself. Raises a
    `CheckpointError` when a source is absent, has another shape than its recipe needs, or cannot be quantized.
    """
    ordered = list(recipes)
    by_name = {recipe.name: recipe for recipe in ordered}
    wanted_scales = Counter(recipe.scales_of for recipe in ordered if recipe.scales_of is not None)
    scales: dict[str, Scales] = {}
    for recipe in ordered:
        if recipe.scales_of is not None:
            found = scales.pop(recipe.scales_of, None)
            if found is None:
                found = _scales(by_name[recipe.scales_of], _source(by_name[recipe.scales_of], checkpoint, names))
            wanted_scales[recipe.scales_of] -= 1
            if wanted_scales[recipe.scales_of]:
                scales[recipe.scales_of] = found
            yield PackedTensor(recipe.name, recipe.dtype, _pack(recipe, _Constant(_part(recipe, found))))
            continue
        source = _source(recipe, checkpoint, names)
        kept = _room_for_scales(recipe)
        yield PackedTensor(recipe.name, recipe.dtype, _pack(recipe, source, kept))
        if kept is not None and wanted_scales[recipe.name]:
            scales[recipe.name] = kept


class _Source(Protocol):
    """The logical rows of a tensor."""

    def rows(self, start: int, stop: int) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class _Constant:
    values: NDArray[Any]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        return self.values[start:stop]


@dataclass(frozen=True)
class _Stored:
    """One tensor of the checkpoint, read as rows are asked for."""

    checkpoint: Checkpoint
    name: str

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.checkpoint.read_rows(self.name, start, stop)


class _Transposed:
    """One tensor of the checkpoint whose columns are the rows: read once, whole, when its first rows are asked for."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint = checkpoint
        self._name = name
        self._stored: NDArray[Any] | None = None

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        if self._stored is None:
            self._stored = self._checkpoint.read_stored(self._name)
        block = as_float32(np.ascontiguousarray(self._stored[:, start:stop].T))
        if stop == self._stored.shape[1]:
            self._stored = None
        return block


class _Concatenated:
    """Several sources, one below the other."""

    def __init__(self, parts: list[tuple[_Source, int]]) -> None:
        self._parts = parts

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        blocks = []
        begin = 0
        for source, count in self._parts:
            low, high = max(start - begin, 0), min(stop - begin, count)
            if low < high:
                blocks.append(source.rows(low, high))
            begin += count
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _source(recipe: WeightRecipe, checkpoint: Checkpoint, names: Mapping[str, str] | None) -> _Source:
    if recipe.constant is not None:
        return _Constant(np.asarray(recipe.constant, np.float32).reshape(recipe.shape))
    parts: list[tuple[_Source, int]] = []
    for graph_name in recipe.sources:
        name = (names or {}).get(graph_name, graph_name)
        stored = checkpoint.shape(name)
        shape = stored[::-1] if recipe.transposed else stored
        if len(shape) != len(recipe.shape) or shape[1:] != recipe.shape[1:]:
            raise _mismatch(recipe, name, stored)
        checkpoint.require(name, stored)
        transposed = recipe.transposed and len(shape) == 2
        parts.append(
            (_Transposed(checkpoint, name) if transposed else _Stored(checkpoint, name), shape[0] if shape else 1)
        )
    total = sum(count for _, count in parts)
    if total != (recipe.shape[0] if recipe.shape else 1):
        raise _mismatch(recipe, (names or {}).get(recipe.sources[0], recipe.sources[0]), checkpoint.shape(name))
    return _Concatenated(parts)


def _mismatch(recipe: WeightRecipe, name: str, found: tuple[int, ...]) -> ShapeMismatch:
    role = f"to make {list(recipe.shape)} of it" if len(recipe.sources) == 1 else f"as a part of {list(recipe.shape)}"
    turned = ", transposed" if recipe.transposed else ""
    return ShapeMismatch(
        f"The tensor {name!r} has shape {list(found)}, but the model made from config.json needs it {role}{turned}.",
        hint="The weights and config.json belong to different models.",
    )


def _blocks(recipe: WeightRecipe) -> Iterator[tuple[int, int]]:
    rows = recipe.shape[0] if recipe.shape else 1
    width = max(math.prod(recipe.shape[1:]), 1)
    step = max(round_up(_BLOCK_ELEMENTS // width, _BLOCK_ROWS), _BLOCK_ROWS)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _room_for_scales(recipe: WeightRecipe) -> Scales | None:
    if recipe.dtype == "u4":
        if recipe.group is None:
            raise ValueError(f"{recipe.name!r} is u4 and does not say how wide its groups are")
        return GroupParameters.empty(recipe.shape[0], -(-recipe.shape[1] // recipe.group))
    return np.empty(recipe.shape[0], np.float32) if recipe.dtype in ("u8", "f8_e4m3") else None


def _pack(recipe: WeightRecipe, source: _Source, scales: Scales | None = None) -> NDArray[Any]:
    """The physical array; fills `scales` for a quantized recipe."""
    array = empty(recipe.shape, recipe.dtype, recipe.layout)
    inner = math.prod(recipe.shape[1:-1]) if len(recipe.shape) > 2 else 1
    for start, stop in _blocks(recipe):
        rows = source.rows(start, stop)
        if rows.ndim > 2:
            rows = rows.reshape(-1, rows.shape[-1])
        place(array, _stored_values(recipe, rows, start, scales), start * inner, recipe.layout)
    return array


def _stored_values(recipe: WeightRecipe, rows: NDArray[Any], start: int, scales: Scales | None) -> NDArray[Any]:
    if rows.dtype == STORAGE[recipe.dtype]:
        return rows
    if recipe.dtype == "bf16":
        return to_bf16(rows)
    if recipe.dtype == "f16":
        return float16_rows(rows, _source_names(recipe), start)
    if scales is None or len(recipe.shape) != 2:
        raise ValueError(f"{recipe.name!r} is {recipe.dtype} but not a matrix; only matrices can be quantized")
    if isinstance(scales, GroupParameters):
        stored, parameters = quantize_groups(rows, recipe.group or 1, _source_names(recipe), start)
        scales.put(start, parameters)
        return stored
    if recipe.dtype == "f8_e4m3":
        block = row_scales(rows, _source_names(recipe), start, largest_number=LARGEST, dtype="fp8")
        stored = float8_rows(rows, block)
    else:
        block = row_scales(rows, _source_names(recipe), start)
        stored = quantize_rows(rows, block)
    scales[start : start + len(rows)] = block
    return stored


def _scales(recipe: WeightRecipe, source: _Source) -> Scales:
    """The scales alone, of a tensor that comes later or not at all."""
    scales = _room_for_scales(recipe)
    if scales is None:
        raise ValueError(f"{recipe.name!r} is of the scales of a tensor that is not quantized")
    for start, stop in _blocks(recipe):
        _stored_values(recipe, source.rows(start, stop), start, scales)
    return scales


def _part(recipe: WeightRecipe, scales: Scales) -> NDArray[Any]:
    if not isinstance(scales, GroupParameters):
        return scales
    if recipe.part is None:
        return scales.factors
    return scales.scales if recipe.part == "scales" else scales.zeros


def _source_names(recipe: WeightRecipe) -> str:
    return " + ".join(recipe.sources) or recipe.name
