"""The ops of Tile IR that read and write panels spread over rows of a buffer, as a KV cache in blocks is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from xdsl.dialects.builtin import IndexType, IntegerAttr, MemRefType, StringAttr, VectorType
from xdsl.ir import SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    attr_def,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    result_def,
    var_operand_def,
)
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.tile.base import Array, TileOperation, integer
from tessera_compiler.tile.types import element_name, shape_of, tile_type

LANES = 16
AXES = ("n", "k")


def panel_offsets(k: Array, n: Array, packed: int, along: str) -> Array:
    """Where elements (k, n) lie after the start of a row's panels, if rows continue along `along`."""
    first = n // LANES * LANES * LANES if along == "k" else 0
    k = k % LANES if along == "k" else k
    return np.asarray(first + k // packed * LANES * packed + n % LANES * packed + k % packed)


@irdl_op_definition
class LoadPanelsOp(TileOperation):
    """Reads a [K, N] tile from panels in several rows of a two-dimensional buffer, each from `column` on; sixteen of
    axis `along` (`n` or `k`) are in each row.

    Along `n` a row is one panel [K/packed, 16, packed]; along `k` it is N/16 panels of sixteen k. Elements whose k is
    at or past `limit` are zero, whatever the buffer holds. The rows `ahead` change nothing: they are those that the
    kernel is going to read next, as many as `rows`, for a target that fetches memory early. A tile that is not the
    right operand of a dot is of one row, one deep, along `n`.
    """

    name = "tile.load_panels"
    buffer = operand_def(MemRefType)
    column = operand_def(IndexType)
    rows = var_operand_def(IndexType)
    ahead = var_operand_def(IndexType)
    limit = opt_operand_def(IndexType)
    packed = attr_def(IntegerAttr)
    along = attr_def(StringAttr)
    result = result_def(VectorType)
    irdl_options = (AttrSizedOperandSegments(),)

    def __init__(
        self,
        buffer: SSAValue,
        rows: Sequence[SSAValue],
        column: SSAValue,
        shape: tuple[int, int],
        packed: int,
        along: str,
        limit: SSAValue | None = None,
        ahead: Sequence[SSAValue] = (),
    ):
        super().__init__(
            operands=[buffer, column, list(rows), list(ahead), limit],
            attributes={"packed": integer(packed), "along": StringAttr(along)},
            result_types=[tile_type(*shape, element_name(buffer.type))],
        )

    def verify_(self) -> None:
        _verify_panels(self.buffer, self.packed.value.data, self.along.data)
        if element_name(self.buffer.type) != element_name(self.result.type):
            raise VerifyException(f"a tile of {self.result.type} is loaded from {self.buffer.type}")
        depth, columns = shape_of(self.result.type)
        size = depth if self.along.data == "k" else columns
        if size != LANES * len(self.rows):
            raise VerifyException(f"{len(self.rows)} rows hold {LANES * len(self.rows)} of axis {self.along.data}")
        if len(self.ahead) not in (0, len(self.rows)):
            raise VerifyException("as many rows are read next as now")
        if self.limit is not None and self.along.data != "k":
            raise VerifyException("a limit of k goes with rows along k")
        one_row = depth == 1 and self.packed.value.data == 1 and self.along.data == "n"
        if not one_row and any(use.operation.name != "tile.dot" or use.index != 1 for use in self.result.uses):
            raise VerifyException("panels that are more than one row along n, one deep, are only multiplied by a dot")

    def evaluate(self, buffer: Array, column: int, *rest: int) -> tuple[Array]:
        rows = np.array(rest[: len(self.rows)])
        depth, columns = shape_of(self.result.type)
        k, n = np.arange(depth)[:, None], np.arange(columns)[None, :]
        which = (k if self.along.data == "k" else n) // LANES
        places = column + panel_offsets(k, n, self.packed.value.data, self.along.data)
        loaded = buffer[np.broadcast_to(rows[which], places.shape), places]
        if self.limit is not None:
            loaded = np.where(k < rest[-1], loaded, np.zeros((), loaded.dtype))
        return (loaded,)


@irdl_op_definition
class StorePanelOp(IRDLOperation):
    """Writes rows of columns into panels that `tile.load_panels` reads, tile row i to row `rows[i]` of the buffer: its
    element j goes to (k, n) = (at[i], first + j * step) where rows continue along `k`, and to (first + j * step, at[i])
    where they do along `n`. Tile rows at or past `count` are not written."""

    name = "tile.store_panel"
    value = operand_def(VectorType)
    buffer = operand_def(MemRefType)
    column = operand_def(IndexType)
    rows = var_operand_def(IndexType)
    at = var_operand_def(IndexType)
    count = opt_operand_def(IndexType)
    first = attr_def(IntegerAttr)
    step = attr_def(IntegerAttr)
    packed = attr_def(IntegerAttr)
    along = attr_def(StringAttr)
    irdl_options = (AttrSizedOperandSegments(),)

    def __init__(
        self,
        value: SSAValue,
        buffer: SSAValue,
        rows: Sequence[SSAValue],
        column: SSAValue,
        at: Sequence[SSAValue],
        *,
        first: int,
        step: int,
        packed: int,
        along: str,
        count: SSAValue | None = None,
    ):
        super().__init__(
            operands=[value, buffer, column, list(rows), list(at), count],
            attributes={
                "first": integer(first),
                "step": integer(step),
                "packed": integer(packed),
                "along": StringAttr(along),
            },
        )

    def verify_(self) -> None:
        _verify_panels(self.buffer, self.packed.value.data, self.along.data)
        if element_name(self.value.type) != element_name(self.buffer.type):
            raise VerifyException(f"a panel takes the buffer's element; found {self.value.type}")
        if not shape_of(self.value.type)[0] == len(self.rows) == len(self.at):
            raise VerifyException("each row of the tile has a row of the buffer, and a place in it, of its own")
        if self.first.value.data < 0 or self.step.value.data < 1:
            raise VerifyException("columns count up from 0")

    def evaluate(self, value: Array, buffer: Array, column: int, *rest: int) -> tuple[()]:
        size = len(value)
        place = self.first.value.data + np.arange(value.shape[1]) * self.step.value.data
        for index in range(size if self.count is None else min(size, rest[-1])):
            where = np.full_like(place, rest[size + index])
            k, n = (where, place) if self.along.data == "k" else (place, where)
            offsets = panel_offsets(k, n, self.packed.value.data, self.along.data)
            buffer[rest[index], column + offsets] = value[index]
        return ()


def _verify_panels(buffer: SSAValue, packed: int, along: str) -> None:
    if not isinstance(buffer.type, MemRefType) or len(buffer.type.get_shape()) != 2:
        raise VerifyException(f"expected a buffer with 2 axes; found {buffer.type}")
    if packed not in (1, 2, 4) or along not in AXES:
        raise VerifyException(f"panels hold 1, 2 or 4 of k together and continue along n or k; found {packed}, {along}")
