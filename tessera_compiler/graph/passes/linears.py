"""Passes about linear maps: which are computed together, and for how many rows."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tessera_compiler.graph.base import GraphOp
from tessera_compiler.graph.dialect import (
    AddOp,
    LayerNormOp,
    LinearOp,
    MulOp,
    RmsNormOp,
    SelectRowsOp,
    SliceOp,
    SoftcapOp,
    WeightOp,
)
from tessera_compiler.graph.elementwise import UnaryOp
from tessera_compiler.graph.passes.rewriting import Site, erase, graph_ops, is_static, made_by, rewrite
from tessera_compiler.graph.types import shape_of, tensor


@dataclass(frozen=True)
class SelectRowsEarly:
    """`select_rows(f(x)) --> f(select_rows(x))` for `f` that works on each row alone and has no other use."""

    def apply(self, module: ModuleOp) -> None:
        rewrite(module, [(SelectRowsOp, _select_early)])


def _select_early(op: SelectRowsOp, site: Site) -> SSAValue | None:
    inner = op.x.owner
    if not isinstance(inner, (LinearOp, RmsNormOp, LayerNormOp, UnaryOp, SoftcapOp, AddOp, MulOp)):
        return None
    x, *others = inner.operands
    if not op.x.has_one_use() or is_static(x) or not all(is_static(other) for other in others):
        return None
    selected = site.make(SelectRowsOp, x, op.rows)
    moved = type(inner).make(selected, *others, **inner.values)
    return site.add(moved).results[0]


@dataclass(frozen=True)
class MergeLinears:
    """`linear(x, a); linear(x, b); …` of one parent module --> `y = linear(x, [a, b, …]); slice(y); slice(y); …`

    The merged weight's `sources` are those of the parts. Only linears merge whose weights are used once, lie the same
    way in the checkpoint, and all or none of which have a bias.
    """

    def apply(self, module: ModuleOp) -> None:
        groups: dict[tuple[object, ...], list[LinearOp]] = {}
        for op in graph_ops(module):
            if isinstance(op, LinearOp) and all(_mergeable(weight) for weight in list(op.operands)[1:]):
                weight = op.weight.owner
                assert isinstance(weight, WeightOp)
                parent = "" if op.module is None else op.module.data.rpartition(".")[0]
                groups.setdefault((op.x, parent, weight.transposed is None, op.bias is None), []).append(op)
        for group in groups.values():
            if len(group) > 1:
                _merge(group)


def _mergeable(value: SSAValue) -> bool:
    return made_by(value, WeightOp) is not None and value.has_one_use()


def _merge(group: list[LinearOp]) -> None:
    """Replaces linears of one operand by one linear and slices of its result."""
    site = Site(group[0])
    weights = [merged_weight(site, [op.operands[place] for op in group]) for place in range(1, len(group[0].operands))]
    whole = site.make(LinearOp, group[0].x, *weights)
    axis, start = len(shape_of(whole)) - 1, 0
    for op in group:
        size = shape_of(op.result)[-1]
        part = SliceOp.make(whole, axis=axis, start=start, size=size, step=1, module=op.values.get("module"))
        # All slices stand behind the merged linear, because later linears of the group may be used by earlier ops.
        site.add(part)
        op.result.replace_all_uses_with(part.result)
        start += size
    for op in group:
        owners = [operand.owner for operand in list(op.operands)[1:]]
        erase(op)
        for owner in owners:
            assert isinstance(owner, GraphOp)
            erase(owner)


def merged_weight(site: Site, parts: list[SSAValue]) -> SSAValue:
    """One weight that is several, concatenated along axis 0, named after them: `…attn.{q_proj+k_proj}.weight`."""
    ops = [part.owner for part in parts]
    weights = [op for op in ops if isinstance(op, WeightOp)]
    names = [weight.weight_name.data.split(".") for weight in weights]
    prefix = _common_start(names)
    tails = [name[len(prefix) :] for name in names]
    suffix = _common_start([tail[::-1] for tail in tails])[::-1]
    middle = "+".join(".".join(tail[: len(tail) - len(suffix)]) for tail in tails)
    rows = sum(shape_of(part)[0] for part in parts)
    sources = tuple(source.data for weight in weights for source in weight.sources)
    transposed = weights[0].transposed is not None
    return site.make(
        WeightOp,
        result=tensor((rows, *shape_of(parts[0])[1:])),
        name=".".join([*prefix, middle, *suffix]),
        sources=sources,
        transposed=transposed,
    )


def _common_start(lists: list[list[str]]) -> list[str]:
    """What all lists begin with."""
    same = [len(set(column)) == 1 for column in zip(*lists, strict=False)]
    return lists[0][: same.index(False) if False in same else len(same)]
