"""Passes that recognise functions of one number that a model spells out, and products with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tessera_compiler.graph.base import GraphOp
from tessera_compiler.graph.dialect import (
    AddOp,
    ErfOp,
    GatedOp,
    GeluOp,
    GeluTanhOp,
    MulOp,
    PowOp,
    SigmoidOp,
    SiluOp,
    SoftcapOp,
    SquareOp,
    TanhOp,
)
from tessera_compiler.graph.passes.rewriting import (
    Site,
    close,
    either_way,
    is_static,
    made_by,
    rewrite,
    scalar_of,
)
from tessera_compiler.graph.types import type_of

_TANH_FACTOR = math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class RecogniseActivations:
    """`x * sigmoid(x) --> silu(x)`; `x / 2 * (1 + erf(x / sqrt(2))) --> gelu(x)`;

    `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) --> gelu_tanh(x)`, in any order of the factors;
    `tanh(x * (1 / c)) * c --> softcap(x) {cap = c}`.
    """

    def apply(self, module: ModuleOp) -> None:
        rewrite(module, [(MulOp, _silu), (MulOp, _gelu), (MulOp, _softcap)])


@dataclass(frozen=True)
class RecogniseGated:
    """`f(a) * b` or `b * f(a)` --> `gated(a, b) {activation = f}`, for each activation `f` in `activations`."""

    activations: tuple[str, ...] = ("silu", "gelu_tanh", "gelu", "relu")

    def apply(self, module: ModuleOp) -> None:
        rewrite(module, [(MulOp, self._gated)])

    def _gated(self, op: MulOp, site: Site) -> SSAValue | None:
        if op.a.type != op.b.type or is_static(op.a):
            return None
        for active, up in either_way(op):
            name = active.owner.name.removeprefix("graph.") if isinstance(active.owner, GraphOp) else ""
            if name in self.activations and active.owner != up.owner and active.has_one_use():
                assert isinstance(active.owner, GraphOp)
                return site.make(GatedOp, active.owner.operands[0], up, activation=name)
        return None


def _silu(op: MulOp, site: Site) -> SSAValue | None:
    for x, gate in either_way(op):
        inner = made_by(gate, SigmoidOp)
        if inner is not None and inner.x == x:
            return site.make(SiluOp, x)
    return None


def _factors(value: SSAValue) -> tuple[list[SSAValue], float]:
    """A product as its factors that are not scalars, and the product of its scalars."""
    op = made_by(value, MulOp)
    if op is None:
        scalar = scalar_of(value)
        return ([value], 1.0) if scalar is None else ([], scalar)
    (left, a), (right, b) = _factors(op.a), _factors(op.b)
    return left + right, a * b


def _one_plus(value: SSAValue) -> SSAValue | None:
    """`y` of `y + 1`."""
    op = made_by(value, AddOp)
    return op.a if op is not None and scalar_of(op.b) == 1 else None


def _gelu(op: MulOp, site: Site) -> SSAValue | None:
    factors, scale = _factors(op.result)
    if len(factors) != 2 or not close(scale, 0.5) or type_of(factors[0]) != type_of(factors[1]):
        return None
    for x, other in (factors, factors[::-1]):
        bent = _one_plus(other)
        if bent is None:
            continue
        tanh, erf = made_by(bent, TanhOp), made_by(bent, ErfOp)
        if tanh is not None and _is_tanh_argument(tanh.x, x):
            return site.make(GeluTanhOp, x)
        if erf is not None:
            inner, factor = _factors(erf.x)
            if inner == [x] and close(factor, 1 / math.sqrt(2)):
                return site.make(GeluOp, x)
    return None


def _is_tanh_argument(value: SSAValue, x: SSAValue) -> bool:
    """Whether the value is `sqrt(2 / pi) * (x + 0.044715 x^3)`, perhaps as `sqrt(2 / pi) * x * (1 + 0.044715 x^2)`."""
    factors, scale = _factors(value)
    if not close(scale, _TANH_FACTOR):
        return False
    if len(factors) == 1:
        total = made_by(factors[0], AddOp)
        return total is not None and any(first == x and _is_power(second, x, 3) for first, second in either_way(total))
    return len(factors) == 2 and any(
        first == x and (square := _one_plus(second)) is not None and _is_power(square, x, 2)
        for first, second in (factors, factors[::-1])
    )


def _is_power(value: SSAValue, x: SSAValue, power: int) -> bool:
    """Whether the value is `0.044715 x^power`."""
    factors, scale = _factors(value)
    total = 0
    for factor in factors:
        square, raised = made_by(factor, SquareOp), made_by(factor, PowOp)
        if factor == x:
            total += 1
        elif square is not None and square.x == x:
            total += 2
        elif raised is not None and raised.a == x and scalar_of(raised.b) in (2, 3):
            total += int(scalar_of(raised.b) or 0)
        else:
            return False
    return total == power and close(scale, 0.044715)


def _softcap(op: MulOp, site: Site) -> SSAValue | None:
    cap, tanh = scalar_of(op.b), made_by(op.a, TanhOp)
    inner = made_by(tanh.x, MulOp) if tanh is not None else None
    shrink = scalar_of(inner.b) if inner is not None else None
    if cap is None or inner is None or shrink is None or not close(cap * shrink, 1) or inner.a.type != op.result.type:
        return None
    return site.make(SoftcapOp, inner.a, cap=cap)
