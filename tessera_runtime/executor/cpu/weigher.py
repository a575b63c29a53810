"""Softmax weights of rows of logits by the object's own code (docs/spec/program.md, `tessera_weigh`)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.errors import ExecutionError
from tessera_runtime.executor.cpu.memory import address_of

RUN = 64
"""Weights that share a sum."""


class Weigher:
    """Implements `interface.Weigh`. The weights of one row at a time: the next call overwrites them."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function
        self._values = self._sums = np.empty(0, np.float32)

    def __call__(
        self, row: NDArray[np.float32], peak: float, temperature: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
        if row.dtype != np.float32 or row.ndim != 1 or not row.flags.c_contiguous:
            raise ExecutionError(f"A row of contiguous float32 is weighed, and this one is {row.dtype} {row.shape}.")
        runs = -(-row.size // RUN)
        if len(self._values) < row.size:
            self._values, self._sums = np.empty(row.size, np.float32), np.empty(runs, np.float32)
        values, sums = self._values[: row.size], self._sums[:runs]
        scale = math.log2(math.e) / temperature
        self._function(address_of(row), row.size, peak, scale, address_of(values), address_of(sums))
        return values, sums, RUN
