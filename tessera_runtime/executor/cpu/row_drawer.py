"""Draws from rows of logits by the object's own code, on all threads (docs/spec/program.md, "Draws")."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.errors import ExecutionError
from tessera_runtime.executor.cpu.context import Context
from tessera_runtime.executor.cpu.memory import address_of, zeroed_memory
from tessera_runtime.executor.cpu.weigher import RUN
from tessera_runtime.sampling.weighing import Candidates, Rows

DRAW = np.dtype(
    {
        "names": ["logits", "sums", "count", "uniform", "peak", "scale", "token", "share", "ids"],
        "formats": [*[np.int64] * 3, np.float64, np.float32, np.float32, np.int64, np.float64, np.int64],
        "offsets": [0, 8, 16, 24, 32, 36, 40, 48, 56],
        "itemsize": 64,
    }
)
CANDIDATES = 2048
"""At most so many are written for a row: their ids, then their logits."""
_FOUND = np.dtype([("ids", np.int64, CANDIDATES), ("logits", np.float32, CANDIDATES)])
_ALONE = 2
"""So many rows are done before all threads have been told about them."""


class RowDrawer:
    """Implements `weighing.RowSampler`."""

    def __init__(
        self,
        function: Callable[[int, int, int], None],
        context: Context,
        counters: NDArray[np.int64],
        run: Callable[[], None],
        threads: int,
    ) -> None:
        """`function` is the object's; `run` has all threads, `threads` at most, work on the context."""
        self._function, self._context, self._counters, self._run = function, context, counters, run
        self._threads, self._scratch = threads, zeroed_memory(0)
        self._draws = np.empty(0, DRAW)
        self._sums = np.empty((0, 0), np.float32)
        self._found = np.empty(0, _FOUND)

    def draw(self, rows: Rows, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        draws = self._prepared(rows)
        draws["uniform"] = uniforms
        draws["ids"] = 0
        self._make(draws)
        return draws["token"].copy()

    def nuclei(self, rows: Rows, shares: NDArray[np.float64]) -> tuple[list[Candidates | None], NDArray[np.float64]]:
        draws = self._prepared(rows)
        count = len(draws)
        if len(self._found) < count:
            self._found = np.empty(count, _FOUND)
        draws["share"] = shares
        draws["ids"] = address_of(self._found) + np.arange(count) * _FOUND.itemsize
        self._make(draws)
        totals = self._sums[:count].astype(np.float64).sum(axis=1)
        ids, logits = self._found["ids"], self._found["logits"]
        counts = enumerate(draws["token"].tolist())
        return [None if n < 0 else (ids[row, :n], logits[row, :n]) for row, n in counts], totals

    def _prepared(self, rows: Rows) -> NDArray[np.void]:
        """The draws, but for what is wanted, each with room for its sums."""
        logits = rows.logits
        if logits.dtype != np.float32 or logits.ndim != 2 or logits.strides[1] != logits.itemsize:
            raise ExecutionError(f"Rows of float32 are drawn from, and these are {logits.dtype} {logits.shape}.")
        count, size = len(rows.indices), logits.shape[1]
        runs = -(-size // RUN)
        if len(self._draws) < count:
            self._draws = zeroed_memory(count * DRAW.itemsize).view(DRAW)
        if len(self._sums) < count or self._sums.shape[1] != runs:
            self._sums = np.empty((count, runs), np.float32)
        draws = self._draws[:count]
        draws["logits"] = address_of(logits) + rows.indices * logits.strides[0]
        draws["sums"] = address_of(self._sums) + np.arange(count) * self._sums.strides[0]
        draws["count"] = size
        draws["peak"] = rows.peaks
        draws["scale"] = math.log2(math.e) / rows.temperatures
        return draws

    def _make(self, draws: NDArray[np.void]) -> None:
        context = self._context
        room = self._sums.shape[1] * RUN * 4
        if len(self._scratch) < room * self._threads:
            self._scratch = zeroed_memory(room * self._threads)
        if len(draws) <= _ALONE:
            self._function(address_of(draws), len(draws), address_of(self._scratch))
            return
        self._counters[0] = 0
        context["draw_scratch"], context["draw_scratch_bytes"] = address_of(self._scratch), room
        context["draws"], context["draw_count"] = address_of(draws), len(draws)
        try:
            self._run()
        finally:
            context["draw_count"] = 0
