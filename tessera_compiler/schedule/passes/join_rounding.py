"""Lets attention store its result as the product that follows reads it."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation, SSAValue
from xdsl.rewriter import Rewriter

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.types import DYNAMIC, type_of
from tessera_compiler.schedule import dialect as schedule


@dataclass(frozen=True)
class JoinRounding:
    """group { a = attend }; group { round(reshape(a)) } --> group { round(reshape(attend)) }

    Only where nothing else uses a. A reshape of whole rows leaves every element where it is.

    With `quantized`, so does `quantize`, where a head is whole groups of columns: those that share a scale are made
    together then, whichever kernel of attention makes them.
    """

    quantized: bool = False

    def apply(self, module: ModuleOp) -> None:
        for group in list(entry_function(module).body.block.ops):
            if isinstance(group, schedule.GroupOp) and group.kind.data == "attention" and len(group.results_) == 1:
                uses = list(group.results_[0].uses)
                if len(uses) == 1 and self._may_join(group, uses[0].operation):
                    _join(group, uses[0].operation)

    def _may_join(self, attention: schedule.GroupOp, op: Operation) -> bool:
        """Whether an op is a group that does nothing but round, or quantize, rows of attention."""
        if not isinstance(op, schedule.GroupOp) or op.kind.data != "rows" or len(op.inputs) != 1:
            return False
        made = [each for each in op.body.block.ops if not isinstance(each, graph.ReshapeOp | schedule.YieldOp)]
        _, heads, width = type_of(attention.results_[0]).get_shape()
        if len(made) != 1 or type_of(made[0].operands[0]).get_shape() != (DYNAMIC, heads * width):
            return False
        if isinstance(made[0], schedule.RoundOp):
            # A product reads pairs of rounded columns, so a single one has a zero beside it.
            return heads * width % 2 == 0
        return self.quantized and isinstance(made[0], schedule.QuantizeOp) and width % made[0].group.value.data == 0


def _join(attention: schedule.GroupOp, rounding: Operation) -> None:
    assert isinstance(rounding, schedule.GroupOp)
    block = attention.body.block
    end = block.last_op
    assert isinstance(end, schedule.YieldOp)
    values: dict[SSAValue, SSAValue] = {rounding.body.block.args[0]: end.values[0]}
    for op in rounding.body.block.ops:
        if isinstance(op, schedule.YieldOp):
            results = [values[value] for value in op.values]
            break
        clone = type(op).create(
            operands=[values[operand] for operand in op.operands],
            attributes=dict(op.attributes),
            result_types=[result.type for result in op.results],
        )
        block.insert_op_before(clone, end)
        values.update(zip(op.results, clone.results, strict=True))
    block.insert_op_before(schedule.YieldOp(results), end)
    Rewriter.erase_op(end)
    body = attention.detach_region(attention.body)
    made = schedule.GroupOp("attention", list(attention.inputs), [value.type for value in results], body)
    parent = attention.parent_block()
    assert parent is not None
    parent.insert_op_before(made, attention)
    for before, after in zip(rounding.results_, made.results_, strict=True):
        before.replace_all_uses_with(after)
    Rewriter.erase_op(rounding)
    Rewriter.erase_op(attention)
