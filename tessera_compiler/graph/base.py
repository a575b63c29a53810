"""What all ops of Graph IR share: how they are made, how their types are inferred and verified, what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
from xdsl.dialects.builtin import (
    ArrayAttr,
    DenseArrayBase,
    DenseIntOrFPElementsAttr,
    FloatAttr,
    IntegerAttr,
    StringAttr,
    UnitAttr,
    f64,
    i64,
)
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import IRDLOperation, opt_attr_def
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.graph.types import Tensor, check_tensor, type_of

Array: TypeAlias = np.ndarray[Any, Any]
_Op = TypeVar("_Op", bound="GraphOp")


def as_attribute(value: Any) -> Attribute:
    """The attribute that holds a Python value: int as i64, float as f64, str, True as unit, tuples of int or str."""
    if isinstance(value, Attribute):
        return value
    if value is True:
        return UnitAttr()
    if isinstance(value, str):
        return StringAttr(value)
    if isinstance(value, (int, np.integer)):
        return IntegerAttr(int(value), i64)
    if isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            raise VerifyException(f"numbers in Graph IR are finite; found {value}.")
        return FloatAttr(float(value), f64)
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return ArrayAttr([StringAttr(item) for item in value])
    if isinstance(value, tuple):
        return DenseArrayBase.from_list(i64, value)
    raise VerifyException(f"no attribute of Graph IR holds {value!r}.")


def python_value(attribute: Attribute) -> Any:
    """The Python value of an attribute; the inverse of `as_attribute`."""
    if isinstance(attribute, UnitAttr):
        return True
    if isinstance(attribute, StringAttr):
        return attribute.data
    if isinstance(attribute, (IntegerAttr, FloatAttr)):
        return attribute.value.data
    if isinstance(attribute, DenseArrayBase):
        return tuple(attribute.get_values())
    if isinstance(attribute, ArrayAttr):
        return tuple(python_value(item) for item in attribute)
    raise VerifyException(f"no attribute of Graph IR is {attribute}.")


class GraphOp(IRDLOperation):
    """An op of Graph IR.

    `infer` says what the results' types are; `evaluate` says what the op means, in float32 NumPy, and is the definition
    that every lowering is tested against. Rows (axis 0 of `T` and `L` tensors) take whatever size the operands have.
    """

    module = opt_attr_def(StringAttr)
    """Path of the Hugging Face module that this op came from, such as `model.layers.3.self_attn`."""

    FREE_RESULT: ClassVar[bool] = False
    """True when the result's type is the op's own to choose (`cast`, `reshape`, …); `infer` then only checks it."""

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The types of the results, given those of the operands and the attributes as Python values.

        `result` is the type asked for when `FREE_RESULT` is set. Raises VerifyException, in a sentence, if none fits.
        """
        raise VerifyException(f"{cls.name} does not say which results it has.")

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        """The results for these operands."""
        raise VerifyException(f"{self.name} cannot be evaluated.")

    @property
    def values(self) -> dict[str, Any]:
        """The attributes as Python values."""
        return {key: python_value(value) for key, value in self.attributes.items() if not _is_elements(value)}

    @classmethod
    def make(cls: type[_Op], *operands: SSAValue | None, result: Tensor | None = None, **values: Any) -> _Op:
        """Builds the op: absent operands are None, attributes are Python values (None and False mean absent)."""
        # Sorted, with the path at the end, so that the text does not depend on who made the op.
        attributes = {
            key: as_attribute(values[key])
            for key in sorted(values, key=lambda key: (key == "module", key))
            if values[key] is not None and values[key] is not False
        }
        present = [operand for operand in operands if operand is not None]
        plain = {key: python_value(value) for key, value in attributes.items() if not _is_elements(value)}
        try:
            results = cls.infer([type_of(operand) for operand in present], plain, result)
        except VerifyException as error:
            raise VerifyException(f"{cls.name}: {error}") from None
        op: _Op = cls.create(operands=present, attributes=attributes, result_types=results)
        return op

    def verify_(self) -> None:
        operands = [check_tensor(operand.type) for operand in self.operands]
        results = [check_tensor(result.type) for result in self.results]
        try:
            expected = self.infer(operands, self.values, results[0] if self.FREE_RESULT else None)
        except VerifyException as error:
            raise VerifyException(f"{self.name}: {error}") from None
        for wanted, found in zip(expected, results, strict=True):
            if wanted != found:
                raise VerifyException(f"{self.name}: the result must be {wanted}; found {found}.")


def _is_elements(attribute: Attribute) -> bool:
    return isinstance(attribute, DenseIntOrFPElementsAttr)
