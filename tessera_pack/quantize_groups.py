"""Int4 weights: numbers from 0 to 15, with a scale and a zero for each row and group of columns.

A weight is `(number - zero / 16) * (scale * factor)`: scale and zero are bytes, the factor is the row's float32. So a
zero lies between numbers as well as on them, and a group costs sixteen bits beside its numbers, as one float16 does.
Scale and zero are those, of a few candidates, that make the squares of the errors add up to least. A row that is all
zero, or so small that its factor would be subnormal, has factor 1 and scales 0: it is zero on every machine, flushing
subnormals or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera_pack.errors import WeightNotFinite
from tessera_pack.layouts import round_up

LARGEST = 15
ZERO_PARTS = 16
SPANS = (1.0, 0.95, 0.9, 0.85, 0.78)
"""The candidates: how much of the range of a group its numbers span; what lies outside is cut off."""
_SMALLEST_FACTOR = np.float32(np.finfo(np.float32).tiny)

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class GroupParameters:
    """What belongs to the numbers of some rows."""

    factors: Floats
    """[n]"""
    scales: Bytes
    """[n, ceil(K / group)]"""
    zeros: Bytes
    """[n, ceil(K / group)], in sixteenths."""

    @staticmethod
    def empty(rows: int, groups: int) -> GroupParameters:
        return GroupParameters(
            np.empty(rows, np.float32), np.empty((rows, groups), np.uint8), np.empty((rows, groups), np.uint8)
        )

    def put(self, start: int, part: GroupParameters) -> None:
        """Copies the parameters of rows from `start` on to their place."""
        rows = slice(start, start + len(part.factors))
        self.factors[rows], self.scales[rows], self.zeros[rows] = part.factors, part.scales, part.zeros


def quantize_groups(rows: Floats, group: int, name: str, first_row: int = 0) -> tuple[Bytes, GroupParameters]:
    """[n, K] as numbers from 0 to 15, and what belongs to them.

    Raises `WeightNotFinite`, naming the tensor, for NaN or infinity; `name` and `first_row` (where the rows begin in
    the tensor) are for the message.
    """
    count, columns = rows.shape
    if not np.isfinite(rows).all():
        row = first_row + int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise WeightNotFinite(
            f"The weight {name!r} holds NaN or infinity in row {row}, so it cannot be quantized to int4.",
            hint="Repair the checkpoint, or pack it with --dtype fp32.",
        )
    if columns % group:
        padded = np.zeros((count, round_up(columns, group)), np.float32)
        padded[:, :columns] = rows
        rows = padded
    grouped = rows.reshape(-1, group)
    steps, zeros = _best(grouped)
    by_row = steps.reshape(count, -1)
    factors = by_row.max(axis=1) / np.float32(255)
    factors[factors < _SMALLEST_FACTOR] = 1
    scales = np.rint(by_row / factors[:, None]).astype(np.uint8)
    steps = (scales * factors[:, None]).reshape(-1)
    # The numbers are those for the scales as they are stored, and for them another zero may be better.
    numbers, zeros = _settled(grouped, steps, zeros)
    stored = numbers.astype(np.uint8).reshape(count, -1)[:, :columns]
    return stored, GroupParameters(factors, scales, (zeros * ZERO_PARTS).astype(np.uint8).reshape(count, -1))


def dequantize_groups(stored: Bytes, parameters: GroupParameters, group: int) -> Floats:
    """What the kernels compute with: `(stored - zero / 16) * (scale * factor)`."""
    columns = stored.shape[1]
    zeros = np.repeat(parameters.zeros / np.float32(ZERO_PARTS), group, axis=1)[:, :columns]
    steps = np.repeat(parameters.scales * parameters.factors[:, None], group, axis=1)[:, :columns]
    result: Floats = (stored.astype(np.float32) - zeros) * steps
    return result


def _best(grouped: Floats) -> tuple[Floats, Floats]:
    """The step and the zero of each group."""
    low, high = np.minimum(grouped.min(axis=1), 0), np.maximum(grouped.max(axis=1), 0)
    best_steps, best_zeros = np.zeros_like(low), np.zeros_like(low)
    least = np.full_like(low, np.inf)
    mean = grouped.mean(axis=1)
    for span in SPANS:
        steps = (high - low) * np.float32(span / LARGEST)
        first = (high + low) / 2 - (high - low) * np.float32(span / 2)
        zeros = _rounded(_over(-first, steps))
        for _ in range(2):
            numbers, error = _error(grouped, steps, zeros)
            better = error < least
            np.copyto(least, error, where=better)
            np.copyto(best_steps, steps, where=better)
            np.copyto(best_zeros, zeros, where=better)
            # The line through (number, weight) that fits best gives the next step and zero.
            centre = numbers.mean(axis=1)
            numbers -= centre[:, None]
            slope = _over(np.einsum("gk,gk->g", numbers, grouped), np.einsum("gk,gk->g", numbers, numbers))
            steps = np.where(slope > 0, slope, steps).astype(np.float32)
            zeros = _rounded(centre - _over(mean, steps))
    return best_steps, best_zeros


def _settled(grouped: Floats, steps: Floats, zeros: Floats) -> tuple[Floats, Floats]:
    """The numbers for these steps, with these zeros or with better ones."""
    numbers, error = _error(grouped, steps, zeros)
    others = _rounded(numbers.mean(axis=1) - _over(grouped.mean(axis=1), steps))
    other_numbers, other_error = _error(grouped, steps, others)
    better = other_error < error
    return np.where(better[:, None], other_numbers, numbers), np.where(better, others, zeros)


def _error(grouped: Floats, steps: Floats, zeros: Floats) -> tuple[Floats, Floats]:
    """The nearest numbers, ties to even, and the sum of the squared errors of each group."""
    numbers = grouped * _over(np.ones_like(steps), steps)[:, None]
    numbers += zeros[:, None]
    np.rint(numbers, out=numbers)
    np.clip(numbers, 0, LARGEST, out=numbers)
    rest = numbers - zeros[:, None]
    rest *= steps[:, None]
    rest -= grouped
    return numbers, np.einsum("gk,gk->g", rest, rest)


def _rounded(zeros: Floats) -> Floats:
    """To what a byte holds, in sixteenths."""
    rounded: Floats = np.clip(np.rint(zeros * ZERO_PARTS), 0, 255) / np.float32(ZERO_PARTS)
    return rounded


def _over(left: Floats, right: Floats) -> Floats:
    """left / right; 0 where right is 0, or so small that the quotient is no number."""
    with np.errstate(all="ignore"):
        quotient = left / right
    quotient[~np.isfinite(quotient)] = 0
    return quotient
