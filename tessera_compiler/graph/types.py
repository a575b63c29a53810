"""Types of Graph IR values: builtin tensors whose dynamic first dimension is named by the encoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from xdsl.dialects.builtin import DYNAMIC_INDEX, Float32Type, IntegerType, NoneAttr, StringAttr, TensorType
from xdsl.ir import Attribute, SSAValue
from xdsl.utils.exceptions import VerifyException

Tensor: TypeAlias = TensorType[Attribute]

DYNAMIC = DYNAMIC_INDEX
"""The size that stands for the dynamic dimension in a shape."""
TOKENS = "T"
"""Encoding of tensors with one row per token of the step."""
LOGIT_ROWS = "L"
"""Encoding of tensors with one row per token whose logits are wanted."""

F32 = Float32Type()
I32 = IntegerType(32)
I1 = IntegerType(1)

_NUMPY_TYPES: dict[Attribute, Any] = {F32: np.float32, I32: np.int32, I1: np.bool_}


def tensor(shape: Sequence[int], element: Attribute = F32, rows: str | None = None) -> Tensor:
    """The tensor type of this shape; `rows` (`"T"` or `"L"`) names axis 0, whose size must then be `DYNAMIC`."""
    return TensorType(element, tuple(shape), NoneAttr() if rows is None else StringAttr(rows))


def static_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """The type of a constant with this array's shape and element type (float32, int32 or bool)."""
    for element, numpy_type in _NUMPY_TYPES.items():
        if array.dtype == numpy_type:
            return tensor(array.shape, element)
    raise VerifyException(f"Graph IR holds float32, int32 and bool arrays; found {array.dtype}.")


def numpy_type(element: Attribute) -> Any:
    """The NumPy scalar type that holds elements of this type."""
    if element not in _NUMPY_TYPES:
        raise VerifyException(f"Graph IR has the element types f32, i32 and i1; found {element}.")
    return _NUMPY_TYPES[element]


def type_of(value: SSAValue) -> Tensor:
    """The tensor type of a value; every value of Graph IR has one."""
    if not isinstance(value.type, TensorType):
        raise VerifyException(f"every value of Graph IR is a tensor; found {value.type}.")
    return value.type


def shape_of(value: SSAValue) -> tuple[int, ...]:
    """The shape of a value, with `DYNAMIC` for a token or logit-row dimension."""
    return type_of(value).get_shape()


def rows_of(type: Tensor) -> str | None:
    """`"T"` or `"L"` if axis 0 is dynamic, else None."""
    return type.encoding.data if isinstance(type.encoding, StringAttr) else None


def element_count(type: Tensor) -> int:
    """How many elements a row has, or the whole tensor if it has no rows."""
    return math.prod(size for size in type.get_shape() if size != DYNAMIC)


def check_tensor(type: Attribute) -> Tensor:
    """Refuses types that Graph IR does not have, so that everything later may rely on the canonical form."""
    if not isinstance(type, TensorType):
        raise VerifyException(f"every value of Graph IR is a tensor; found {type}.")
    numpy_type(type.get_element_type())
    rows, shape = rows_of(type), type.get_shape()
    if rows not in (None, TOKENS, LOGIT_ROWS):
        raise VerifyException(f'a dynamic dimension is named "T" or "L"; found {type}.')
    if DYNAMIC in shape[1:]:
        raise VerifyException(f"only axis 0 may be dynamic; found {type}.")
    if (rows is not None) != (shape[:1] == (DYNAMIC,)):
        raise VerifyException(f"axis 0 is dynamic exactly when it is named by the encoding; found {type}.")
    return type


def broadcast_shapes(*types: Tensor) -> tuple[tuple[int, ...], str | None]:
    """The shape and row name of an elementwise result under NumPy's rules; the dynamic axis must stay axis 0."""
    rank = max(len(type.get_shape()) for type in types)
    rows: str | None = None
    result = [1] * rank
    for type in types:
        shape = type.get_shape()
        if rows_of(type) is not None:
            if len(shape) != rank:
                raise VerifyException(f"{type} is broadcast to rank {rank}, which would move its rows off axis 0.")
            if rows not in (None, rows_of(type)):
                raise VerifyException(f'rows "{rows}" and "{rows_of(type)}" do not mix.')
            rows = rows_of(type)
        for axis, size in enumerate(shape, start=rank - len(shape)):
            if size != 1 and result[axis] not in (1, size):
                raise VerifyException(f"shapes do not broadcast: {', '.join(str(each) for each in types)}.")
            if size != 1:
                result[axis] = size
    return tuple(result), rows
