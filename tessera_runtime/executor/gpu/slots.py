"""The host's memory for a step that is in flight: its inputs on the way in, its results on the way out."""

from __future__ import annotations

import numpy as np

from tessera_runtime.executor.drawing import LOGPROB_WORDS, Drawn
from tessera_runtime.executor.gpu.driver import Bytes, Driver

IN_FLIGHT = 2
"""Steps that are queued at once: the device works on one while the host prepares the other."""


class StepSlot:
    """Pinned memory and an event. Belongs to one step at a time."""

    def __init__(self, driver: Driver) -> None:
        self.done = driver.create_event()
        self._inputs: Bytes | None = None
        self._results: Bytes | None = None

    def reserve(self, driver: Driver, stream: int, inputs: int, rows: int) -> None:
        """Makes room for a step's inputs and for what it draws in so many rows; the step before that used the slot
        must be done. Pinned memory may only go while nothing is queued, be it another slot's step."""
        self._inputs = _at_least(driver, stream, self._inputs, inputs)
        self._results = _at_least(driver, stream, self._results, max(1, rows) * 4 * (LOGPROB_WORDS + 1))

    def inputs(self, size: int) -> Bytes:
        """Memory for a step's inputs."""
        assert self._inputs is not None, "room is made before a step is queued"
        return self._inputs[:size]

    def read(self, driver: Driver, stream: int, results: dict[str, int], rows: int, with_logprobs: bool) -> None:
        """Queues the copies of what was drawn, and after them the event."""
        if rows:
            assert self._results is not None, "room is made before a step is queued"
            driver.copy_out(self._results[: 4 * rows], results["ids"], stream)
            if with_logprobs:
                size = 4 * LOGPROB_WORDS * rows
                driver.copy_out(self._results[4 * rows :][:size], results["logprobs"], stream)
        driver.record_event(self.done, stream)

    def take(self, rows: int, with_logprobs: bool) -> Drawn:
        """The results, copied; the event must have been reached."""
        if self._results is None or not rows:
            return Drawn(np.empty(0, np.int32), None)
        ids = self._results[: 4 * rows].view(np.int32).copy()
        if not with_logprobs:
            return Drawn(ids, None)
        raw = self._results[4 * rows :][: 4 * LOGPROB_WORDS * rows]
        return Drawn(ids, raw.view(np.float32).reshape(rows, LOGPROB_WORDS).copy())

    def close(self, driver: Driver) -> None:
        for memory in (self._inputs, self._results):
            if memory is not None:
                driver.free_pinned(memory)
        driver.destroy_event(self.done)


def _at_least(driver: Driver, stream: int, memory: Bytes | None, size: int) -> Bytes:
    if memory is not None and len(memory) >= size:
        return memory
    if memory is not None:
        driver.synchronize(stream)
        driver.free_pinned(memory)
    return driver.allocate_pinned(size + size // 4)
