"""Brings concatenations into the one form that row kernels compute."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.rewriter import InsertPoint, Rewriter

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.types import Tensor, rows_of, tensor, type_of
from tessera_compiler.schedule.views import row_shape


@dataclass(frozen=True)
class FlattenConcats:
    """concat(a, b; axis 1) --> reshape(concat(reshape(a), reshape(b); last axis)), for rows of more than one axis.

    The first axis of a row is its outermost: laid out flat, its pieces stand one after the other.
    """

    def apply(self, module: ModuleOp) -> None:
        for op in list(entry_function(module).body.block.ops):
            if isinstance(op, graph.ConcatOp) and self._applies(op):
                self._rewrite(op)

    def _applies(self, op: graph.ConcatOp) -> bool:
        type_ = type_of(op.result)
        return rows_of(type_) is not None and op.values["axis"] == 1 and len(type_.get_shape()) > 2

    def _rewrite(self, op: graph.ConcatOp) -> None:
        module = op.attributes.get("module")
        flat = [graph.ReshapeOp.make(part, result=_flat(type_of(part)), module=module) for part in op.parts]
        joined = graph.ConcatOp.make(*(each.result for each in flat), axis=1, module=module)
        shaped = graph.ReshapeOp.make(joined.result, result=type_of(op.result), module=module)
        if "layer_output" in op.attributes:
            shaped.attributes["layer_output"] = op.attributes["layer_output"]
        for each in flat:
            Rewriter.insert_op(each, InsertPoint.before(op))
        Rewriter.replace_op(op, [joined, shaped], [shaped.result])


def _flat(type_: Tensor) -> Tensor:
    shape = type_.get_shape()
    return tensor((shape[0], math.prod(row_shape(shape))), type_.get_element_type(), rows_of(type_))
