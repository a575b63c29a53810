"""Finds linear maps whose rows are heads from there on: queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping

from xdsl.ir import Block, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.elementwise import BinaryOp
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.heads import Heads, columns_together, heads_of
from tessera_compiler.schedule.views import VIEW_OPERATIONS


def join_heads(block: Block) -> dict[Operation, Operation]:
    """The ops that a product's kernel takes in head by head, each with the product: norms of heads, rotary embeddings
    and writes to the KV cache.

    Every use of such a product's row is a head's. Heads that go elsewhere as the product made them get a copy, so that
    no row is stored. What an op needs besides its head is computed before the product.
    """
    place: dict[Operation, int] = {op: number for number, op in enumerate(block.ops)}
    joined: dict[Operation, Operation] = {}
    for product in list(block.ops):
        if not isinstance(product, schedule.MatmulOp):
            continue
        heads = _heads_after(product)
        if heads is None or columns_together(heads) is None:
            continue
        members = [op for each in heads for op in _members(each.value, place, place[product])]
        if not members:
            continue
        for each in heads:
            if not _members(each.value, place, place[product]):
                members.append(_copied(each.value))
        joined.update(dict.fromkeys(members, product))
    return joined


def _heads_after(product: schedule.MatmulOp) -> list[Heads] | None:
    """The heads that a product's row is cut into, if it has no other use; what is added to all of it comes before."""
    row: SSAValue = product.result
    while (following := _bias(row)) is not None:
        row = following
    found = []
    for use in row.uses:
        views = [use.operation]
        if isinstance(use.operation, graph.SliceOp):
            views = [each.operation for each in use.operation.result.uses]
        for view in views:
            heads = heads_of(view.results[0]) if isinstance(view, graph.ReshapeOp) else None
            if heads is None or heads.row is not row:
                return None
            found.append(heads)
    return sorted(found, key=lambda heads: heads.first) or None


def _bias(row: SSAValue) -> SSAValue | None:
    """The row with something added or multiplied that is the same for all rows, if that is all it is used for."""
    uses = list(row.uses)
    if len(uses) != 1 or not isinstance(uses[0].operation, BinaryOp):
        return None
    op = uses[0].operation
    others = [operand for operand in op.operands if operand is not row]
    if len(others) != 1 or rows_of(type_of(others[0])) is not None or type_of(op.results[0]) != type_of(row):
        return None
    return op.results[0]


def _members(value: SSAValue, place: Mapping[Operation, int], product: int) -> list[Operation]:
    """The ops that follow some heads and join their product, which stands in place `product` of the block."""
    found: list[Operation] = []
    for kind in (graph.RmsNormOp, graph.RopeOp):
        uses = list(value.uses)
        if len(uses) == 1 and isinstance(uses[0].operation, kind) and uses[0].index == 0:
            op = uses[0].operation
            if all(_is_there(operand, place, product) for operand in op.operands[1:]):
                found.append(op)
                value = op.results[0]
    found += [use.operation for use in value.uses if isinstance(use.operation, schedule.CacheWriteOp)]
    return found


def _is_there(value: SSAValue, place: Mapping[Operation, int], product: int) -> bool:
    """Whether a value is a weight, or made before the product as it is needed."""
    owner = value.owner
    if isinstance(owner, schedule.WeightOp):
        return True
    if rows_of(type_of(value)) is None or isinstance(owner, VIEW_OPERATIONS):
        return False
    return isinstance(owner, Block) or place[owner] < product


def _copied(value: SSAValue) -> Operation:
    """A copy of some heads, put in their place wherever they are used."""
    view = value.owner
    assert isinstance(view, graph.ReshapeOp)
    copy = schedule.CopyOp.make(value, module=view.attributes.get("module"))
    value.replace_uses_with_if(copy.result, lambda use: use.operation is not copy)
    Rewriter.insert_op(copy, InsertPoint.after(view))
    return copy
