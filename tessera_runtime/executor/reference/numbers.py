"""Element types: how the values of a program are held in NumPy.

bfloat16 values are computed with as float32 and stored as their 16 bits.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

HELD_AS: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(np.float32),
    "i8": np.dtype(np.int8),
    "ui8": np.dtype(np.uint8),
    "i32": np.dtype(np.int32),
    "i1": np.dtype(np.bool_),
}
"""The element types of values in a body."""

STORED_AS: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(np.uint16),
    "i8": np.dtype(np.int8),
}
"""The element types of the KV cache; `i8` has a scale, `f32`, for each head of a position."""

ZERO_POINT = 128
"""What stands for zero in a weight of eight bits."""


def round_to_bfloat16(values: Array) -> Array:
    """The nearest bfloat16 of each value, ties to even, as float32. NaN stays NaN."""
    return widen(narrow(values))


def quantize(rows: Array) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Numbers up to 127 for each row of the last axis, and the scale that makes the row of them again."""
    largest = np.max(np.abs(rows), axis=-1)
    with np.errstate(all="ignore"):
        inverse = np.where(largest != 0, np.float32(127) / largest, np.float32(0))
        numbers = np.rint(rows * inverse[..., None]).astype(np.int8)
    return numbers, (largest * np.float32(1 / 127)).astype(np.float32)


def narrow(values: Array) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 of each value, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    result: NDArray[np.uint16] = np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
    return result


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values of these bits; exact."""
    values: NDArray[np.float32] = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values
