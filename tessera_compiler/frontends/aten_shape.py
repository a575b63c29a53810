"""Handlers of the ATen operations that move, cut, join or fill tensors; `aten.py` has the table of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tessera_compiler.frontends.importer import Importer, Shape, Tracked, Unwritten, canonical_axes
from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import I32

Handler = Callable[..., Any]


def view(importer: Importer, x: Any, *ignored: Any, **options: Any) -> Tracked:
    return importer.viewed(importer.tracked(x), importer.output_shape())


def permute(importer: Importer, x: Any, dims: Sequence[int]) -> Tracked:
    operand = importer.tracked(x)
    return importer.permuted(operand, [importer.positive(dim, operand.shape) for dim in dims])


def transpose(importer: Importer, x: Any, first: int, second: int) -> Tracked:
    operand = importer.tracked(x)
    order = list(range(len(operand.shape)))
    first, second = importer.positive(first, operand.shape), importer.positive(second, operand.shape)
    order[first], order[second] = order[second], order[first]
    return importer.permuted(operand, order)


def matrix_transpose(importer: Importer, x: Any) -> Tracked:
    operand = importer.tracked(x)
    return importer.permuted(operand, list(range(len(operand.shape)))[::-1])


def expand(importer: Importer, x: Any, *ignored: Any, **options: Any) -> Tracked:
    return importer.expanded(importer.tracked(x), importer.output_shape())


def repeat(importer: Importer, x: Any, repeats: Sequence[Any]) -> Tracked:
    operand, shape = importer.tracked(x), importer.output_shape()
    padded: Shape = (1,) * (len(shape) - len(operand.shape)) + operand.shape
    dims = [axis for axis, (old, new) in enumerate(zip(padded, shape, strict=True)) if old != new]
    if all(padded[axis] == 1 for axis in dims):
        return importer.expanded(operand, shape)
    if len(dims) != 1 or isinstance(shape[dims[0]], str):
        raise importer.refuse("only repeats along one dimension are compiled.")
    times = int(shape[dims[0]]) // int(padded[dims[0]])
    return _concat_parts(importer, [Tracked(operand.value, padded)] * times, dims[0])


def repeat_interleave(importer: Importer, x: Any, repeats: int, dim: int | None = None, **options: Any) -> Tracked:
    operand = importer.tracked(x)
    if dim is None:
        raise importer.refuse("the dimension to repeat along must be given.")
    dim = importer.positive(dim, operand.shape)
    apart: Shape = (*operand.shape[: dim + 1], 1, *operand.shape[dim + 1 :])
    widened: Shape = (*operand.shape[: dim + 1], repeats, *operand.shape[dim + 1 :])
    expanded = importer.expanded(Tracked(operand.value, apart), widened)
    return importer.viewed(expanded, importer.output_shape())


def _slice_axis(importer: Importer, operand: Tracked, dim: int, start: int, size: int, step: int = 1) -> Tracked:
    """Elements of one static dimension."""
    shape: Shape = (*operand.shape[:dim], size, *operand.shape[dim + 1 :])
    if operand.shape[dim] == 1 or size == 0:
        # An empty part has no value of its own; concatenating is all that models do with it.
        return Tracked(operand.value, shape)
    axis = operand.axes.index(dim)
    value = importer.emit(graph.SliceOp, operand.value, axis=axis, start=start, size=size, step=step)
    return importer.result(value, shape)


def cut(
    importer: Importer, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Tracked | Unwritten:
    shape = importer.output_shape()
    if isinstance(importer.value_of(x), Unwritten):
        return Unwritten(shape)
    operand = importer.tracked(x)
    dim = importer.positive(dim, operand.shape)
    if operand.shape[dim] == shape[dim] and step == 1:
        return operand
    total, size = operand.shape[dim], shape[dim]
    if isinstance(total, str) or isinstance(size, str) or not isinstance(start, (int, type(None))):
        raise importer.refuse(
            "tokens are cut apart, which would make a token's result depend on its place in the step."
        )
    first = 0 if start is None else start + total if start < 0 else start
    return _slice_axis(importer, operand, dim, first, size, step)


def select(importer: Importer, x: Any, dim: int, index: Any) -> Tracked:
    operand, shape = importer.tracked(x), importer.output_shape()
    dim = importer.positive(dim, operand.shape)
    total = operand.shape[dim]
    if isinstance(total, str) or not isinstance(index, int):
        raise importer.refuse("one token is picked, which would make results depend on its place in the step.")
    taken = _slice_axis(importer, operand, dim, index + total if index < 0 else index, 1)
    return Tracked(taken.value, shape)


def _split_at(importer: Importer, operand: Tracked, dim: int) -> list[Tracked]:
    """Consecutive parts along a dimension, of the sizes that the current node's results have."""
    parts: list[Tracked] = []
    start = 0
    for index in range(len(importer.node.meta["val"])):
        size = importer.output_shape(index)[dim]
        if not isinstance(size, int):
            raise importer.refuse("tokens are split apart.")
        parts.append(_slice_axis(importer, operand, dim, start, size))
        start += size
    return parts


