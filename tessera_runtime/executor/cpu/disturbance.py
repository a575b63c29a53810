"""Notices that other processes take the cores that threads compute on.

The kernel says how long a thread was ready to run and did not: in a step that all threads have to finish, the time of
one is lost for all. Two threads of which one is kept waiting half of the time are slower than one that is left alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

WINDOW = 0.06
"""Seconds that threads are watched before it is said what they waited."""

WAITING = 0.4
"""Of a window: what a process that never pauses takes from a thread is a half, a server beside this one less."""

FIRST_REST, LONGEST_REST = 0.25, 1.0
"""For how many seconds a core is left to others before it is tried again; twice as long each time in vain."""


def waited_seconds(thread: int) -> float | None:
    """For how long a thread of this process was ready and had no core; None where the kernel does not say."""
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


@dataclass
class CoreWatch:
    """Decides on which of `cores` to compute. Call `look` often; it is cheap."""

    cores: Sequence[int]
    waited: Callable[[int], float | None] = waited_seconds
    clock: Callable[[], float] = time.perf_counter
    _began: float = 0.0
    _before: list[float] = field(default_factory=list)
    _suspects: frozenset[int] = frozenset()
    _rest: float = FIRST_REST
    _resting_until: float | None = None

    def look(self, threads: Sequence[int]) -> list[int] | None:
        """The cores to go on with, if they are to change. `threads` compute on `cores`, in this order, unless some were
        left to others."""
        now = self.clock()
        if self._resting_until is not None:
            if now < self._resting_until:
                return None
            self._resting_until = None
            self._start(now, [])
            return list(self.cores)
        if self._before and now - self._began < WINDOW:
            return None
        waits = [self.waited(thread) for thread in threads]
        if any(wait is None for wait in waits):
            return None
        return self._judge(now, [wait or 0.0 for wait in waits])

    def _judge(self, now: float, waits: list[float]) -> list[int] | None:
        elapsed, before = now - self._began, self._before
        self._start(now, waits)
        if len(before) != len(waits) or elapsed > 4 * WINDOW:
            return None
        kept_waiting = frozenset(
            core for core, new, old in zip(self.cores, waits, before, strict=True) if new - old > WAITING * elapsed
        )
        # Twice in a row: a start of a program, or a garbage collection, is no neighbour.
        disturbed, self._suspects = kept_waiting & self._suspects, kept_waiting
        if not kept_waiting:
            self._rest = FIRST_REST
        if not disturbed or len(disturbed) == len(self.cores):
            return None
        self._resting_until = now + self._rest
        self._rest = min(2 * self._rest, LONGEST_REST)
        self._suspects = frozenset()
        return [core for core in self.cores if core not in disturbed]

    def _start(self, now: float, waits: list[float]) -> None:
        self._began, self._before = now, waits
