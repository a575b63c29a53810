"""Ops that work along the last axis of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from xdsl.dialects.builtin import TensorType
from xdsl.irdl import irdl_op_definition, operand_def, result_def
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.graph.base import Array, GraphOp
from tessera_compiler.graph.types import F32, Tensor, rows_of, tensor


class RowOp(GraphOp):
    """A function of f32 rows along the last axis."""

    x = operand_def(TensorType)
    result = result_def(TensorType)
    KEEPS_AXIS: ClassVar[bool] = False

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        shape, rows = types[0].get_shape(), rows_of(types[0])
        if types[0].get_element_type() != F32 or len(shape) < (1 if rows is None else 2):
            raise VerifyException(
                f"the operand must hold f32 and have a last axis that is not its rows; found {types[0]}."
            )
        return (types[0] if cls.KEEPS_AXIS else tensor((*shape[:-1], 1), F32, rows),)


@irdl_op_definition
class ReduceSumOp(RowOp):
    """The sum over the last axis, which stays with size 1."""

    name = "graph.reduce_sum"

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        return (np.asarray(np.sum(operands[0], axis=-1, keepdims=True, dtype=np.float32)),)


@irdl_op_definition
class ReduceMeanOp(RowOp):
    """The mean over the last axis, which stays with size 1."""

    name = "graph.reduce_mean"

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        return (np.asarray(np.mean(operands[0], axis=-1, keepdims=True, dtype=np.float32)),)


@irdl_op_definition
class ReduceMaxOp(RowOp):
    """The maximum over the last axis, which stays with size 1."""

    name = "graph.reduce_max"

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        return (np.max(operands[0], axis=-1, keepdims=True),)


@irdl_op_definition
class SoftmaxOp(RowOp):
    """`e^(x - max) / sum(e^(x - max))` along the last axis."""

    name = "graph.softmax"
    KEEPS_AXIS: ClassVar[bool] = True

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        raised = np.exp(operands[0] - np.max(operands[0], axis=-1, keepdims=True))
        return (raised / np.sum(raised, axis=-1, keepdims=True),)
