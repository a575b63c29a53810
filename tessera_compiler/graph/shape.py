"""Ops that move elements and compute nothing. None of them touches axis 0 when it is rows (`T` or `L`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from xdsl.dialects.builtin import DenseArrayBase, IntegerAttr, TensorType
from xdsl.irdl import attr_def, irdl_op_definition, operand_def, result_def, var_operand_def
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.graph.base import Array, GraphOp
from tessera_compiler.graph.types import DYNAMIC, Tensor, element_count, rows_of, shape_of, tensor


def _check_axis(type: Tensor, axis: int) -> None:
    first = 0 if rows_of(type) is None else 1
    if not first <= axis < len(type.get_shape()):
        raise VerifyException(f"axis {axis} is rows or does not exist in {type}.")


class _FreeShapeOp(GraphOp):
    x = operand_def(TensorType)
    result = result_def(TensorType)
    FREE_RESULT: ClassVar[bool] = True

    def _sizes(self, x: Array) -> tuple[int, ...]:
        """The shape of the result, with the number of rows that `x` has."""
        return tuple(x.shape[0] if size == DYNAMIC else size for size in shape_of(self.result))


@irdl_op_definition
class ReshapeOp(_FreeShapeOp):
    """The same elements in row-major order, in the shape of the result."""

    name = "graph.reshape"

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        (x,) = types
        if result is None:
            raise VerifyException("the type of the result must be given.")
        same = x.get_element_type() == result.get_element_type() and rows_of(x) == rows_of(result)
        if not same or element_count(x) != element_count(result):
            raise VerifyException(f"the result must have the operand's elements and rows; found {x} and {result}.")
        return (result,)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        return (np.reshape(operands[0], self._sizes(operands[0])),)


@irdl_op_definition
class BroadcastOp(_FreeShapeOp):
    """`x` repeated along axes of size 1, as NumPy broadcasts it to the shape of the result."""

    name = "graph.broadcast"

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        (x,) = types
        if result is None:
            raise VerifyException("the type of the result must be given.")
        shape, source = result.get_shape(), x.get_shape()
        fits = len(source) <= len(shape) and all(
            size in (1, wanted) for size, wanted in zip(source, shape[len(shape) - len(source) :], strict=True)
        )
        if not fits or rows_of(x) != rows_of(result) or x.get_element_type() != result.get_element_type():
            raise VerifyException(f"{x} does not broadcast to {result}; rows are never made by broadcasting.")
        return (result,)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        return (np.ascontiguousarray(np.broadcast_to(operands[0], self._sizes(operands[0]))),)


@irdl_op_definition
class TransposeOp(GraphOp):
    """Axis `i` of the result is axis `permutation[i]` of `x`."""

    name = "graph.transpose"
    x = operand_def(TensorType)
    result = result_def(TensorType)
    permutation = attr_def(DenseArrayBase)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        (x,) = types
        order, shape = values["permutation"], x.get_shape()
        if sorted(order) != list(range(len(shape))) or (rows_of(x) is not None and order[0] != 0):
            raise VerifyException(
                f"the permutation {list(order)} must name each axis of {x} once and leave rows in place."
            )
        return (tensor([shape[axis] for axis in order], x.get_element_type(), rows_of(x)),)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        return (np.ascontiguousarray(np.transpose(operands[0], self.values["permutation"])),)


@irdl_op_definition
class SliceOp(GraphOp):
    """The `size` elements of `axis` at `start`, `start + step` and so on."""

    name = "graph.slice"
    x = operand_def(TensorType)
    result = result_def(TensorType)
    axis = attr_def(IntegerAttr)
    start = attr_def(IntegerAttr)
    size = attr_def(IntegerAttr)
    step = attr_def(IntegerAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        (x,) = types
        axis, start, size, step = (values[key] for key in ("axis", "start", "size", "step"))
        _check_axis(x, axis)
        shape = x.get_shape()
        if start < 0 or size < 1 or step < 1 or start + (size - 1) * step >= shape[axis]:
            raise VerifyException(f"{size} elements from {start} in steps of {step} do not lie in axis {axis} of {x}.")
        return (tensor((*shape[:axis], size, *shape[axis + 1 :]), x.get_element_type(), rows_of(x)),)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        axis, start, size, step = (self.values[key] for key in ("axis", "start", "size", "step"))
        taken = (slice(None),) * axis + (slice(start, start + (size - 1) * step + 1, step),)
        return (np.ascontiguousarray(operands[0][taken]),)


@irdl_op_definition
class ConcatOp(GraphOp):
    """The operands one after the other along `axis`."""

    name = "graph.concat"
    parts = var_operand_def(TensorType)
    result = result_def(TensorType)
    axis = attr_def(IntegerAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        axis = values["axis"]
        if not types:
            raise VerifyException("at least one operand is needed.")
        first = types[0]
        _check_axis(first, axis)
        total = 0
        for part in types:
            shape = part.get_shape()
            if part.get_element_type() != first.get_element_type() or rows_of(part) != rows_of(first):
                raise VerifyException(f"the operands must have one element type and rows; found {first} and {part}.")
            if (*shape[:axis], 0, *shape[axis + 1 :]) != (*first.get_shape()[:axis], 0, *first.get_shape()[axis + 1 :]):
                raise VerifyException(f"the operands may differ in axis {axis} only; found {first} and {part}.")
            total += shape[axis]
        shape = first.get_shape()
        return (tensor((*shape[:axis], total, *shape[axis + 1 :]), first.get_element_type(), rows_of(first)),)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        return (np.concatenate(operands, axis=self.values["axis"]),)
