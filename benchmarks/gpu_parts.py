"""The parts of a run: each has a time limit of its own, and what is known is written after each."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from benchmarks.gpu_results import Results

GRACE_SECONDS = 20.0
"""Between asking a part to stop and ending the process: a driver that waits for a device that hangs hears nothing."""
HUNG = 3
"""The process's exit status then."""


class PartTooLong(Exception):
    """A part had to stop."""


class Parts:
    """Runs parts in the main thread, one after another."""

    def __init__(self, results: Results, out: Path, grace: float = GRACE_SECONDS) -> None:
        self._results = results
        self._out = out
        self._grace = grace

    def run(self, name: str, seconds: float, work: Callable[[], None]) -> bool:
        """Whether it came to its end. What fails or takes too long is noted, and the rest can be measured all the
        same; only a process that hears nothing is ended, with `HUNG`."""
        self._results.failures.pop(name, None)
        print(f"-- {name}", flush=True)
        try:
            with self._limited(name, seconds):
                work()
        except Exception as error:
            traceback.print_exc()
            self._results.failures[name] = f"{type(error).__name__}: {error}"
        self._results.write(self._out)
        return name not in self._results.failures

    @contextmanager
    def _limited(self, name: str, seconds: float) -> Iterator[None]:
        def stop(_number: int, _frame: FrameType | None) -> None:
            raise PartTooLong(f"stopped after {seconds:.0f} s")

        before = signal.signal(signal.SIGALRM, stop)
        last = threading.Timer(seconds + self._grace, self._end, (name, seconds + self._grace))
        last.daemon = True
        last.start()
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            last.cancel()

    def _end(self, name: str, seconds: float) -> None:
        self._results.failures[name] = f"hung: ended with the whole run after {seconds:.0f} s"
        self._results.write(self._out)
        print(f"{name} hung, so this run ends here; {self._out} holds what was measured.", file=sys.stderr, flush=True)
        os._exit(HUNG)
