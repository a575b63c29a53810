"""Weights of eight bits: one scale per row, symmetric about zero; and those of sixteen.

The scale of a row is its largest magnitude divided by 127, so that values land in -127..127; they are stored with 128
added. A row that is all zero has scale 1: its values are exact, and nothing divides by zero. A row so small that its
scale would be subnormal also has scale 1, so that it is zero on every machine, flushing subnormals or not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tessera_compiler.tile.float8 import float8_bits
from tessera_pack.errors import WeightNotFinite
from tessera_pack.layouts import U8_ZERO

LARGEST = 127
_SMALLEST_SCALE = np.float32(np.finfo(np.float32).tiny)


def row_scales(
    rows: NDArray[np.float32], name: str, first_row: int = 0, *, largest_number: float = LARGEST, dtype: str = "int8"
) -> NDArray[np.float32]:
    """One scale per row of [n, K], by which its largest element becomes `largest_number`; raises `WeightNotFinite`,
    naming the tensor, for NaN or infinity.

    `name`, `first_row` (where the rows begin in the tensor) and `dtype` are for the message.
    """
    if rows.shape[1] == 0:
        return np.ones(rows.shape[0], np.float32)
    # The largest magnitude is the larger of two reductions, which spares a copy of |rows|; both carry NaN along.
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    if not np.isfinite(largest).all():
        row = first_row + int(np.flatnonzero(~np.isfinite(largest))[0])
        raise WeightNotFinite(
            f"The weight {name!r} holds NaN or infinity in row {row}, so it cannot be quantized to {dtype}.",
            hint="Repair the checkpoint, or pack it with --dtype fp32.",
        )
    scales: NDArray[np.float32] = (largest / np.float32(largest_number)).astype(np.float32)
    scales[scales < _SMALLEST_SCALE] = 1
    return scales


def quantize_rows(rows: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[n, K] as bytes: the nearest multiple of the row's scale, ties to even, plus 128."""
    scaled: NDArray[np.float32] = rows / scales[:, None]
    np.rint(scaled, out=scaled)
    np.clip(scaled, -LARGEST, LARGEST, out=scaled)
    scaled += np.float32(U8_ZERO)
    stored: NDArray[np.uint8] = scaled.astype(np.uint8)
    return stored


def float8_rows(rows: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[n, K] as the bits of eight-bit floats: the nearest to the row divided by its scale, ties to even."""
    return float8_bits(rows / scales[:, None])


def float16_rows(rows: NDArray[np.float32], name: str, first_row: int = 0) -> NDArray[np.float16]:
    """[n, …] as float16, ties to even; raises `WeightNotFinite`, naming the tensor, for a number that is too large."""
    with np.errstate(over="ignore"):
        rounded = rows.astype(np.float16)
    lost = np.isinf(rounded) & np.isfinite(rows)
    if lost.any():
        place = tuple(int(axis[0]) for axis in np.nonzero(lost))
        raise WeightNotFinite(
            f"The weight {name!r} holds {rows[place]:.3g} in row {first_row + place[0]}; float16 holds up to 65504.",
            hint="Pack it with --dtype bf16.",
        )
    return rounded


def dequantize_rows(stored: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the kernels compute with: `(stored - 128) * scale`."""
    result: NDArray[np.float32] = (stored.astype(np.float32) - np.float32(U8_ZERO)) * scales[:, None]
    return result
