"""Cuts a program into groups, each of which becomes one kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import ReturnOp
from xdsl.ir import Block, BlockArgument, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.elementwise import BinaryOp, CompareOp, UnaryOp
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.types import element_count, rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.passes.heads_of_products import join_heads
from tessera_compiler.schedule.physical import PANEL, padded_rows
from tessera_compiler.schedule.views import VIEW_OPERATIONS, View, row_shape

Space = tuple[str | None, tuple[int, ...]]
"""What a kernel's instances run over: tokens or logit rows, and the axes between them and the last."""

_ELEMENTWISE = (
    UnaryOp,
    BinaryOp,
    CompareOp,
    graph.SelectOp,
    graph.CastOp,
    graph.SoftcapOp,
    graph.GatedOp,
    schedule.RoundOp,
)


@dataclass
class _Group:
    kind: str
    space: Space
    operations: list[Operation] = field(default_factory=list)
    goes_on_by_heads: bool = False
    """Whether nothing joins any more but what was found by `join_heads`."""


@dataclass(frozen=True)
class FormGroups:
    """op; op; … --> group { op; op }; …

    Ops over the same rows are fused along their uses as long as the groups stay in an order that respects every
    dependency. What follows a matmul element by element joins it, be it on parts of its columns (a gate), and so does
    the quantization of its rows. Views (reshape, slice, transpose, broadcast) cost
    nothing: they become part of how a group addresses its inputs. Ops on weights alone are computed again wherever
    they are used.

    With `heads`, a matmul whose rows are nothing but heads from there on takes in their norms, rotary embeddings and
    writes to the KV cache.
    """

    heads: bool = False

    def apply(self, module: ModuleOp) -> None:
        block = entry_function(module).body.block
        _materialize_views(block)
        groups = _assign(block, join_heads(block) if self.heads else {})
        _emit(block, groups)


def is_static(value: SSAValue) -> bool:
    """Whether a value is computed from weights and constants alone (and is not itself one)."""
    return rows_of(type_of(value)) is None and isinstance(value.owner, graph.GraphOp)


def is_leaf(value: SSAValue) -> bool:
    """Whether a value is an input, a weight or a tensor of constants, which a group takes as an input."""
    owner = value.owner
    if isinstance(owner, graph.ConstantOp):
        return element_count(type_of(value)) > 1
    return isinstance(value, BlockArgument) or isinstance(owner, schedule.WeightOp)


def _base(value: SSAValue) -> SSAValue:
    while isinstance(value.owner, VIEW_OPERATIONS) and rows_of(type_of(value)) is not None:
        value = value.owner.operands[0]
    return value


def _view(value: SSAValue) -> View | None:
    owner = value.owner
    if isinstance(owner, VIEW_OPERATIONS):
        inner = _view(owner.operands[0])
        return None if inner is None else inner.through(owner)
    return View.contiguous(row_shape(type_of(value).get_shape()))


def _materialize_views(block: Block) -> None:
    """Puts a copy before every view that strides cannot describe, and wherever a product would need other strides."""
    for op in list(block.ops):
        if (
            isinstance(op, VIEW_OPERATIONS)
            and rows_of(type_of(op.results[0])) is not None
            and _view(op.results[0]) is None
        ):
            _copy_operand(op)
        elif isinstance(op, schedule.MatmulOp):
            view = _view(op.arguments[0])
            assert view is not None, "what comes before has been copied where no strides describe it"
            if view.strides[-1:] != (1,):
                # A product reads the columns of its rows one after the other.
                _copy_operand(op)
    end = block.last_op
    assert isinstance(end, ReturnOp)
    if isinstance(end.operands[0].owner, VIEW_OPERATIONS):
        _copy_operand(end)


def _copy_operand(op: Operation) -> None:
    copy = schedule.CopyOp.make(op.operands[0], module=op.attributes.get("module"))
    Rewriter.insert_op(copy, InsertPoint.before(op))
    op.operands[0] = copy.result


def _space(op: Operation) -> Space:
    value = op.operands[0] if isinstance(op, schedule.CacheWriteOp) else op.results[0]
    type_ = type_of(value)
    return rows_of(type_), row_shape(type_.get_shape())[:-1]


def _assign(block: Block, products: Mapping[Operation, Operation]) -> list[_Group]:
    """The groups in their order. `products` says of ops that belong to the group of a product, to which."""
    groups: list[_Group] = []
    group_of: dict[Operation, int] = {}
    for op in block.ops:
        if isinstance(op, (ReturnOp, schedule.WeightOp, *VIEW_OPERATIONS)) or (
            op.results and _no_kernel(op.results[0])
        ):
            continue
        latest, direct = _latest_producer(op, group_of)
        if op in products:
            index = group_of[products[op]]
            assert index == latest, "what heads need besides themselves is made before the product"
            groups[index].goes_on_by_heads = True
        elif (direct and _may_join(op, groups[latest])) or (latest >= 0 and _may_join_parts(op, groups[latest])):
            index = latest
        else:
            index = len(groups)
            kind = (
                "linear"
                if isinstance(op, schedule.MatmulOp)
                else "attention"
                if isinstance(op, schedule.AttendOp)
                else "rows"
            )
            groups.append(_Group(kind, _space(op)))
        groups[index].operations.append(op)
        group_of[op] = index
    return groups


def _no_kernel(value: SSAValue) -> bool:
    return rows_of(type_of(value)) is None