def split(importer: Importer, x: Any, sizes: Any, dim: int = 0) -> list[Tracked]:
    operand = importer.tracked(x)
    return _split_at(importer, operand, importer.positive(dim, operand.shape))


def unbind(importer: Importer, x: Any, dim: int = 0) -> list[Tracked]:
    operand = importer.tracked(x)
    dim = importer.positive(dim, operand.shape)
    count = operand.shape[dim]
    if isinstance(count, str):
        raise importer.refuse("tokens are split apart.")
    parts = [_slice_axis(importer, operand, dim, index, 1) for index in range(count)]
    return [Tracked(part.value, (*part.shape[:dim], *part.shape[dim + 1 :])) for part in parts]


def _concat_parts(importer: Importer, parts: Sequence[Tracked], dim: int) -> Tracked:
    shape = importer.output_shape()
    if isinstance(shape[dim], str):
        raise importer.refuse("tokens are concatenated.")
    axes = canonical_axes(tuple(2 if axis == dim else size for axis, size in enumerate(shape)))
    values = [importer.with_axes(part, axes) for part in parts]
    return importer.result(importer.emit(graph.ConcatOp, *values, axis=axes.index(dim)))


def cat(importer: Importer, tensors: Sequence[Any], dim: int = 0) -> Tracked:
    parts = [importer.tracked(each) for each in tensors]
    dim = importer.positive(dim, parts[0].shape)
    parts = [part for part in parts if part.shape[dim] != 0]
    return parts[0] if len(parts) == 1 else _concat_parts(importer, parts, dim)


def stack(importer: Importer, tensors: Sequence[Any], dim: int = 0) -> Tracked:
    parts = [importer.tracked(each) for each in tensors]
    dim = importer.positive(dim, importer.output_shape())
    return _concat_parts(
        importer, [Tracked(part.value, (*part.shape[:dim], 1, *part.shape[dim:])) for part in parts], dim
    )


def unwritten(importer: Importer, *ignored: Any, **options: Any) -> Unwritten:
    return Unwritten(importer.output_shape())


def copy(importer: Importer, target: Any, source: Any, *ignored: Any) -> Tracked:
    """What in-place copies become: the source in the target's shape."""
    return importer.cast(
        importer.expanded(importer.tracked(source), importer.output_shape()), importer.output_element()
    )


def slice_scatter(
    importer: Importer, x: Any, source: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Tracked | Unwritten:
    """A tensor with a part written anew; a tensor that is written part by part is their concatenation."""
    whole, part = importer.value_of(x), importer.tracked(source)
    shape = importer.output_shape()
    dim = importer.positive(dim, shape)
    total, size = shape[dim], part.shape[dim]
    if step != 1 or isinstance(total, str) or isinstance(size, str) or not isinstance(start, (int, type(None))):
        raise importer.refuse("only consecutive elements of a dimension of known size can be written.")
    first = 0 if start is None else start + total if start < 0 else start
    if isinstance(whole, Unwritten):
        parts = tuple(sorted([*whole.parts, (first, part)], key=lambda item: item[0]))
    else:
        rest = [(0, first), (first + size, total - first - size)]
        kept = [(begin, _slice_axis(importer, whole, dim, begin, count)) for begin, count in rest if count]
        parts = tuple(sorted([*kept, (first, part)], key=lambda item: item[0]))
    expected = 0
    for begin, piece in parts:
        if begin != expected:
            return Unwritten(shape, parts)
        expected += int(piece.shape[dim])
    return _concat_parts(importer, [piece for _, piece in parts], dim) if expected == total else Unwritten(shape, parts)


def filled(value: float) -> Handler:
    def handle(importer: Importer, *ignored: Any, **options: Any) -> Tracked:
        return _full_of(importer, value)

    return handle


def filled_with(importer: Importer, x: Any, value: Any, **options: Any) -> Tracked:
    return _full_of(importer, value)


def scalar_tensor(importer: Importer, value: Any, **options: Any) -> Tracked:
    return _full_of(importer, value)


def _full_of(importer: Importer, value: Any) -> Tracked:
    """A tensor of one repeated number. Where tokens would be, size 1 stands: broadcasting makes up for it."""
    if not isinstance(value, (int, float)):
        raise importer.refuse("it is filled with a number that is not known when the model is compiled.")
    shape = importer.output_shape()
    if any(isinstance(size, str) for size in shape):
        raise importer.refuse("a tensor with one row per token is made from nothing.")
    sizes = [int(size) for size in shape if size != 1]
    element = importer.output_element()
    array = np.full(sizes, value, dtype=np.int32 if element == I32 else np.float32)
    return Tracked(importer.constant(array), shape)


def arange(importer: Importer, *bounds: Any, **options: Any) -> Tracked:
    shape = importer.output_shape()
    if not all(isinstance(bound, (int, float)) for bound in bounds) or any(isinstance(size, str) for size in shape):
        raise importer.refuse("it counts the tokens of a step; positions must come from position_ids.")
    array = np.arange(*bounds)
    return importer.result(
        importer.constant(array.astype(np.int32 if importer.output_element() == I32 else np.float32))
    )
