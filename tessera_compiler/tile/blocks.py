"""The ops of Tile IR that read and write blocks of a matrix as a device with caches of its own does: in either order of
axes, several tile rows to a row of the buffer, and only as much as there is."""

from __future__ import annotations

import numpy as np
from xdsl.dialects.builtin import IndexType, IntegerAttr, MemRefType, UnitAttr, VectorType
from xdsl.ir import Operation, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    attr_def,
    irdl_op_definition,
    operand_def,
    opt_attr_def,
    opt_operand_def,
    result_def,
)
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.tile.base import Array, TileOperation, integer
from tessera_compiler.tile.types import element_name, shape_of, tile_type

STEPS = ("period", "row_step", "column_step", "lane_row_step", "lane_step")
STEPS_OF_A_BOX = {"row_step": 1, "lane_step": 1}


def _number(op: Operation, name: str) -> int:
    attribute = op.attributes[name]
    if not isinstance(attribute, IntegerAttr):
        raise VerifyException(f"{op.name}: {name} is an integer; found {attribute}")
    return int(attribute.value.data)


class _BlockAccess(TileOperation):
    """What loading and storing share: how elements are addressed."""

    @property
    def steps(self) -> dict[str, int]:
        return {name: _number(self, name) for name in STEPS}

    def _places(self, shape: tuple[int, int], row: int, column: int, count: int | None) -> tuple[Array, Array, Array]:
        """Buffer rows and columns of each element, and which there are."""
        steps = self.steps
        i, j = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
        period = steps["period"]
        outer, inner = (i // period, i % period) if period else (i, i)
        rows = row + outer * steps["row_step"] + j * steps["lane_row_step"]
        columns = column + inner * steps["column_step"] + j * steps["lane_step"]
        inside = np.broadcast_to(i < (shape[0] if count is None else count), shape)
        return rows, columns, inside

    def _verify(self, buffer: SSAValue, tile: SSAValue) -> None:
        type_ = buffer.type
        if not isinstance(type_, MemRefType) or len(type_.get_shape()) != 2:
            raise VerifyException(f"{self.name} expects a buffer of two axes; found {type_}")
        if element_name(type_) != element_name(tile.type):
            raise VerifyException(f"a tile of {element_name(tile.type)} and a buffer of {element_name(type_)} differ")
        if min(self.steps.values()) < 0:
            raise VerifyException(f"neither the period nor a step is negative; found {self.steps}")


@irdl_op_definition
class LoadBlockOp(_BlockAccess):
    """Reads a tile of a two-dimensional buffer: element (i, j) is buffer[row + i*row_step + j*lane_row_step, column +
    i*column_step + j*lane_step]; with a `period`, i div period takes row steps and i mod period column steps. Tile rows
    at or past `count` are zero, whatever the buffer holds. With `box`, which takes row_step and lane_step of 1 and no
    others, all columns are the buffer's, and `count`, if it is there, says where its rows end: a target may have the
    tile copied as a box of a tensor, by a descriptor."""

    name = "tile.load_block"
    buffer = operand_def(MemRefType)
    row = operand_def(IndexType)
    column = operand_def(IndexType)
    count = opt_operand_def(IndexType)
    period = attr_def(IntegerAttr)
    row_step = attr_def(IntegerAttr)
    column_step = attr_def(IntegerAttr)
    lane_row_step = attr_def(IntegerAttr)
    lane_step = attr_def(IntegerAttr)
    box = opt_attr_def(UnitAttr)
    result = result_def(VectorType)
    irdl_options = (AttrSizedOperandSegments(),)

    def __init__(
        self,
        buffer: SSAValue,
        row: SSAValue,
        column: SSAValue,
        shape: tuple[int, int],
        *,
        count: SSAValue | None = None,
        box: bool = False,
        period: int = 0,
        row_step: int = 0,
        column_step: int = 0,
        lane_row_step: int = 0,
        lane_step: int = 0,
    ):
        steps = (period, row_step, column_step, lane_row_step, lane_step)
        super().__init__(
            operands=[buffer, row, column, count],
            attributes={name: integer(step) for name, step in zip(STEPS, steps, strict=True)}
            | ({"box": UnitAttr()} if box else {}),
            result_types=[tile_type(*shape, element_name(buffer.type))],
        )

    def verify_(self) -> None:
        self._verify(self.buffer, self.result)
        steps = {name: step for name, step in self.steps.items() if step}
        if self.box is not None and steps != STEPS_OF_A_BOX:
            raise VerifyException(f"a box has the steps {STEPS_OF_A_BOX}; found {steps}")

    def evaluate(self, buffer: Array, row: int, column: int, count: int | None = None) -> tuple[Array]:
        rows, columns, inside = self._places(shape_of(self.result.type), row, column, count)
        loaded = buffer[np.where(inside, rows, 0), np.where(inside, columns, 0)]
        return (np.where(inside, loaded, np.zeros((), loaded.dtype)),)


@irdl_op_definition
class PrefetchOp(TileOperation):
    """Changes nothing: says that `columns` neighbours of each of `rows` rows of a weight are going to be read soon. No
    launch before this one writes them, so a target may fetch them before it waits for those."""

    name = "tile.prefetch"
    buffer = operand_def(MemRefType)
    row = operand_def(IndexType)
    column = operand_def(IndexType)
    rows = attr_def(IntegerAttr)
    columns = attr_def(IntegerAttr)

    def __init__(self, buffer: SSAValue, row: SSAValue, column: SSAValue, shape: tuple[int, int]):
        rows, columns = shape
        super().__init__(
            operands=[buffer, row, column], attributes={"rows": integer(rows), "columns": integer(columns)}
        )

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.value.data, self.columns.value.data

    def verify_(self) -> None:
        type_ = self.buffer.type
        if not isinstance(type_, MemRefType) or len(type_.get_shape()) != 2 or min(self.shape) < 1:
            raise VerifyException(f"{self.name} expects some of a buffer of two axes; found {self.shape} of {type_}")

    def evaluate(self, buffer: Array, row: int, column: int) -> tuple[()]:
        return ()


@irdl_op_definition
class StoreBlockOp(_BlockAccess):
    """Writes a tile, addressed as in `tile.load_block`; tile rows at or past `count` are not written."""

    name = "tile.store_block"
    value = operand_def(VectorType)
    buffer = operand_def(MemRefType)
    row = operand_def(IndexType)
    column = operand_def(IndexType)
    count = opt_operand_def(IndexType)
    period = attr_def(IntegerAttr)
    row_step = attr_def(IntegerAttr)
    column_step = attr_def(IntegerAttr)
    lane_row_step = attr_def(IntegerAttr)
    lane_step = attr_def(IntegerAttr)
    irdl_options = (AttrSizedOperandSegments(),)

    def __init__(
        self,
        value: SSAValue,
        buffer: SSAValue,
        row: SSAValue,
        column: SSAValue,
        *,
        count: SSAValue | None = None,
        period: int = 0,
        row_step: int = 0,
        column_step: int = 0,
        lane_row_step: int = 0,
        lane_step: int = 0,
    ):
        steps = (period, row_step, column_step, lane_row_step, lane_step)
        super().__init__(
            operands=[value, buffer, row, column, count],
            attributes={name: integer(step) for name, step in zip(STEPS, steps, strict=True)},
        )

    def verify_(self) -> None:
        self._verify(self.buffer, self.value)
        steps, (rows, columns) = self.steps, shape_of(self.value.type)
        along_rows = rows <= 1 or steps["row_step"] or steps["column_step"]
        along_lanes = columns <= 1 or steps["lane_row_step"] or steps["lane_step"]
        if not along_rows or not along_lanes:
            raise VerifyException("the elements of a tile that is stored go to different places; a step is 0")

    def evaluate(self, value: Array, buffer: Array, row: int, column: int, count: int | None = None) -> tuple[()]:
        rows, columns, inside = self._places(value.shape, row, column, count)
        places = np.broadcast_to(rows, inside.shape)[inside], np.broadcast_to(columns, inside.shape)[inside]
        buffer[places] = value[inside]
        return ()
