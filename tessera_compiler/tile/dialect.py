"""Tile IR: how one kernel works on tiles. docs/spec/tile-ir.md is the page; `evaluate` of each op is the definition.

Every tile is two-dimensional. A kernel is a function of its buffers and of the ids of one program instance; instances are independent, and
no instance loads from a buffer that the kernel stores to. Arithmetic is in the element type that is written: nothing is contracted or reordered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import (
    ArrayAttr,
    FloatAttr,
    IndexType,
    IntegerAttr,
    MemRefType,
    StringAttr,
    VectorType,
    i64,
)
from xdsl.ir import Attribute, Block, Dialect, Operation, Region, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    attr_def,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.traits import IsTerminator, SymbolOpInterface
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.tile import functions
from tessera_compiler.tile.types import INDEX, element_name, numpy_dtype, round_to_bfloat16, shape_of, tile_type

Array = NDArray[Any]


def _integer(value: int) -> IntegerAttr[Any]:
    return IntegerAttr(value, i64)


def _broadcast_shape(types: Sequence[Attribute]) -> tuple[int, int]:
    shapes = [shape_of(type_) for type_ in types]
    result = []
    for axis in range(2):
        sizes = {shape[axis] for shape in shapes} - {1}
        if len(sizes) > 1:
            raise VerifyException(f"tiles of shapes {shapes} do not broadcast; each axis must agree or be 1")
        result.append(sizes.pop() if sizes else 1)
    return result[0], result[1]


class TileOperation(IRDLOperation):
    """Base of the ops that compute values from values."""

    def evaluate(self, *operands: Any) -> tuple[Any, ...]:
        """The meaning of the op in NumPy; operands are arrays (tiles, buffers) or ints (index)."""
        raise TypeError(f"{self.name} is given its meaning by the interpreter, not by its operands alone")


@irdl_op_definition
class KernelOp(IRDLOperation):
    """A kernel. Block arguments: its buffers, then the indices T, L and W. `grid` says how many instances there are."""

    name = "tile.kernel"
    sym_name = attr_def(StringAttr)
    grid = attr_def(ArrayAttr)
    body = region_def("single_block")
    traits = traits_def(SymbolOpInterface())

    def __init__(self, symbol: str, grid: Sequence[str | int], body: Region):
        entries = [StringAttr(g) if isinstance(g, str) else _integer(g) for g in grid]
        super().__init__(attributes={"sym_name": StringAttr(symbol), "grid": ArrayAttr(entries)}, regions=[body])

    @property
    def symbol(self) -> str:
        return self.sym_name.data

    @property
    def grid_entries(self) -> list[str | int]:
        return [e.data if isinstance(e, StringAttr) else e.value.data for e in self.grid.data]

    @property
    def buffers(self) -> list[SSAValue]:
        return [a for a in self.body.block.args if isinstance(a.type, MemRefType)]

    def verify_(self) -> None:
        types = [argument.type for argument in self.body.block.args]
        if types[-3:] != [INDEX, INDEX, INDEX] or any(isinstance(t, IndexType) for t in types[:-3]):
            raise VerifyException("a kernel takes its buffers, then three indices: T, L and W")
        stored = {id(op.buffer) for op in self.walk() if isinstance(op, StoreOp)}
        for op in self.walk():
            if isinstance(op, LoadOp | LoadIndexOp | LoadPackedOp | LoadPackedRowOp) and id(op.buffer) in stored:
                raise VerifyException(f"{self.symbol} loads from a buffer that it stores to; instances must be independent")


@irdl_op_definition
class ReturnOp(IRDLOperation):
    """Ends a kernel."""

    name = "tile.return"
    traits = traits_def(IsTerminator())


@irdl_op_definition
class ProgramIdOp(TileOperation):
    """This instance's place along one axis of the grid."""

    name = "tile.program_id"
    axis = attr_def(IntegerAttr)
    result = result_def(IndexType)

    def __init__(self, axis: int):
        super().__init__(attributes={"axis": _integer(axis)}, result_types=[INDEX])


