"""The ops of Tile IR on stacks: several tiles of one shape, which one product multiplies at a time, each by warps of
its own. A stack is a builtin `vector<PxRxCxelement>`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from xdsl.dialects.builtin import IndexType, IntegerAttr, MemRefType, UnitAttr, VectorType
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import attr_def, irdl_op_definition, operand_def, opt_attr_def, opt_operand_def, result_def
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.tile.base import Array, TileOperation, integer, verify_type
from tessera_compiler.tile.types import ELEMENTS, element_name, tile_type

Shape = tuple[int, int, int]
"""How many tiles, and the rows and columns of each."""

MULTIPLIED = ("bf16", "f16")


def stack_type(shape: Sequence[int], element: str) -> VectorType[Attribute]:
    return VectorType(ELEMENTS[element], list(shape))


def stack_shape(type_: Attribute) -> Shape:
    shape = type_.get_shape() if isinstance(type_, VectorType) else ()
    if len(shape) != 3 or any(extent & (extent - 1) for extent in shape):
        raise VerifyException(f"a stack has tiles, rows and columns, so many as a power of two; found {type_}")
    return shape[0], shape[1], shape[2]


@irdl_op_definition
class EmptyStackOp(TileOperation):
    """A stack of zeros, of f32."""

    name = "tile.empty_stack"
    result = result_def(VectorType)

    def __init__(self, shape: Shape):
        super().__init__(result_types=[stack_type(shape, "f32")])

    def verify_(self) -> None:
        verify_type("a stack of zeros", self.result.type, stack_type(stack_shape(self.result.type), "f32"))

    def evaluate(self) -> tuple[Array]:
        return (np.zeros(stack_shape(self.result.type), np.float32),)


@irdl_op_definition
class LoadStackOp(TileOperation):
    """Reads a stack of a two-dimensional buffer: element (i, j) of tile p is buffer[row + i, column + p*part_step + j],
    or, with `transposed`, buffer[row + j, column + p*part_step + i]. Buffer rows at or past row + `count` are zero,
    whatever the buffer holds."""

    name = "tile.load_stack"
    buffer = operand_def(MemRefType)
    row = operand_def(IndexType)
    column = operand_def(IndexType)
    count = opt_operand_def(IndexType)
    part_step = attr_def(IntegerAttr)
    transposed = opt_attr_def(UnitAttr)
    result = result_def(VectorType)

    def __init__(
        self,
        buffer: SSAValue,
        row: SSAValue,
        column: SSAValue,
        shape: Shape,
        part_step: int,
        *,
        count: SSAValue | None = None,
        transposed: bool = False,
    ):
        super().__init__(
            operands=[buffer, row, column, count],
            attributes={"part_step": integer(part_step), "transposed": UnitAttr() if transposed else None},
            result_types=[stack_type(shape, element_name(buffer.type))],
        )

    @property
    def row_axis(self) -> int:
        """Along which axis of the stack the buffer's rows lie."""
        return 1 if self.transposed is None else 2

    def verify_(self) -> None:
        type_ = self.buffer.type
        if not isinstance(type_, MemRefType) or len(type_.get_shape()) != 2:
            raise VerifyException(f"{self.name} expects a buffer of two axes; found {type_}")
        if element_name(type_) != element_name(self.result.type):
            raise VerifyException(f"a stack of {self.result.type} and a buffer of {element_name(type_)} differ")
        _, *extents = stack_shape(self.result.type)
        if self.part_step.value.data < extents[2 - self.row_axis]:
            raise VerifyException(f"the tiles of a stack do not overlap; found a step of {self.part_step.value.data}")

    def evaluate(self, buffer: Array, row: int, column: int, count: int | None = None) -> tuple[Array]:
        part, i, j = np.ogrid[tuple(slice(0, extent) for extent in stack_shape(self.result.type))]
        across, along = (i, j) if self.transposed is None else (j, i)
        rows, columns = np.broadcast_arrays(row + across, column + part * self.part_step.value.data + along)
        inside = rows < (len(buffer) if count is None else row + count)
        loaded = buffer[np.where(inside, rows, 0), np.where(inside, columns, 0)]
        return (np.where(inside, loaded, np.zeros((), loaded.dtype)),)


@irdl_op_definition
class DotStackOp(TileOperation):
    """The accumulator with the product of each pair of tiles, added as `tile.dot` does: of bf16 or f16, in f32."""

    name = "tile.dot_stack"
    left = operand_def(VectorType)
    right = operand_def(VectorType)
    accumulator = operand_def(VectorType)
    result = result_def(VectorType)

    def __init__(self, left: SSAValue, right: SSAValue, accumulator: SSAValue):
        super().__init__(operands=[left, right, accumulator], result_types=[accumulator.type])

    def verify_(self) -> None:
        (count, rows, depth), element = stack_shape(self.left.type), element_name(self.left.type)
        columns = stack_shape(self.right.type)[2]
        if element not in MULTIPLIED:
            raise VerifyException(f"stacks of {' or '.join(MULTIPLIED)} are multiplied; found {element}")
        verify_type("the right operand", self.right.type, stack_type((count, depth, columns), element))
        verify_type("the accumulator", self.accumulator.type, stack_type((count, rows, columns), "f32"))
        verify_type("the result of a dot", self.result.type, self.accumulator.type)

    def evaluate(self, left: Array, right: Array, accumulator: Array) -> tuple[Array]:
        total = accumulator.astype(np.float64) + left.astype(np.float64) @ right.astype(np.float64)
        return (total.astype(np.float32),)


@irdl_op_definition
class SumStackOp(TileOperation):
    """The tiles of a stack of f32, added one after the other to zeros."""

    name = "tile.sum_stack"
    operand = operand_def(VectorType)
    result = result_def(VectorType)

    def __init__(self, operand: SSAValue):
        _, rows, columns = stack_shape(operand.type)
        super().__init__(operands=[operand], result_types=[tile_type(rows, columns, "f32")])

    def verify_(self) -> None:
        count, rows, columns = stack_shape(self.operand.type)
        verify_type("what is added", self.operand.type, stack_type((count, rows, columns), "f32"))
        verify_type("the sum of a stack", self.result.type, tile_type(rows, columns, "f32"))

    def evaluate(self, operand: Array) -> tuple[Array]:
        total = np.zeros(operand.shape[1:], np.float32)
        for each in operand:
            total = total + each
        return (total,)
