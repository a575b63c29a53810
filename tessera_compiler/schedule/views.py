"""Where the elements of a reshaped, sliced, transposed or broadcast tensor lie in the row of the buffer it was made
from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.ir import Operation

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import DYNAMIC, type_of


def row_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one row (token) of a tensor whose first axis is rows."""
    return tuple(shape[1:]) if shape and shape[0] == DYNAMIC else tuple(shape)


@dataclass(frozen=True)
class View:
    """Element (i, j, …) of a row is element offset + i*strides[0] + j*strides[1] + … of the buffer's row."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @staticmethod
    def contiguous(shape: Sequence[int]) -> View:
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return View(tuple(shape), tuple(strides))

    def through(self, op: Operation) -> View | None:
        """This view seen through a view op applied to it; None if no strides describe the result."""
        shape = row_shape(type_of(op.results[0]).get_shape())
        if isinstance(op, graph.ReshapeOp):
            return self._reshaped(shape)
        if isinstance(op, graph.BroadcastOp):
            lead = len(shape) - len(self.shape)
            strides = [0] * lead + [
                0 if own == 1 and size != 1 else stride
                for own, size, stride in zip(self.shape, shape[lead:], self.strides, strict=True)
            ]
            return View(shape, tuple(strides), self.offset)
        rows = len(type_of(op.results[0]).get_shape()) - len(shape)
        if isinstance(op, graph.TransposeOp):
            order = [axis - rows for axis in op.values["permutation"] if axis >= rows]
            return View(shape, tuple(self.strides[axis] for axis in order), self.offset)
        if isinstance(op, graph.SliceOp):
            axis = op.values["axis"] - rows
            strides = list(self.strides)
            offset = self.offset + op.values["start"] * strides[axis]
            strides[axis] *= op.values["step"]
            return View(shape, tuple(strides), offset)
        return None

    def _reshaped(self, shape: tuple[int, ...]) -> View | None:
        """Splits and merges axes as far as strides allow."""
        own = [(size, stride) for size, stride in zip(self.shape, self.strides, strict=True) if size != 1]
        merged: list[list[int]] = []
        for size, stride in own:
            if merged and merged[-1][1] == size * stride:
                merged[-1] = [merged[-1][0] * size, stride]
            else:
                merged.append([size, stride])
        strides = [0] * len(shape)
        for axis in range(len(shape) - 1, -1, -1):
            size = shape[axis]
            if size == 1:
                strides[axis] = 1
                continue
            if not merged or merged[-1][0] % size:
                return None
            strides[axis] = merged[-1][1]
            merged[-1] = [merged[-1][0] // size, merged[-1][1] * size]
            if merged[-1][0] == 1:
                merged.pop()
        return View(shape, tuple(strides), self.offset)


VIEW_OPERATIONS = (graph.ReshapeOp, graph.SliceOp, graph.TransposeOp, graph.BroadcastOp)
