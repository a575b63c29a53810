"""Ops that work on each element alone: arithmetic, functions, comparisons, choices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
from xdsl.dialects.builtin import FloatAttr, StringAttr, TensorType
from xdsl.ir import Attribute
from xdsl.irdl import attr_def, irdl_op_definition, operand_def, result_def
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.graph.base import Array, GraphOp
from tessera_compiler.graph.types import F32, I1, Tensor, broadcast_shapes, numpy_type, rows_of, tensor, type_of


def erf(x: Array) -> Array:
    """The error function, rounded once from double precision."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x), dtype=np.float32)


def sigmoid(x: Array) -> Array:
    # The exponent is kept negative: exp of a large positive number would overflow.
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + small), small / (1 + small)), dtype=np.float32)


def gelu_tanh(x: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)), dtype=np.float32)


Function: TypeAlias = Callable[[Array, Array], Array]

FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "neg": lambda x: -x,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * np.float32(0.5) * (1 + erf(x / np.float32(math.sqrt(2)))),
    "gelu_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "square": lambda x: x * x,
    "abs": np.abs,
    "sin": np.sin,
    "cos": np.cos,
    "erf": erf,
    "expm1": np.expm1,
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "floor": np.floor,
}
"""The functions of one number, by the name of the op (and of the activation of `gated`) that applies them."""


class UnaryOp(GraphOp):
    """`function(x)` of each element; the result has the type of `x`, which is f32."""

    x = operand_def(TensorType)
    result = result_def(TensorType)
    ELEMENT: ClassVar[Attribute] = F32

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        if types[0].get_element_type() != cls.ELEMENT:
            raise VerifyException(f"the operand must hold {cls.ELEMENT}; found {types[0]}.")
        return (types[0],)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        (x,) = operands
        return (np.asarray(FUNCTIONS[self.name.removeprefix("graph.")](x), dtype=x.dtype),)


@irdl_op_definition
class NegOp(UnaryOp):
    """`-x`, of each element."""

    name = "graph.neg"


@irdl_op_definition
class ExpOp(UnaryOp):
    """`e^x`, of each element."""

    name = "graph.exp"


@irdl_op_definition
class LogOp(UnaryOp):
    """The natural logarithm, of each element."""

    name = "graph.log"


@irdl_op_definition
class SqrtOp(UnaryOp):
    """The square root, of each element."""

    name = "graph.sqrt"


@irdl_op_definition
class RsqrtOp(UnaryOp):
    """`1 / sqrt(x)`, of each element."""

    name = "graph.rsqrt"


@irdl_op_definition
class ReciprocalOp(UnaryOp):
    """`1 / x`, of each element."""

    name = "graph.reciprocal"


@irdl_op_definition
class TanhOp(UnaryOp):
    """The hyperbolic tangent, of each element."""

    name = "graph.tanh"


@irdl_op_definition
class SigmoidOp(UnaryOp):
    """`1 / (1 + e^-x)`, of each element."""

    name = "graph.sigmoid"


@irdl_op_definition
class SiluOp(UnaryOp):
    """`x * sigmoid(x)`, of each element."""

    name = "graph.silu"


@irdl_op_definition
class GeluOp(UnaryOp):
    """`x / 2 * (1 + erf(x / sqrt(2)))`, of each element."""

    name = "graph.gelu"


@irdl_op_definition
class GeluTanhOp(UnaryOp):
    """`x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`, of each element."""

    name = "graph.gelu_tanh"


@irdl_op_definition
class ReluOp(UnaryOp):
    """`maximum(x, 0)`, of each element."""

    name = "graph.relu"


@irdl_op_definition
class SquareOp(UnaryOp):
    """`x * x`, of each element."""

    name = "graph.square"


@irdl_op_definition
class AbsOp(UnaryOp):
    """The absolute value, of each element."""

    name = "graph.abs"


@irdl_op_definition
class SinOp(UnaryOp):
    """The sine, of each element."""

    name = "graph.sin"


@irdl_op_definition
class CosOp(UnaryOp):
    """The cosine, of each element."""

    name = "graph.cos"


@irdl_op_definition
class ErfOp(UnaryOp):
    """The error function, of each element."""

    name = "graph.erf"


@irdl_op_definition
class Expm1Op(UnaryOp):
    """`e^x - 1`, of each element."""

    name = "graph.expm1"


@irdl_op_definition
class SoftplusOp(UnaryOp):
    """`log(1 + e^x)`, of each element."""

    name = "graph.softplus"


@irdl_op_definition
class FloorOp(UnaryOp):
    """The largest integer not above `x`, of each element."""

    name = "graph.floor"


@irdl_op_definition
class LogicalNotOp(UnaryOp):
    """True where `x` is false."""

    name = "graph.logical_not"
    ELEMENT: ClassVar[Attribute] = I1

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        return (np.logical_not(operands[0]),)


class BinaryOp(GraphOp):
    """`function(a, b)` of each pair of elements, broadcast as NumPy does; both have the same element type."""

    a = operand_def(TensorType)
    b = operand_def(TensorType)
    result = result_def(TensorType)
    FUNCTION: ClassVar[Function]
    BOOLEAN_OPERANDS: ClassVar[bool] = False
    BOOLEAN_RESULT: ClassVar[bool] = False

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        element = types[0].get_element_type()
        if types[1].get_element_type() != element:
            raise VerifyException(f"both operands must have one element type; found {types[0]} and {types[1]}.")
        if (element == I1) != cls.BOOLEAN_OPERANDS:
            raise VerifyException(
                f"the operands must hold {'i1' if cls.BOOLEAN_OPERANDS else 'numbers'}; found {types[0]}."
            )
        shape, rows = broadcast_shapes(*types)
        return (tensor(shape, I1 if cls.BOOLEAN_RESULT else element, rows),)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        a, b = operands
        return (np.asarray(type(self).FUNCTION(a, b), dtype=np.bool_ if self.BOOLEAN_RESULT else a.dtype),)


