"""The host's memory for a step that is in flight: its inputs on the way in, its results on the way out."""

from __future__ import annotations

import numpy as np

from tessera_runtime.executor.drawing import LOGPROB_WORDS, Drawn
from tessera_runtime.executor.gpu.driver import Bytes, Driver

IN_FLIGHT = 2
"""Steps that are queued at once: the device works on one while the host prepares the other."""
SMALLEST = 4096


class StepSlot:
    """Pinned memory and an event. Belongs to one step at a time."""

    def __init__(self, driver: Driver) -> None:
        self.done = driver.create_event()
        self._inputs = driver.allocate_pinned(SMALLEST)
        self._results = driver.allocate_pinned(SMALLEST)

    def reserve(self, driver: Driver, stream: int, inputs: int, rows: int) -> None:
        """Makes room for a step's inputs and for what it draws in so many rows; the step before that used the slot
        must be done. Pinned memory may only go while nothing is queued, be it another slot's step."""
        self._inputs = _at_least(driver, stream, self._inputs, inputs)
        self._results = _at_least(driver, stream, self._results, max(1, rows) * 4 * (LOGPROB_WORDS + 1))

    def inputs(self, size: int) -> Bytes:
        """Memory for a step's inputs, of no more than was reserved."""
        return self._inputs[:size]

    def read(self, driver: Driver, stream: int, results: dict[str, int], rows: int, with_logprobs: bool) -> None:
        """Queues the copies of what was drawn, and after them the event."""
        if rows:
            driver.copy_out(self._results[: 4 * rows], results["ids"], stream)
            if with_logprobs:
                size = 4 * LOGPROB_WORDS * rows
                driver.copy_out(self._results[4 * rows :][:size], results["logprobs"], stream)
        driver.record_event(self.done, stream)

    def take(self, rows: int, with_logprobs: bool) -> Drawn:
        """The results, copied; the event must have been reached."""
        if not rows:
            return Drawn(np.empty(0, np.int32), None)
        ids = self._results[: 4 * rows].view(np.int32).copy()
        if not with_logprobs:
            return Drawn(ids, None)
        raw = self._results[4 * rows :][: 4 * LOGPROB_WORDS * rows]
        return Drawn(ids, raw.view(np.float32).reshape(rows, LOGPROB_WORDS).copy())

    def close(self, driver: Driver) -> None:
        driver.free_pinned(self._inputs)
        driver.free_pinned(self._results)
        driver.destroy_event(self.done)


def _at_least(driver: Driver, stream: int, memory: Bytes, size: int) -> Bytes:
    if len(memory) >= size:
        return memory
    driver.synchronize(stream)
    driver.free_pinned(memory)
    return driver.allocate_pinned(size + size // 4)
