"""The ops of Tile IR that read and write buffers."""

from __future__ import annotations

import numpy as np
from xdsl.dialects.builtin import IndexType, IntegerAttr, MemRefType, VectorType
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    attr_def,
    irdl_op_definition,
    operand_def,
    opt_attr_def,
    opt_operand_def,
    result_def,
)
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.tile.base import Array, TileOperation, integer
from tessera_compiler.tile.types import INDEX, element_name, shape_of, tile_type


@irdl_op_definition
class LoadIndexOp(TileOperation):
    """Reads one int32 of a one-dimensional buffer as an index."""

    name = "tile.load_index"
    buffer = operand_def(MemRefType)
    at = operand_def(IndexType)
    result = result_def(IndexType)

    def __init__(self, buffer: SSAValue, at: SSAValue):
        super().__init__(operands=[buffer, at], result_types=[INDEX])

    def verify_(self) -> None:
        _verify_buffer(self.buffer.type, 1, "i32")

    def evaluate(self, buffer: Array, at: int) -> tuple[int]:
        return (int(buffer.reshape(-1)[at]),)


def _addresses(op: LoadOp | StoreOp, shape: tuple[int, int], row: int, column: int) -> tuple[Array, Array]:
    i = np.arange(shape[0])[:, None]
    j = np.arange(shape[1])[None, :]
    rows = row + i * op.row_step.value.data + 0 * j
    columns = column + i * op.column_step.value.data + j * op.lane_step.value.data
    return rows, columns


@irdl_op_definition
class LoadOp(TileOperation):
    """Reads a tile of a two-dimensional buffer: element (i, j) is buffer[row + i*row_step, column + i*column_step +
    j*lane_step].

    With `limit`, tile rows whose buffer row is at or past it are not read; what they hold is undefined and must not
    reach a store.
    """

    name = "tile.load"
    buffer = operand_def(MemRefType)
    row = operand_def(IndexType)
    column = operand_def(IndexType)
    limit = opt_operand_def(IndexType)
    row_step = attr_def(IntegerAttr)
    column_step = attr_def(IntegerAttr)
    lane_step = attr_def(IntegerAttr)
    result = result_def(VectorType)
    irdl_options = (AttrSizedOperandSegments(),)

    def __init__(
        self,
        buffer: SSAValue,
        row: SSAValue,
        column: SSAValue,
        shape: tuple[int, int],
        *,
        limit: SSAValue | None = None,
        row_step: int = 0,
        column_step: int = 0,
        lane_step: int = 1,
    ):
        super().__init__(
            operands=[buffer, row, column, limit],
            attributes={
                "row_step": integer(row_step),
                "column_step": integer(column_step),
                "lane_step": integer(lane_step),
            },
            result_types=[tile_type(*shape, element_name(buffer.type))],
        )

    def verify_(self) -> None:
        _verify_access(self, shape_of(self.result.type), element_name(self.result.type))

    def evaluate(self, buffer: Array, row: int, column: int, limit: int | None = None) -> tuple[Array]:
        shape = shape_of(self.result.type)
        rows, columns = _addresses(self, shape, row, column)
        if limit is None:
            return (buffer[rows, columns],)
        inside = rows < limit
        loaded = buffer[np.where(inside, rows, 0), columns]
        garbage = np.nan if loaded.dtype == np.float32 else 77
        return (np.where(inside, loaded, np.asarray(garbage).astype(loaded.dtype)),)


@irdl_op_definition
class StoreOp(IRDLOperation):
    """Writes a tile, addressed as in `tile.load`; tile rows whose buffer row is at or past `limit` are not written."""

    name = "tile.store"
    value = operand_def(VectorType)
    buffer = operand_def(MemRefType)
    row = operand_def(IndexType)
    column = operand_def(IndexType)
    limit = opt_operand_def(IndexType)
    row_step = attr_def(IntegerAttr)
    column_step = attr_def(IntegerAttr)
    lane_step = attr_def(IntegerAttr)
    irdl_options = (AttrSizedOperandSegments(),)

    def __init__(
        self,
        value: SSAValue,
        buffer: SSAValue,
        row: SSAValue,
        column: SSAValue,
        *,
        limit: SSAValue | None = None,
        row_step: int = 0,
        column_step: int = 0,
        lane_step: int = 1,
    ):
        super().__init__(
            operands=[value, buffer, row, column, limit],
            attributes={
                "row_step": integer(row_step),
                "column_step": integer(column_step),
                "lane_step": integer(lane_step),
            },
        )

    def verify_(self) -> None:
        if element_name(self.value.type) != element_name(self.buffer.type):
            raise VerifyException(
                f"a tile of {element_name(self.value.type)} is stored to a buffer of "
                f"{element_name(self.buffer.type)}; cast it first"
            )
        _verify_access(self, shape_of(self.value.type), element_name(self.value.type))

    def evaluate(self, value: Array, buffer: Array, row: int, column: int, limit: int | None = None) -> tuple[()]:
        rows, columns = _addresses(self, value.shape, row, column)
        if limit is None:
            buffer[rows, columns] = value
        else:
            inside = rows < limit
            buffer[rows[inside], columns[inside]] = value[inside]
        return ()


