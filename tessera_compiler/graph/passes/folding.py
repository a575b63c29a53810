"""Passes that compute what is known when the model is compiled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tessera_compiler.graph.base import GraphOp
from tessera_compiler.graph.dialect import (
    AddOp,
    ConstantOp,
    DivOp,
    EmbeddingOp,
    MulOp,
    NegOp,
    PowOp,
    ReciprocalOp,
    RsqrtOp,
    SqrtOp,
    SquareOp,
    SubOp,
    TransposeOp,
    WeightOp,
)
from tessera_compiler.graph.passes.rewriting import (
    Site,
    constant_of,
    is_static,
    made_by,
    rewrite,
    scalar_of,
)
from tessera_compiler.graph.types import I32, type_of


@dataclass(frozen=True)
class FoldConstants:
    """`op(constant, …)` --> `constant`, if the result has at most `max_elements` elements."""

    max_elements: int = 1 << 22

    def apply(self, module: ModuleOp) -> None:
        rewrite(module, [(GraphOp, self._fold)])

    def _fold(self, op: GraphOp, site: Site) -> SSAValue | None:
        if isinstance(op, (ConstantOp, WeightOp)) or len(op.results) != 1 or not is_static(op.results[0]):
            return None
        arrays = [constant_of(operand) for operand in op.operands]
        if math.prod(type_of(op.results[0]).get_shape()) > self.max_elements:
            return None
        present = [array for array in arrays if array is not None]
        if len(present) != len(arrays):
            return None
        (result,) = op.evaluate(*present)
        # Constants are finite numbers; what gives anything else stays an op.
        return None if result.dtype == np.bool_ or not np.isfinite(result).all() else site.constant(result)


@dataclass(frozen=True)
class FoldScalars:
    """Arithmetic with scalars, each rule until none applies:

    `c + x --> x + c`, `w * x --> x * w` (what has no rows stands right);
    `x + 0, x - 0, x * 1, x / 1, x ^ 1 --> x`; `x * -1 --> -x`; `-(-x) --> x`;
    `x / c --> x * (1 / c)`; `x / y --> x * reciprocal(y)` if `y` is a square root; `1 / x --> reciprocal(x)`;
    `(x * a) * b --> x * (a b)`; on integers `(x + a) + b --> x + (a + b)` and `x - a --> x + (-a)`;
    `x ^ 2, x * x --> square(x)`; `x ^ 0.5 --> sqrt(x)`; `x ^ -0.5, reciprocal(sqrt(x)) --> rsqrt(x)`.
    """

    def apply(self, module: ModuleOp) -> None:
        rewrite(
            module,
            [
                (AddOp, _static_right),
                (MulOp, _static_right),
                (AddOp, _add),
                (SubOp, _subtract),
                (MulOp, _multiply),
                (DivOp, _divide),
                (PowOp, _power),
                (NegOp, _negate),
                (ReciprocalOp, _reciprocal),
            ],
        )


def _static_right(op: GraphOp, site: Site) -> SSAValue | None:
    a, b = op.operands
    constant_left = constant_of(a) is not None and constant_of(b) is None
    if constant_left or (is_static(a) and not is_static(b)):
        return site.make(type(op), b, a)
    return None


def _kept(op: GraphOp, x: SSAValue) -> SSAValue | None:
    """`x` in place of the op's result, if it has the same type."""
    return x if x.type == op.results[0].type else None


def _is_integer(value: SSAValue) -> bool:
    return type_of(value).get_element_type() == I32


def _number(like: SSAValue, value: float) -> Any:
    return np.int32(value) if _is_integer(like) else np.float32(value)


def _add(op: AddOp, site: Site) -> SSAValue | None:
    x, scalar = op.a, scalar_of(op.b)
    if scalar is None:
        return None
    if scalar == 0:
        return _kept(op, x)
    inner = made_by(x, AddOp)
    inner_scalar = scalar_of(inner.b) if inner is not None and _is_integer(x) else None
    if inner_scalar is not None and inner is not None and inner.a.type == x.type:
        return site.make(AddOp, inner.a, site.constant(_number(x, inner_scalar + scalar)))
    return None


