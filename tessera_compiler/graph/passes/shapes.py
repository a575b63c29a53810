"""A pass that removes moves of elements which cancel out."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tessera_compiler.graph.dialect import BroadcastOp, CastOp, ConcatOp, ReshapeOp, SliceOp, TransposeOp
from tessera_compiler.graph.passes.rewriting import Site, made_by, rewrite
from tessera_compiler.graph.types import shape_of, type_of


@dataclass(frozen=True)
class SimplifyShapes:
    """Each rule until none applies:

    `cast`, `reshape`, `broadcast`, `slice`, `transpose`, `concat` that change nothing --> their operand;
    `reshape(reshape(x)) --> reshape(x)`; `transpose(transpose(x)) --> transpose(x)`; `slice(slice(x)) --> slice(x)`;
    `slice(concat(…, x, …)) --> slice(x)` if all of it lies in `x`.
    """

    def apply(self, module: ModuleOp) -> None:
        rewrite(
            module,
            [
                (CastOp, _same_type),
                (ReshapeOp, _same_type),
                (BroadcastOp, _same_type),
                (SliceOp, _same_type),
                (ReshapeOp, _reshape_twice),
                (TransposeOp, _transpose),
                (SliceOp, _slice_twice),
                (SliceOp, _slice_of_concat),
                (ConcatOp, _concat_one),
            ],
        )


def _same_type(op: CastOp | ReshapeOp | BroadcastOp | SliceOp, site: Site) -> SSAValue | None:
    return op.x if op.x.type == op.result.type else None


def _reshape_twice(op: ReshapeOp, site: Site) -> SSAValue | None:
    inner = made_by(op.x, ReshapeOp)
    return None if inner is None else site.make(ReshapeOp, inner.x, result=type_of(op.result))


def _transpose(op: TransposeOp, site: Site) -> SSAValue | None:
    order = op.values["permutation"]
    if order == tuple(range(len(order))):
        return op.x
    inner = made_by(op.x, TransposeOp)
    if inner is None:
        return None
    first = inner.values["permutation"]
    return site.make(TransposeOp, inner.x, permutation=tuple(first[axis] for axis in order))


def _slice_twice(op: SliceOp, site: Site) -> SSAValue | None:
    inner = made_by(op.x, SliceOp)
    if inner is None or inner.values["axis"] != op.values["axis"]:
        return None
    outer, first = op.values, inner.values
    start = first["start"] + outer["start"] * first["step"]
    return site.make(
        SliceOp, inner.x, axis=outer["axis"], start=start, size=outer["size"], step=outer["step"] * first["step"]
    )


def _slice_of_concat(op: SliceOp, site: Site) -> SSAValue | None:
    whole = made_by(op.x, ConcatOp)
    if whole is None or whole.values["axis"] != op.values["axis"]:
        return None
    axis, start, size, step = (op.values[key] for key in ("axis", "start", "size", "step"))
    for part in whole.parts:
        width = shape_of(part)[axis]
        if start >= 0 and start + (size - 1) * step < width:
            return site.make(SliceOp, part, axis=axis, start=start, size=size, step=step)
        start -= width
    return None


def _concat_one(op: ConcatOp, site: Site) -> SSAValue | None:
    return op.parts[0] if len(op.parts) == 1 else None