def _latest_producer(op: Operation, group_of: dict[Operation, int]) -> tuple[int, bool]:
    """The last group that this op needs, and whether it needs of it only values as they are, not views of them."""
    latest, direct = -1, False
    for operand in op.operands:
        base = _base(operand)
        if not isinstance(base.owner, Operation) or base.owner not in group_of:
            continue
        index = group_of[base.owner]
        as_it_is = base is operand and not (isinstance(op, graph.SelectRowsOp) or _is_broadcast_along_rows(op, operand))
        if index > latest:
            latest, direct = index, as_it_is
        elif index == latest:
            direct = direct and as_it_is
    return latest, direct


def _is_broadcast_along_rows(op: Operation, operand: SSAValue) -> bool:
    """Whether an operand has fewer axes between rows and columns than the op's own space."""
    _, prefix = _space(op)
    return row_shape(type_of(operand).get_shape())[:-1] != prefix


def _may_join(op: Operation, group: _Group) -> bool:
    if isinstance(op, schedule.MatmulOp | schedule.AttendOp) or group.kind == "attention" or group.goes_on_by_heads:
        return False
    if group.space != _space(op):
        return False
    if group.kind == "linear" and isinstance(op, schedule.PeaksOp):
        columns = type_of(op.x).get_shape()[-1]
        return op.x.owner in group.operations and padded_rows(columns) % op.group.value.data == 0
    if group.kind == "linear":
        width = type_of(group.operations[-1].results[0]).get_shape()
        own = [operand for operand in op.operands if rows_of(type_of(operand)) is not None]
        return (
            (isinstance(op, _ELEMENTWISE) or (isinstance(op, schedule.QuantizeOp) and _ends_in_groups(op, group)))
            and type_of(op.results[0]).get_shape() == width
            and all(type_of(operand).get_shape() == width and _base(operand) is operand for operand in own)
        )
    return True


def _ends_in_groups(op: schedule.QuantizeOp, group: _Group) -> bool:
    """Whether blocks of whole groups of columns fill the rows that a linear map makes."""
    return op.x.owner in group.operations and type_of(op.x).get_shape()[-1] % op.group.value.data == 0


def _may_join_parts(op: Operation, group: _Group) -> bool:
    """Whether an op combines parts of a linear map's columns, as a gate does, and is all that uses them."""
    if group.kind != "linear" or group.goes_on_by_heads:
        return False
    if group.space != _space(op) or not isinstance(op, _ELEMENTWISE):
        return False
    whole = group.operations[-1].results[0]
    own = [operand for operand in op.operands if rows_of(type_of(operand)) is not None]
    return all(is_part_of_columns(operand, whole) and operand.has_one_use() for operand in own) and all(
        isinstance(use.operation, graph.SliceOp) and use.operation.result in own for use in whole.uses
    )


def is_part_of_columns(value: SSAValue, whole: SSAValue) -> bool:
    """Whether a value is some of the columns of `whole`, in panels of their own."""
    owner = value.owner
    return (
        isinstance(owner, graph.SliceOp)
        and owner.operands[0] is whole
        and len(type_of(value).get_shape()) == 2
        and owner.values["axis"] == 1
        and owner.values["step"] == 1
        and owner.values["start"] % PANEL == 0
        and type_of(value).get_shape()[1] % PANEL == 0
    )


def _emit(block: Block, groups: list[_Group]) -> None:
    end = block.last_op
    assert isinstance(end, ReturnOp)
    replaced: dict[SSAValue, SSAValue] = {}
    member_of = {op: group for group in groups for op in group.operations}
    old = [op for op in block.ops if not isinstance(op, ReturnOp | schedule.WeightOp) and not _is_table(op)]
    for group in groups:
        body = _Body(group, replaced)
        for op in group.operations:
            body.add(op)
        outputs = [
            result
            for op in group.operations
            for result in op.results
            if any(_used_outside(use.operation, group, member_of) for use in result.uses)
        ]
        body.block.add_op(schedule.YieldOp([body.values[output] for output in outputs]))
        made = schedule.GroupOp(group.kind, body.inputs, [output.type for output in outputs], body.block)
        block.insert_op_before(made, end)
        replaced.update(zip(outputs, made.results, strict=True))
    for index, operand in enumerate(end.operands):
        end.operands[index] = replaced[operand]
    for op in reversed(old):
        Rewriter.erase_op(op)


def _is_table(op: Operation) -> bool:
    return isinstance(op, graph.ConstantOp) and element_count(type_of(op.result)) > 1


def _used_outside(user: Operation, group: _Group, member_of: dict[Operation, _Group]) -> bool:
    if isinstance(user, schedule.YieldOp):
        return False
    if isinstance(user, VIEW_OPERATIONS):
        return any(_used_outside(use.operation, group, member_of) for use in user.results[0].uses)
    return isinstance(user, ReturnOp) or (user in member_of and member_of[user] is not group)


class _Body:
    """The body of a group as it is filled: clones of ops, with what comes from outside as block arguments."""

    def __init__(self, group: _Group, replaced: dict[SSAValue, SSAValue]):
        self.block = Block()
        self.inputs: list[SSAValue] = []
        self.values: dict[SSAValue, SSAValue] = {}
        self._own = set(group.operations)
        self._replaced = replaced

    def add(self, op: Operation) -> None:
        operands = [self._value(operand) for operand in op.operands]
        clone = type(op).create(
            operands=operands, attributes=dict(op.attributes), result_types=[result.type for result in op.results]
        )
        self.block.add_op(clone)
        self.values.update(zip(op.results, clone.results, strict=True))

    def _value(self, value: SSAValue) -> SSAValue:
        if value not in self.values:
            owner = value.owner
            outside = is_leaf(value) or value in self._replaced
            if outside:
                self.inputs.append(self._replaced.get(value, value))
                self.values[value] = self.block.insert_arg(value.type, len(self.block.args))
            else:
                assert isinstance(owner, Operation) and owner not in self._own, f"{owner} is used before it is computed"
                self.add(owner)
        return self.values[value]