def _subtract(op: SubOp, site: Site) -> SSAValue | None:
    scalar = scalar_of(op.b)
    if scalar is None:
        return None
    if scalar == 0:
        return _kept(op, op.a)
    if _is_integer(op.a):
        return site.make(AddOp, op.a, site.constant(_number(op.a, -scalar)))
    return None


def _multiply(op: MulOp, site: Site) -> SSAValue | None:
    if op.a == op.b and not _is_integer(op.a):
        return site.make(SquareOp, op.a)
    scalar = scalar_of(op.b)
    if scalar is None:
        return None
    if scalar == 1:
        return _kept(op, op.a)
    if scalar == -1 and op.a.type == op.result.type and not _is_integer(op.a):
        return site.make(NegOp, op.a)
    inner = made_by(op.a, MulOp)
    inner_scalar = scalar_of(inner.b) if inner is not None else None
    if inner is not None and inner_scalar is not None and inner.a.type == op.a.type:
        return site.make(MulOp, inner.a, site.constant(_number(op.a, inner_scalar * scalar)))
    return None


def _divide(op: DivOp, site: Site) -> SSAValue | None:
    scalar = scalar_of(op.b)
    if scalar is not None and scalar != 0:
        return _kept(op, op.a) if scalar == 1 else site.make(MulOp, op.a, site.constant(np.float32(1 / scalar)))
    if scalar_of(op.a) == 1 and op.b.type == op.result.type:
        return site.make(ReciprocalOp, op.b)
    if made_by(op.b, SqrtOp) is not None:
        return site.make(MulOp, op.a, site.make(ReciprocalOp, op.b))
    return None


def _power(op: PowOp, site: Site) -> SSAValue | None:
    exponent = scalar_of(op.b)
    if exponent is None or op.a.type != op.result.type or _is_integer(op.a):
        return None
    if exponent == 1:
        return op.a
    simple: dict[float, type[GraphOp]] = {2: SquareOp, 0.5: SqrtOp, -0.5: RsqrtOp, -1: ReciprocalOp}
    return site.make(simple[exponent], op.a) if exponent in simple else None


def _negate(op: NegOp, site: Site) -> SSAValue | None:
    inner = made_by(op.x, NegOp)
    return None if inner is None else inner.x


def _reciprocal(op: ReciprocalOp, site: Site) -> SSAValue | None:
    inner = made_by(op.x, SqrtOp)
    return None if inner is None else site.make(RsqrtOp, inner.x)


@dataclass(frozen=True)
class FoldIntoLeaves:
    """What an op does to a leaf's operand, the leaf does itself:

    `transpose(weight) --> weight {transposed}` and back;
    `embedding(table, ids + c) --> embedding(table, ids) {offset = c}`.
    """

    def apply(self, module: ModuleOp) -> None:
        rewrite(module, [(TransposeOp, _transpose_weight), (EmbeddingOp, _offset_embedding)])


def _transpose_weight(op: TransposeOp, site: Site) -> SSAValue | None:
    weight = made_by(op.x, WeightOp)
    if weight is None or op.values["permutation"] != (1, 0) or len(weight.sources) != 1:
        return None
    values = weight.values
    values.pop("module", None)
    values["transposed"] = not values.get("transposed", False)
    return site.make(WeightOp, result=type_of(op.result), **values)


def _offset_embedding(op: EmbeddingOp, site: Site) -> SSAValue | None:
    shifted = made_by(op.ids, AddOp)
    scalar = scalar_of(shifted.b) if shifted is not None else None
    if shifted is None or scalar is None or shifted.a.type != op.ids.type:
        return None
    return site.make(EmbeddingOp, op.table, shifted.a, offset=op.offset.value.data + int(scalar))