@irdl_op_definition
class AddOp(BinaryOp):
    """`a + b`."""

    name = "graph.add"
    FUNCTION: ClassVar[Function] = np.add


@irdl_op_definition
class SubOp(BinaryOp):
    """`a - b`."""

    name = "graph.sub"
    FUNCTION: ClassVar[Function] = np.subtract


@irdl_op_definition
class MulOp(BinaryOp):
    """`a * b`."""

    name = "graph.mul"
    FUNCTION: ClassVar[Function] = np.multiply


@irdl_op_definition
class DivOp(BinaryOp):
    """`a / b`."""

    name = "graph.div"
    FUNCTION: ClassVar[Function] = np.divide


@irdl_op_definition
class MaximumOp(BinaryOp):
    """The larger of `a` and `b`."""

    name = "graph.maximum"
    FUNCTION: ClassVar[Function] = np.maximum


@irdl_op_definition
class MinimumOp(BinaryOp):
    """The smaller of `a` and `b`."""

    name = "graph.minimum"
    FUNCTION: ClassVar[Function] = np.minimum


@irdl_op_definition
class PowOp(BinaryOp):
    """`a` to the power of `b`."""

    name = "graph.pow"
    FUNCTION: ClassVar[Function] = np.power


class CompareOp(BinaryOp):
    """A comparison of each pair of elements, broadcast as NumPy does; the result holds i1."""

    BOOLEAN_RESULT: ClassVar[bool] = True


@irdl_op_definition
class LessOp(CompareOp):
    """True where `a < b`."""

    name = "graph.less"
    FUNCTION: ClassVar[Function] = np.less


@irdl_op_definition
class LessEqualOp(CompareOp):
    """True where `a <= b`."""

    name = "graph.less_equal"
    FUNCTION: ClassVar[Function] = np.less_equal


@irdl_op_definition
class GreaterOp(CompareOp):
    """True where `a > b`."""

    name = "graph.greater"
    FUNCTION: ClassVar[Function] = np.greater


@irdl_op_definition
class GreaterEqualOp(CompareOp):
    """True where `a >= b`."""

    name = "graph.greater_equal"
    FUNCTION: ClassVar[Function] = np.greater_equal


@irdl_op_definition
class EqualOp(CompareOp):
    """True where `a == b`."""

    name = "graph.equal"
    FUNCTION: ClassVar[Function] = np.equal


@irdl_op_definition
class NotEqualOp(CompareOp):
    """True where `a != b`."""

    name = "graph.not_equal"
    FUNCTION: ClassVar[Function] = np.not_equal


@irdl_op_definition
class LogicalAndOp(BinaryOp):
    """True where `a` and `b` both are."""

    name = "graph.logical_and"
    FUNCTION: ClassVar[Function] = np.logical_and
    BOOLEAN_OPERANDS: ClassVar[bool] = True
    BOOLEAN_RESULT: ClassVar[bool] = True


@irdl_op_definition
class SelectOp(GraphOp):
    """`a` where `condition` is true, else `b`; all three broadcast as NumPy does."""

    name = "graph.select"
    condition = operand_def(TensorType)
    a = operand_def(TensorType)
    b = operand_def(TensorType)
    result = result_def(TensorType)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        if types[0].get_element_type() != I1 or types[1].get_element_type() != types[2].get_element_type():
            raise VerifyException("the condition must hold i1, and both choices one element type.")
        shape, rows = broadcast_shapes(*types)
        return (tensor(shape, types[1].get_element_type(), rows),)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        return (np.where(*operands),)


@irdl_op_definition
class CastOp(GraphOp):
    """Each element converted to the element type of the result; f32 to i32 cuts off the fraction."""

    name = "graph.cast"
    x = operand_def(TensorType)
    result = result_def(TensorType)
    FREE_RESULT: ClassVar[bool] = True

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        if result is None:
            raise VerifyException("the type of the result must be given.")
        return (tensor(types[0].get_shape(), result.get_element_type(), rows_of(types[0])),)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        return (operands[0].astype(numpy_type(type_of(self.result).get_element_type())),)


@irdl_op_definition
class SoftcapOp(UnaryOp):
    """`cap * tanh(x / cap)`, of each element."""

    name = "graph.softcap"
    cap = attr_def(FloatAttr)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        cap = np.float32(self.cap.value.data)
        return (cap * np.tanh(operands[0] / cap),)


@irdl_op_definition
class GatedOp(BinaryOp):
    """`activation(a) * b` of each pair of elements: the gate is `a`. The activation is one of the ops of one number."""

    name = "graph.gated"
    activation = attr_def(StringAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        if values["activation"] not in FUNCTIONS:
            raise VerifyException(
                f"the activation must be one of {', '.join(FUNCTIONS)}; found {values['activation']!r}."
            )
        if types[0] != types[1] or types[0].get_element_type() != F32:
            raise VerifyException(f"gate and up must have one f32 type; found {types[0]} and {types[1]}.")
        return (types[0],)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        gate, up = operands
        return (np.asarray(FUNCTIONS[self.activation.data](gate) * up, dtype=np.float32),)
