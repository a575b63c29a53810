"""The ops of Tile IR that make tiles of tiles: elementwise functions, reductions, products."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from xdsl.dialects.builtin import FloatAttr, IndexType, IntegerAttr, StringAttr, VectorType
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import attr_def, irdl_op_definition, operand_def, opt_attr_def, result_def
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.tile import functions
from tessera_compiler.tile.base import Array, TileOperation, broadcast_shape, integer, verify_type
from tessera_compiler.tile.blocks import LoadBlockOp
from tessera_compiler.tile.float8 import round_to_float8
from tessera_compiler.tile.memory import LoadOp, LoadPackedOp
from tessera_compiler.tile.panels import LoadPanelsOp
from tessera_compiler.tile.rearranging import TransposeOp
from tessera_compiler.tile.types import element_name, numpy_dtype, round_to_bfloat16, shape_of, tile_type


@irdl_op_definition
class FullOp(TileOperation):
    """A tile whose elements are all one constant."""

    name = "tile.full"
    value = attr_def(Attribute)
    result = result_def(VectorType)

    def __init__(self, value: float | int, shape: tuple[int, int], element: str):
        attribute: Attribute = FloatAttr(float(value), 64) if element in ("f32", "bf16") else integer(int(value))
        super().__init__(attributes={"value": attribute}, result_types=[tile_type(*shape, element)])

    @property
    def constant(self) -> float | int:
        assert isinstance(self.value, FloatAttr | IntegerAttr)
        return self.value.value.data

    def verify_(self) -> None:
        element = element_name(self.result.type)
        expected = FloatAttr if element in ("f32", "bf16") else IntegerAttr
        if not isinstance(self.value, expected):
            raise VerifyException(f"a tile of {element} is full of one number of its kind; found {self.value}")

    def evaluate(self) -> tuple[Array]:
        dtype = numpy_dtype(element_name(self.result.type))
        return (np.full(shape_of(self.result.type), self.constant, dtype=dtype),)


@irdl_op_definition
class IotaOp(TileOperation):
    """start + 0, 1, 2, … along the columns (axis 1) or the rows (axis 0), as i32; each number `repeat` times."""

    name = "tile.iota"
    start = operand_def(IndexType)
    axis = attr_def(IntegerAttr)
    repeat = opt_attr_def(IntegerAttr)
    result = result_def(VectorType)

    def __init__(self, start: SSAValue, count: int, axis: int = 1, repeat: int = 1):
        shape = (1, count) if axis == 1 else (count, 1)
        super().__init__(
            operands=[start],
            attributes={"axis": integer(axis), "repeat": integer(repeat) if repeat > 1 else None},
            result_types=[tile_type(*shape, "i32")],
        )

    @property
    def repeats(self) -> int:
        return 1 if self.repeat is None else self.repeat.value.data

    def verify_(self) -> None:
        axis, shape = self.axis.value.data, shape_of(self.result.type)
        if axis not in (0, 1) or shape[1 - axis] != 1 or element_name(self.result.type) != "i32":
            raise VerifyException(
                f"iota along axis {axis} cannot give {self.result.type}; it gives one row or column of i32"
            )

    def evaluate(self, start: int) -> tuple[Array]:
        numbers = np.arange(max(shape_of(self.result.type)), dtype=np.int32) // np.int32(self.repeats)
        return ((start + numbers).astype(np.int32).reshape(shape_of(self.result.type)),)


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
        _verify_element(
            self.function.data, element_name(self.operand.type), functions.UNARY_ELEMENTS[self.function.data]
        )
        verify_type("the result of a unary function", self.result.type, self.operand.type)

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
        shape = broadcast_shape([left.type, right.type])
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
        element = element_name(self.left.type)
        _verify_element(self.function.data, element, functions.BINARY_ELEMENTS[self.function.data])
        shape = broadcast_shape([self.left.type, self.right.type])
        verify_type("the result of a binary function", self.result.type, tile_type(*shape, element))

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
        shape = broadcast_shape([left.type, right.type])
        super().__init__(
            operands=[left, right],
            attributes={"function": StringAttr(function)},
            result_types=[tile_type(*shape, "i1")],
        )

    def verify_(self) -> None:
        if self.function.data not in functions.COMPARE:
            raise VerifyException(f"unknown comparison {self.function.data!r}; known: {', '.join(functions.COMPARE)}")
        if element_name(self.left.type) != element_name(self.right.type):
            raise VerifyException("the operands of a comparison have one element type; cast one of them")
        _verify_element(self.function.data, element_name(self.left.type), functions.NUMBERS)
        shape = broadcast_shape([self.left.type, self.right.type])
        verify_type("the result of a comparison", self.result.type, tile_type(*shape, "i1"))

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
        shape = broadcast_shape([condition.type, left.type, right.type])
        super().__init__(operands=[condition, left, right], result_types=[tile_type(*shape, element_name(left.type))])

    def verify_(self) -> None:
        if element_name(self.condition.type) != "i1":
            raise VerifyException(f"the condition of a select is a tile of i1; found {self.condition.type}")
        if element_name(self.left.type) != element_name(self.right.type):
            raise VerifyException("the sides of a select have one element type; cast one of them")
        shape = broadcast_shape([self.condition.type, self.left.type, self.right.type])
        verify_type("the result of a select", self.result.type, tile_type(*shape, element_name(self.left.type)))

    def evaluate(self, condition: Array, left: Array, right: Array) -> tuple[Array]:
        return (np.where(condition, left, right),)


@irdl_op_definition
class MultiplyAddOp(TileOperation):
    """`x * y + z`, rounded once; operands broadcast. Only kernels for devices have it."""

    name = "tile.multiply_add"
    x = operand_def(VectorType)
    y = operand_def(VectorType)
    z = operand_def(VectorType)
    result = result_def(VectorType)

    def __init__(self, x: SSAValue, y: SSAValue, z: SSAValue):
        shape = broadcast_shape([x.type, y.type, z.type])
        super().__init__(operands=[x, y, z], result_types=[tile_type(*shape, "f32")])

    def verify_(self) -> None:
        if any(element_name(each.type) != "f32" for each in self.operands):
            raise VerifyException("a multiplication and addition is of tiles of f32; cast the operands")
        shape = broadcast_shape([each.type for each in self.operands])
        verify_type("the result of a multiplication and addition", self.result.type, tile_type(*shape, "f32"))

    def evaluate(self, x: Array, y: Array, z: Array) -> tuple[Array]:
        # The product of two f32 is exact in f64; the sum is rounded there first, which hardly ever matters.
        return ((x.astype(np.float64) * y + z).astype(np.float32),)


CASTS = frozenset(
    [
        ("f32", "bf16"),
        ("bf16", "f32"),
        ("i32", "f32"),
        ("f32", "i32"),
        ("f32", "i8"),
        ("f32", "u8"),
        ("i8", "i32"),
        ("i8", "f32"),
        ("u8", "f32"),
        ("i1", "f32"),
        ("i32", "i1"),
    ]
)

BLOCK_CASTS = frozenset([("u8", "i8"), ("f32", "f16"), ("f16", "f32"), ("f32", "f8_e4m3")])
"""Of kernels for devices besides."""


@irdl_op_definition
class CastOp(TileOperation):
    """Converts each element: f32 to bf16 rounds to nearest even; f32 to i32, i8 or u8 expects values already integral
    and in range; u8 to i8 takes 128 away."""

    name = "tile.cast"
    operand = operand_def(VectorType)
    result = result_def(VectorType)

    def __init__(self, operand: SSAValue, element: str):
        super().__init__(operands=[operand], result_types=[tile_type(*shape_of(operand.type), element)])

    def verify_(self) -> None:
        pair = (element_name(self.operand.type), element_name(self.result.type))
        if pair not in CASTS and pair not in BLOCK_CASTS:
            raise VerifyException(f"no cast from {pair[0]} to {pair[1]}")
        verify_type("the result of a cast", self.result.type, tile_type(*shape_of(self.operand.type), pair[1]))

    def evaluate(self, operand: Array) -> tuple[Array]:
        to = element_name(self.result.type)
        if to == "bf16":
            return (round_to_bfloat16(operand),)
        if to == "f8_e4m3":
            return (round_to_float8(operand),)
        if operand.dtype == np.uint8 and to == "i8":
            return ((operand ^ np.uint8(128)).view(np.int8),)
        with np.errstate(all="ignore"):
            return (operand.astype(numpy_dtype(to)),)


@irdl_op_definition
class ColumnsOp(TileOperation):
    """Some columns of a tile: `first`, `first + step`, and so on. Only kernels for processors have it."""

    name = "tile.columns"
    operand = operand_def(VectorType)
    first = attr_def(IntegerAttr)
    step = attr_def(IntegerAttr)
    result = result_def(VectorType)

    def __init__(self, operand: SSAValue, first: int, count: int, step: int = 1):
        super().__init__(
            operands=[operand],
            attributes={"first": integer(first), "step": integer(step)},
            result_types=[tile_type(shape_of(operand.type)[0], count, element_name(operand.type))],
        )

    def verify_(self) -> None:
        (rows, width), first, step = shape_of(self.operand.type), self.first.value.data, self.step.value.data
        count = shape_of(self.result.type)[1]
        verify_type("some columns of a tile", self.result.type, tile_type(rows, count, element_name(self.operand.type)))
        if element_name(self.operand.type) == "u4":
            raise VerifyException("a tile of u4 is the right operand of a dot, and nothing else")
        if first < 0 or step < 1 or first + (count - 1) * step >= width:
            raise VerifyException(f"columns {first} + {step} * 0..{count - 1} do not lie in a tile of {width}")

    def evaluate(self, operand: Array) -> tuple[Array]:
        first, step, count = self.first.value.data, self.step.value.data, shape_of(self.result.type)[1]
        return (operand[:, first : first + (count - 1) * step + 1 : step],)


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
        element = element_name(self.operand.type)
        _verify_element(self.function.data, element, functions.REDUCE_ELEMENTS[self.function.data])
        verify_type(
            "the result of a reduction", self.result.type, tile_type(shape_of(self.operand.type)[0], 1, element)
        )

    def evaluate(self, operand: Array) -> tuple[Array]:
        return (functions.reduce_columns(self.function.data, operand),)


@irdl_op_definition
class DotOp(TileOperation):
    """accumulator + left @ right, over k ascending for each element: f32·f32 and f32·bf16 by fused multiply-add in
    f32, bf16·bf16 exact products summed in f32, i8·u8, u8·i8 and i8·u4 exact in i32.

    A right operand from panels takes all pairs but f32·bf16, with any left operand if `tile.load_panels` gives it (and
    it alone takes u8·i8), and with one loaded with lane_step 1 if `tile.load_packed` does; one from `tile.load_block`
    takes all pairs and any left operand; any other right operand takes a left of f32."""

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
        ("i8", "u4"): "i32",
    }
    BLOCK_ELEMENTS: ClassVar = {("i8", "i8"): "i32", ("f16", "f16"): "f32", ("f8_e4m3", "f8_e4m3"): "f32"}
    """With a right operand from `tile.load_block` besides."""
    PANELS_ELEMENTS: ClassVar = {("u8", "i8"): "i32"}
    """With a right operand from `tile.load_panels` besides."""

    def __init__(self, left: SSAValue, right: SSAValue, accumulator: SSAValue):
        super().__init__(operands=[left, right, accumulator], result_types=[accumulator.type])

    def verify_(self) -> None:
        (m, k), (k2, n) = shape_of(self.left.type), shape_of(self.right.type)
        if k != k2 or shape_of(self.accumulator.type) != (m, n) or self.result.type != self.accumulator.type:
            raise VerifyException(
                f"dot of {self.left.type} and {self.right.type} into {self.accumulator.type} does not fit"
            )
        pair = (element_name(self.left.type), element_name(self.right.type))
        of_block = _comes_from_block(self.right)
        known = {**self.ELEMENTS, **self.BLOCK_ELEMENTS} if of_block else dict(self.ELEMENTS)
        if isinstance(self.right.owner, LoadPanelsOp):
            known |= self.PANELS_ELEMENTS
        if known.get(pair) != element_name(self.accumulator.type):
            raise VerifyException(f"no dot of {pair[0]} and {pair[1]} into {element_name(self.accumulator.type)}")
        if of_block:
            return
        if not isinstance(self.right.owner, LoadPackedOp | LoadPanelsOp):
            if pair[0] != "f32":
                raise VerifyException(f"a dot of {pair[0]} and {pair[1]} takes its right operand from panels")
        elif pair == ("f32", "bf16"):
            raise VerifyException("a dot of f32 with panels of bf16 is not defined; round the left operand")
        elif isinstance(self.right.owner, LoadPackedOp) and not (
            isinstance(self.left.owner, LoadOp) and self.left.owner.lane_step.value.data == 1
        ):
            raise VerifyException("the left operand of a dot with panels is loaded with lane_step 1")

    def evaluate(self, left: Array, right: Array, accumulator: Array) -> tuple[Array]:
        if accumulator.dtype == np.int32:
            return (accumulator + left.astype(np.int32) @ right.astype(np.int32),)
        total = accumulator.astype(np.float64) + left.astype(np.float64) @ right.astype(np.float64)
        return (total.astype(np.float32),)


def _comes_from_block(value: SSAValue) -> bool:
    owner = value.owner
    if isinstance(owner, SelectOp):
        return _comes_from_block(owner.left)
    return isinstance(owner, LoadBlockOp | FullOp) or (
        isinstance(owner, CastOp | TransposeOp) and _comes_from_block(owner.operand)
    )


def _verify_element(function: str, element: str, allowed: tuple[str, ...]) -> None:
    if element not in allowed:
        raise VerifyException(f"{function} is not defined on {element}, only on {' and '.join(allowed)}")
