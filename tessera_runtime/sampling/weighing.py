"""Softmax weights of a row of logits, not yet divided by their sum, for executors that have nothing faster."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

RUN = 256
"""Weights that share a sum."""

Weights: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.float32], int]"
"""The weights, the sums of runs of them, and how long runs are. They may lie in memory that is used again."""
Weigh: TypeAlias = Callable[[NDArray[np.float32], float, float], Weights]
"""exp((row - peak) / temperature) of a row of logits, its highest, and a temperature: a function of nothing else."""
Candidates: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.float32]]"
"""Ids, ascending, and their logits."""


@dataclass(frozen=True)
class Rows:
    """Some rows of logits, and how they are weighed."""

    logits: NDArray[np.float32]
    indices: NDArray[np.int64]
    peaks: NDArray[np.float32]
    """The highest logit of each."""
    temperatures: NDArray[np.float64]


class RowSampler(Protocol):
    """What an executor may do for many rows at once. Its weights, and the sums of them, are those of its `Weigh`."""

    def draw(self, rows: Rows, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """A token of each row, any of the vocabulary, by a uniform number."""
        ...

    def nuclei(self, rows: Rows, shares: NDArray[np.float64]) -> tuple[list[Candidates | None], NDArray[np.float64]]:
        """For each row tokens among which are the fewest heaviest that make up this share of all weights, or None where
        they were not found; and the sum of all weights. The arrays hold until the next call."""
        ...


class _Scratch(threading.local):
    """Memory for one row, per thread."""

    def __init__(self) -> None:
        self._row = np.empty(0, np.float32)

    def row(self, size: int) -> NDArray[np.float32]:
        if len(self._row) < size:
            self._row = np.empty(size, np.float32)
        return self._row[:size]


_memory = _Scratch()


def weigh_in_numpy(row: NDArray[np.float32], peak: float, temperature: float) -> Weights:
    """Implements `Weigh`."""
    weights = _memory.row(row.size)
    np.subtract(row, np.float32(peak), out=weights)
    if temperature != 1.0:
        np.multiply(weights, np.float32(1.0 / temperature), out=weights)
    np.exp(weights, out=weights)
    whole = weights.size // RUN * RUN
    sums = np.einsum("ij->i", weights[:whole].reshape(-1, RUN))  # twice as fast as sum(axis=1)
    if whole < weights.size:
        sums = np.append(sums, weights[whole:].sum())
    return weights, sums, RUN