@irdl_op_definition
class LoadPackedOp(TileOperation):
    """Reads a [K, N] tile of a weight in a panel layout: element (k, n) is weight (n0 + n, k0 + k); n0 is a
    multiple of 16.

    In memory, a panel of u4 is `[K/8, 16, 4]` bytes: byte j of the four holds the elements of k = j in its low half
    and of k = 4 + j in its high half. A tile of u4 may only be the right operand of `tile.dot`.

    `ahead` has no meaning for values: it says that the outputs which lie behind this tile's will be wanted soon, and
    is how many of them, in the part of the weight that this tile is of, the instance still reads itself.
    """

    name = "tile.load_packed"
    buffer = operand_def(MemRefType)
    n0 = operand_def(IndexType)
    k0 = operand_def(IndexType)
    ahead = opt_attr_def(IntegerAttr)
    result = result_def(VectorType)

    def __init__(
        self, buffer: SSAValue, n0: SSAValue, k0: SSAValue, shape: tuple[int, int], *, ahead: int | None = None
    ):
        super().__init__(
            operands=[buffer, n0, k0],
            attributes={"ahead": None if ahead is None else integer(ahead)},
            result_types=[tile_type(*shape, element_name(buffer.type))],
        )

    def verify_(self) -> None:
        _verify_panels(self.buffer.type, self.result.type)
        if shape_of(self.result.type)[1] % 16:
            raise VerifyException("a packed tile covers whole panels: its columns must be a multiple of 16")
        if element_name(self.result.type) == "u4" and any(use.index != 1 for use in self.result.uses):
            raise VerifyException("a tile of u4 is the right operand of a dot, and nothing else")

    def evaluate(self, buffer: Array, n0: int, k0: int) -> tuple[Array]:
        count, columns = shape_of(self.result.type)
        k = (k0 + np.arange(count))[:, None]
        n = (n0 + np.arange(columns))[None, :]
        if element_name(self.result.type) == "u4":
            pairs = buffer[n // 16, k // 8, n % 16, k % 4]
            return (np.where(k % 8 < 4, pairs & 15, pairs >> 4),)
        packed = buffer.shape[3]
        return (buffer[n // 16, k // packed, n % 16, k % packed],)


@irdl_op_definition
class LoadPackedRowOp(TileOperation):
    """Reads part of one row of a weight in a panel layout, as embedding does: element (0, j) is weight (n, k0 + j)."""

    name = "tile.load_packed_row"
    buffer = operand_def(MemRefType)
    n = operand_def(IndexType)
    k0 = operand_def(IndexType)
    result = result_def(VectorType)

    def __init__(self, buffer: SSAValue, n: SSAValue, k0: SSAValue, columns: int):
        super().__init__(operands=[buffer, n, k0], result_types=[tile_type(1, columns, element_name(buffer.type))])

    def verify_(self) -> None:
        _verify_panels(self.buffer.type, self.result.type)
        if element_name(self.result.type) == "u4":
            raise VerifyException("a row of u4 is not loaded: only a dot reads panels of it")

    def evaluate(self, buffer: Array, n: int, k0: int) -> tuple[Array]:
        k = k0 + np.arange(shape_of(self.result.type)[1])
        packed = buffer.shape[3]
        return (buffer[n // 16, k // packed, n % 16, k % packed][None, :],)


def _verify_buffer(type_: Attribute, rank: int, element: str) -> None:
    if not isinstance(type_, MemRefType) or len(type_.get_shape()) != rank or element_name(type_) != element:
        raise VerifyException(f"expected a buffer of {element} with {rank} axes; found {type_}")


def _verify_access(op: LoadOp | StoreOp, shape: tuple[int, int], element: str) -> None:
    """Steps count up, and elements of a row lie one after another, so that no two elements of a tile share a place by
    accident of a step of zero."""
    _verify_buffer(op.buffer.type, 2, element)
    if element == "u4":
        raise VerifyException("u4 is held by weights in panels, and by no buffer of two axes")
    row_step, column_step, lane_step = (each.value.data for each in (op.row_step, op.column_step, op.lane_step))
    if row_step < 0 or column_step < 0 or lane_step < 1:
        raise VerifyException(
            f"row_step and column_step are at least 0 and lane_step at least 1; found {row_step}, {column_step} "
            f"and {lane_step}"
        )
    if isinstance(op, StoreOp) and shape[0] > 1 and not row_step and not column_step:
        raise VerifyException("the rows of a tile that is stored go to different places; both steps are 0")


def _verify_panels(type_: Attribute, result: Attribute) -> None:
    shape = type_.get_shape() if isinstance(type_, MemRefType) else ()
    if len(shape) != 4 or shape[2] != 16:
        raise VerifyException(f"expected a buffer in a panel layout, [N/16, K/k, 16, k]; found {type_}")
    if element_name(type_) != element_name(result):
        raise VerifyException(f"a tile of {element_name(result)} is loaded from panels of {element_name(type_)}")
    if (element_name(type_) == "u4") != (shape[3] == 8):
        raise VerifyException(f"panels of u4, and no others, are 8 deep; found {type_}")
