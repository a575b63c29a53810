"""A pass that recognises norms that a model spells out."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tessera_compiler.graph.dialect import (
    AddOp,
    LayerNormOp,
    MulOp,
    ReduceMeanOp,
    ReduceSumOp,
    ReshapeOp,
    RmsNormOp,
    RsqrtOp,
    SquareOp,
    SubOp,
)
from tessera_compiler.graph.passes.rewriting import Site, close, either_way, is_static, made_by, rewrite, scalar_of
from tessera_compiler.graph.types import shape_of, tensor


@dataclass(frozen=True)
class RecogniseNorms:
    """Each rule until none applies, whichever factor stands left:

    `reduce_sum(x) * (1 / N) --> reduce_mean(x)`, with N the size of the last axis;
    `x * rsqrt(reduce_mean(square(x)) + eps) --> rms_norm(x)`;
    `rms_norm(x) * w --> rms_norm(x, w)`; `rms_norm(x, w + c) --> rms_norm(x, w) {weight_offset = c}`;
    `rms_norm(x - reduce_mean(x), …) --> layer_norm(x, …)`, which gains weight, offset and bias in the same way.
    """

    def apply(self, module: ModuleOp) -> None:
        rewrite(
            module,
            [
                (MulOp, _mean),
                (MulOp, _rms_norm),
                (RmsNormOp, _layer_norm),
                (MulOp, _weight),
                (RmsNormOp, _offset),
                (LayerNormOp, _offset),
                (AddOp, _bias),
            ],
        )


def _flat(value: SSAValue) -> SSAValue:
    """The value before reshapes that only add or drop an axis of size 1 at the end."""
    op = made_by(value, ReshapeOp)
    while op is not None and _without_last(shape_of(op.x)) == _without_last(shape_of(value)):
        value = op.x
        op = made_by(value, ReshapeOp)
    return value


def _without_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:-1] if shape and shape[-1] == 1 else shape


def _mean(op: MulOp, site: Site) -> SSAValue | None:
    total, scalar = made_by(op.a, ReduceSumOp), scalar_of(op.b)
    if total is None or scalar is None or not close(scalar * shape_of(total.x)[-1], 1):
        return None
    return site.make(ReduceMeanOp, total.x)


def _rms_norm(op: MulOp, site: Site) -> SSAValue | None:
    for x, factor in either_way(op):
        root = made_by(_flat(factor), RsqrtOp)
        total = made_by(_flat(root.x), AddOp) if root is not None else None
        eps = scalar_of(total.b) if total is not None else None
        if total is None or eps is None or x.type != op.result.type:
            continue
        mean = made_by(_flat(total.a), ReduceMeanOp)
        square = made_by(mean.x, SquareOp) if mean is not None else None
        # The factor must be one number per row of x, not something of its shape.
        if square is not None and square.x == x and shape_of(factor)[-1] == 1:
            return site.make(RmsNormOp, x, eps=eps, weight_offset=0.0)
    return None


def _layer_norm(op: RmsNormOp, site: Site) -> SSAValue | None:
    centred = made_by(op.x, SubOp)
    mean = made_by(_flat(centred.b), ReduceMeanOp) if centred is not None else None
    if centred is None or mean is None or mean.x != centred.a:
        return None
    values = op.values
    return site.make(LayerNormOp, centred.a, op.weight, eps=values["eps"], weight_offset=values["weight_offset"])


def _weight(op: MulOp, site: Site) -> SSAValue | None:
    for normed, weight in either_way(op):
        norm = made_by(normed, RmsNormOp) or made_by(normed, LayerNormOp)
        if norm is None or len(norm.operands) > 1 or not normed.has_one_use():
            continue
        if weight.type == tensor(shape_of(normed)[-1:]):
            return site.make(type(norm), norm.x, weight, eps=norm.eps.value.data, weight_offset=0.0)
    return None


def _offset(op: RmsNormOp | LayerNormOp, site: Site) -> SSAValue | None:
    if len(op.operands) < 2:
        return None
    shifted = made_by(op.operands[1], AddOp)
    scalar = scalar_of(shifted.b) if shifted is not None else None
    if shifted is None or scalar is None or shifted.a.type != op.operands[1].type:
        return None
    offset = op.weight_offset.value.data + scalar
    return site.make(type(op), op.x, shifted.a, *op.operands[2:], eps=op.eps.value.data, weight_offset=offset)


def _bias(op: AddOp, site: Site) -> SSAValue | None:
    norm = made_by(op.a, LayerNormOp)
    if norm is None or len(norm.operands) != 2 or not op.a.has_one_use() or not is_static(op.b):
        return None
    if op.b.type != norm.operands[1].type:
        return None
    eps, offset = norm.eps.value.data, norm.weight_offset.value.data
    return site.make(LayerNormOp, *norm.operands, op.b, eps=eps, weight_offset=offset)
