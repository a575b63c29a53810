"""Eight-bit floats, e4m3: four bits of exponent, three of mantissa, no infinity, up to 448. In NumPy a tile of them is
float32 that they can hold; in memory they are their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 448.0
_NOT_A_NUMBER = 0x7F
_LEAST_NORMAL = 2.0**-6
_STEP = 2.0**-9
"""Between numbers below the least normal one."""


def float8_bits(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The bits of the nearest of each value, ties to even; what is too large becomes 448, and no zero has a sign."""
    plain = np.ascontiguousarray(values, np.float32)
    size = np.minimum(np.abs(plain), np.float32(LARGEST))
    bits = np.where(np.isnan(plain), 0, size).astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFFF) + ((bits >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)
    with np.errstate(invalid="ignore"):
        small = np.rint(size / np.float32(_STEP))
        code = np.where(size < _LEAST_NORMAL, small, rounded.astype(np.int64) - (120 << 3))
    code = np.where(np.isnan(plain), _NOT_A_NUMBER, code).astype(np.uint8)
    signed = code | np.where(np.signbit(plain) & (code != 0), 0x80, 0).astype(np.uint8)
    result: NDArray[np.uint8] = signed.astype(np.uint8)
    return result


def float8_values(bits: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What bits stand for; exact."""
    return _VALUES[bits]


def round_to_float8(values: NDArray[Any]) -> NDArray[np.float32]:
    """The nearest eight-bit float of each value, as float32."""
    return float8_values(float8_bits(values))


def _all_values() -> NDArray[np.float32]:
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    size = np.where(exponent == 0, mantissa * _STEP, (8 + mantissa) * 2.0 ** (exponent - 10))
    size = np.where((bits & 0x7F) == _NOT_A_NUMBER, np.nan, size)
    values: NDArray[np.float32] = np.where(bits >> 7, -size, size).astype(np.float32)
    return values


_VALUES = _all_values()