@irdl_op_definition
class ConstantIndexOp(TileOperation):
    """An index known at compile time."""

    name = "tile.constant_index"
    value = attr_def(IntegerAttr)
    result = result_def(IndexType)

    def __init__(self, value: int):
        super().__init__(attributes={"value": _integer(value)}, result_types=[INDEX])

    def evaluate(self) -> tuple[int]:
        return (self.value.value.data,)


INDEX_FUNCTIONS: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a // b,
    "rem": lambda a, b: a % b,
    "min": min,
    "max": max,
}


@irdl_op_definition
class IndexOp(TileOperation):
    """Arithmetic on indices: add, sub, mul, div, rem (of non-negative numbers), min, max (signed)."""

    name = "tile.index"
    function = attr_def(StringAttr)
    left = operand_def(IndexType)
    right = operand_def(IndexType)
    result = result_def(IndexType)

    def __init__(self, function: str, left: SSAValue, right: SSAValue):
        super().__init__(operands=[left, right], attributes={"function": StringAttr(function)}, result_types=[INDEX])

    def verify_(self) -> None:
        if self.function.data not in INDEX_FUNCTIONS:
            raise VerifyException(f"unknown index function {self.function.data!r}; known: {', '.join(INDEX_FUNCTIONS)}")

    def evaluate(self, left: int, right: int) -> tuple[int]:
        return (int(INDEX_FUNCTIONS[self.function.data](left, right)),)


