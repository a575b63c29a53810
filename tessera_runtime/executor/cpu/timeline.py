"""When each launch of a step began, in seconds (docs/spec/program.md, the field `timeline`)."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.executor.cpu.memory import address_of, zeroed_memory


class Timeline:
    """Where native code notes its ticks, and the steps noted so far.

    How long a tick is, nobody says: it is found from the ends of the first and the last step, on the ticks and on the
    clock. So the more time lies between them, the truer the seconds are; some milliseconds suffice for three digits.
    """

    def __init__(self, launches: int) -> None:
        """For so many launches and the moment after them."""
        self._ticks = zeroed_memory(8 * (launches + 1)).view(np.int64)
        self._steps: list[NDArray[np.int64]] = []
        self._ends: list[float] = []
        self.address = address_of(self._ticks)

    def note_step(self) -> None:
        """Must be called as soon as a step has returned."""
        self._ends.append(time.perf_counter())
        self._steps.append(self._ticks.copy())

    def seconds(self) -> NDArray[np.float64]:
        """How long each launch took in each step but the first, [steps - 1, launches]: until the next began."""
        ticks = np.array(self._steps)
        elapsed = int(ticks[-1, -1] - ticks[0, -1])
        second = elapsed / (self._ends[-1] - self._ends[0])
        return np.diff(ticks[1:], axis=1) / second