@irdl_op_definition
class LoadIndexOp(TileOperation):
    """Reads one int32 of a one-dimensional buffer as an index."""

    name = "tile.load_index"
    buffer = operand_def(MemRefType)
    at = operand_def(IndexType)
    result = result_def(IndexType)

    def __init__(self, buffer: SSAValue, at: SSAValue):
        super().__init__(operands=[buffer, at], result_types=[INDEX])

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
    """Reads a tile of a two-dimensional buffer: element (i, j) is buffer[row + i*row_step, column + i*column_step + j*lane_step].

    With `limit`, tile rows whose buffer row is at or past it are not read; what they hold is undefined and must not reach a store.
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
                "row_step": _integer(row_step),
                "column_step": _integer(column_step),
                "lane_step": _integer(lane_step),
            },
            result_types=[tile_type(*shape, element_name(buffer.type))],
        )

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
                "row_step": _integer(row_step),
                "column_step": _integer(column_step),
                "lane_step": _integer(lane_step),
            },
        )

    def verify_(self) -> None:
        if element_name(self.value.type) != element_name(self.buffer.type):
            raise VerifyException(
                f"a tile of {element_name(self.value.type)} is stored to a buffer of {element_name(self.buffer.type)}; cast it first"
            )

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
    """Reads a [K, N] tile of a weight in a panel layout: element (k, n) is weight (n0 + n, k0 + k); n0 is a multiple of 16."""

    name = "tile.load_packed"
    buffer = operand_def(MemRefType)
    n0 = operand_def(IndexType)
    k0 = operand_def(IndexType)
    result = result_def(VectorType)

    def __init__(self, buffer: SSAValue, n0: SSAValue, k0: SSAValue, shape: tuple[int, int]):
        super().__init__(operands=[buffer, n0, k0], result_types=[tile_type(*shape, element_name(buffer.type))])

    def verify_(self) -> None:
        _verify_panels(self.buffer.type)
        if shape_of(self.result.type)[1] % 16:
            raise VerifyException("a packed tile covers whole panels: its columns must be a multiple of 16")

    def evaluate(self, buffer: Array, n0: int, k0: int) -> tuple[Array]:
        count, columns = shape_of(self.result.type)
        k = (k0 + np.arange(count))[:, None]
        n = (n0 + np.arange(columns))[None, :]
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
        _verify_panels(self.buffer.type)

    def evaluate(self, buffer: Array, n: int, k0: int) -> tuple[Array]:
        k = k0 + np.arange(shape_of(self.result.type)[1])
        packed = buffer.shape[3]
        return (buffer[n // 16, k // packed, n % 16, k % packed][None, :],)


def _verify_panels(type_: Attribute) -> None:
    shape = type_.get_shape() if isinstance(type_, MemRefType) else ()
    if len(shape) != 4 or shape[2] != 16:
        raise VerifyException(f"expected a buffer in a panel layout, [N/16, K/k, 16, k]; found {type_}")


@irdl_op_definition
class FullOp(TileOperation):
    """A tile whose elements are all one constant."""

    name = "tile.full"
    value = attr_def(Attribute)
    result = result_def(VectorType)

    def __init__(self, value: float | int, shape: tuple[int, int], element: str):
        attribute: Attribute = FloatAttr(float(value), 64) if element in ("f32", "bf16") else _integer(int(value))
        super().__init__(attributes={"value": attribute}, result_types=[tile_type(*shape, element)])

    @property
    def constant(self) -> float | int:
        assert isinstance(self.value, FloatAttr | IntegerAttr)
        return self.value.value.data

    def evaluate(self) -> tuple[Array]:
        dtype = numpy_dtype(element_name(self.result.type))
        return (np.full(shape_of(self.result.type), self.constant, dtype=dtype),)


@irdl_op_definition
class IotaOp(TileOperation):
    """start + 0, 1, 2, … along the columns (axis 1) or the rows (axis 0), as i32."""

    name = "tile.iota"
    start = operand_def(IndexType)
    axis = attr_def(IntegerAttr)
    result = result_def(VectorType)

    def __init__(self, start: SSAValue, count: int, axis: int = 1):
        shape = (1, count) if axis == 1 else (count, 1)
        super().__init__(operands=[start], attributes={"axis": _integer(axis)}, result_types=[tile_type(*shape, "i32")])

    def evaluate(self, start: int) -> tuple[Array]:
        return ((start + np.arange(max(shape_of(self.result.type)), dtype=np.int32)).reshape(shape_of(self.result.type)),)


@irdl_op_definition
class UnaryOp(TileOperation):
    """A function of each element (see the table of unary functions)."""

    name = "tile.unary"
    function = attr_def(StringAttr)
    operand = operand_def(VectorType)
    result = result_def(VectorType)

    def __init__(self, function: str, operand: SSAValue):
        super().__init__(operands=[operand], attributes={"function": StringAttr(function)}, result_types=[operand.type])

    def verify_(self) -> None:
        if self.function.data not in functions.UNARY:
            raise VerifyException(f"unknown function {self.function.data!r}; known: {', '.join(functions.UNARY)}")
        if self.operand.type != self.result.type:
            raise VerifyException("a unary function keeps the type of its operand")

    def evaluate(self, operand: Array) -> tuple[Array]:
        return (functions.UNARY[self.function.data].apply(operand),)


@irdl_op_definition
class BinaryOp(TileOperation):
    """A function of two elements; operands broadcast along axes of size 1 (see the table of binary functions)."""

    name = "tile.binary"
    function = attr_def(StringAttr)
    left = operand_def(VectorType)
    right = operand_def(VectorType)
    result = result_def(VectorType)

    def __init__(self, function: str, left: SSAValue, right: SSAValue):
        shape = _broadcast_shape([left.type, right.type])
        super().__init__(
            operands=[left, right],
            attributes={"function": StringAttr(function)},
            result_types=[tile_type(*shape, element_name(left.type))],
        )

    def verify_(self) -> None:
        if self.function.data not in functions.BINARY:
            raise VerifyException(f"unknown function {self.function.data!r}; known: {', '.join(functions.BINARY)}")
        if element_name(self.left.type) != element_name(self.right.type):
            raise VerifyException("the operands of a binary function have one element type; cast one of them")

    def evaluate(self, left: Array, right: Array) -> tuple[Array]:
        with np.errstate(all="ignore"):
            return (np.asarray(functions.BINARY[self.function.data](left, right)).astype(left.dtype),)


@irdl_op_definition
class CompareOp(TileOperation):
    """Compares two elements, giving i1; operands broadcast."""

    name = "tile.compare"
    function = attr_def(StringAttr)
    left = operand_def(VectorType)
    right = operand_def(VectorType)
    result = result_def(VectorType)

    def __init__(self, function: str, left: SSAValue, right: SSAValue):
        shape = _broadcast_shape([left.type, right.type])
        super().__init__(
            operands=[left, right], attributes={"function": StringAttr(function)}, result_types=[tile_type(*shape, "i1")]
        )

    def verify_(self) -> None:
        if self.function.data not in functions.COMPARE:
            raise VerifyException(f"unknown comparison {self.function.data!r}; known: {', '.join(functions.COMPARE)}")

    def evaluate(self, left: Array, right: Array) -> tuple[Array]:
        return (functions.COMPARE[self.function.data](left, right),)


@irdl_op_definition
class SelectOp(TileOperation):
    """The left element where the condition holds, else the right one; all three broadcast."""

    name = "tile.select"
    condition = operand_def(VectorType)
    left = operand_def(VectorType)
    right = operand_def(VectorType)
    result = result_def(VectorType)

    def __init__(self, condition: SSAValue, left: SSAValue, right: SSAValue):
        shape = _broadcast_shape([condition.type, left.type, right.type])
        super().__init__(operands=[condition, left, right], result_types=[tile_type(*shape, element_name(left.type))])

    def evaluate(self, condition: Array, left: Array, right: Array) -> tuple[Array]:
        return (np.where(condition, left, right),)


CASTS = frozenset(
    [
        ("f32", "bf16"),
        ("bf16", "f32"),
        ("i32", "f32"),
        ("f32", "i32"),
        ("f32", "i8"),
        ("i8", "i32"),
        ("i8", "f32"),
        ("u8", "f32"),
        ("i1", "f32"),
        ("i32", "i1"),
    ]
)


@irdl_op_definition
class CastOp(TileOperation):
    """Converts each element: f32 to bf16 rounds to nearest even; f32 to i32 or i8 expects values already integral and in range."""

    name = "tile.cast"
    operand = operand_def(VectorType)
    result = result_def(VectorType)

    def __init__(self, operand: SSAValue, element: str):
        super().__init__(operands=[operand], result_types=[tile_type(*shape_of(operand.type), element)])

    def verify_(self) -> None:
        pair = (element_name(self.operand.type), element_name(self.result.type))
        if pair not in CASTS:
            raise VerifyException(f"no cast from {pair[0]} to {pair[1]}")

    def evaluate(self, operand: Array) -> tuple[Array]:
        to = element_name(self.result.type)
        if to == "bf16":
            return (round_to_bfloat16(operand),)
        with np.errstate(all="ignore"):
            return (operand.astype(numpy_dtype(to)),)


@irdl_op_definition
class ReduceOp(TileOperation):
    """Reduces the columns of each row, sixteen lanes first (see `functions.reduce_columns`): sum, max or min."""

    name = "tile.reduce"
    function = attr_def(StringAttr)
    operand = operand_def(VectorType)
    result = result_def(VectorType)

    def __init__(self, function: str, operand: SSAValue):
        super().__init__(
            operands=[operand],
            attributes={"function": StringAttr(function)},
            result_types=[tile_type(shape_of(operand.type)[0], 1, element_name(operand.type))],
        )

    def verify_(self) -> None:
        if self.function.data not in functions.REDUCE:
            raise VerifyException(f"unknown reduction {self.function.data!r}; known: {', '.join(functions.REDUCE)}")

    def evaluate(self, operand: Array) -> tuple[Array]:
        return (functions.reduce_columns(self.function.data, operand),)


@irdl_op_definition
class DotOp(TileOperation):
    """accumulator + left @ right, over k ascending for each element: f32·f32 and f32·bf16 by fused multiply-add in f32, bf16·bf16 exact
    products summed in f32, i8·u8 exact in i32."""

    name = "tile.dot"
    left = operand_def(VectorType)
    right = operand_def(VectorType)
    accumulator = operand_def(VectorType)
    result = result_def(VectorType)
    ELEMENTS: ClassVar = {
        ("f32", "f32"): "f32",
        ("f32", "bf16"): "f32",
        ("bf16", "bf16"): "f32",
        ("i8", "u8"): "i32",
    }

    def __init__(self, left: SSAValue, right: SSAValue, accumulator: SSAValue):
        super().__init__(operands=[left, right, accumulator], result_types=[accumulator.type])

    def verify_(self) -> None:
        (m, k), (k2, n) = shape_of(self.left.type), shape_of(self.right.type)
        if k != k2 or shape_of(self.accumulator.type) != (m, n) or self.result.type != self.accumulator.type:
            raise VerifyException(f"dot of {self.left.type} and {self.right.type} into {self.accumulator.type} does not fit")
        pair = (element_name(self.left.type), element_name(self.right.type))
        if self.ELEMENTS.get(pair) != element_name(self.accumulator.type):
            raise VerifyException(f"no dot of {pair[0]} and {pair[1]} into {element_name(self.accumulator.type)}")

    def evaluate(self, left: Array, right: Array, accumulator: Array) -> tuple[Array]:
        if accumulator.dtype == np.int32:
            return (accumulator + left.astype(np.int32) @ right.astype(np.int32),)
        total = accumulator.astype(np.float64) + left.astype(np.float64) @ right.astype(np.float64)
        return (total.astype(np.float32),)


@irdl_op_definition
class ForOp(IRDLOperation):
    """Counts an index from lower to upper by step, carrying tiles from one round to the next."""

    name = "tile.for"
    lower = operand_def(IndexType)
    upper = operand_def(IndexType)
    step = operand_def(IndexType)
    initial = var_operand_def(VectorType)
    results_ = var_result_def(VectorType)
    body = region_def("single_block")

    def __init__(self, lower: SSAValue, upper: SSAValue, step: SSAValue, initial: Sequence[SSAValue], body: Region | Block):
        region = body if isinstance(body, Region) else Region(body)
        super().__init__(
            operands=[lower, upper, step, list(initial)],
            result_types=[[value.type for value in initial]],
            regions=[region],
        )

    def verify_(self) -> None:
        carried = [value.type for value in self.initial]
        last = self.body.block.last_op
        if [a.type for a in self.body.block.args] != [INDEX, *carried]:
            raise VerifyException("the body of a loop takes the index, then the carried tiles")
        if not isinstance(last, YieldOp) or [v.type for v in last.values] != carried:
            raise VerifyException("the body of a loop ends by yielding the carried tiles")


@irdl_op_definition
class YieldOp(IRDLOperation):
    """Hands the carried tiles to the next round."""

    name = "tile.yield"
    values = var_operand_def(VectorType)
    traits = traits_def(IsTerminator())

    def __init__(self, values: Sequence[SSAValue]):
        super().__init__(operands=[list(values)])


TILE_OPERATIONS: list[type[Operation]] = [
    KernelOp,
    ReturnOp,
    ProgramIdOp,
    ConstantIndexOp,
    IndexOp,
    LoadIndexOp,
    LoadOp,
    StoreOp,
    LoadPackedOp,
    LoadPackedRowOp,
    FullOp,
    IotaOp,
    UnaryOp,
    BinaryOp,
    CompareOp,
    SelectOp,
    CastOp,
    ReduceOp,
    DotOp,
    ForOp,
    YieldOp,
]
Tile = Dialect("tile", TILE_OPERATIONS, [])
