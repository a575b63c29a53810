"""What the machine reads and multiplies at best, measured with the probes of a native object."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.errors import TargetUnavailable
from tessera_runtime.executor.cpu.memory import address_of, zeroed_memory
from tessera_runtime.executor.cpu.native_object import NativeObject

_READ, _KINDS = 0, {"f32": 1, "bf16": 2, "u8": 3}
_MEMORY_BYTES = 96 << 20
"""Read by each thread: more than any cache near a core holds."""
_CACHED_BYTES = 256 << 10
"""Read by each thread again and again: within the second cache of every processor that the classes are for."""
_PROBE_SECONDS = 0.004
_REPEATS = 7
_MOST_ROUNDS = 1 << 24


@dataclass(frozen=True)
class MachinePeaks:
    """The best of a few tries, all threads together."""

    memory_bytes_s: float
    """Reading what no cache holds."""
    cached_bytes_s: float
    """Reading what each core has in its second cache."""
    multiply_adds_s: Mapping[str, float]
    """By element of the weights: f32, bf16, u8."""

    def or_better(self, other: MachinePeaks) -> MachinePeaks:
        """The better of two measurements, each figure by itself."""
        return MachinePeaks(
            max(self.memory_bytes_s, other.memory_bytes_s),
            max(self.cached_bytes_s, other.cached_bytes_s),
            {name: max(rate, other.multiply_adds_s[name]) for name, rate in self.multiply_adds_s.items()},
        )


class _Crew:
    """Threads that run the same probe at the same time, each pinned to the core that a step's thread has."""

    def __init__(self, native: NativeObject, threads: int, cores: list[int]) -> None:
        if native.probe is None:
            raise TargetUnavailable(
                "The package's object cannot measure this machine: it was made by an earlier version of Tessera.",
                hint="Pack the model again.",
            )
        self._probe = native.probe
        self._threads = threads
        self._cores = cores
        self._memory: list[NDArray[np.uint8]] = [zeroed_memory(_MEMORY_BYTES) for _ in range(threads)]
        for memory in self._memory:
            memory[::4096] = 1  # a page that was never written is no memory yet

    def best(self, kind: int, size: int = 0) -> float:
        """Work per second: the best of calls that take about `_PROBE_SECONDS` each."""
        rounds = 1
        while self._call(kind, rounds, size)[1] < _PROBE_SECONDS and rounds < _MOST_ROUNDS:
            rounds *= 4
        calls = [self._call(kind, rounds, size) for _ in range(_REPEATS)]
        return max(done / seconds for done, seconds in calls)

    def _call(self, kind: int, rounds: int, size: int) -> tuple[int, float]:
        """One call by each thread at the same time: the work of all, and the seconds from the first to the last."""
        ready = threading.Barrier(self._threads)
        spans: list[tuple[float, float, int]] = []

        def work(thread: int) -> None:
            if self._cores:
                with contextlib.suppress(OSError):  # the core may have been taken away since it was listed
                    os.sched_setaffinity(0, {self._cores[thread % len(self._cores)]})
            memory = address_of(self._memory[thread])
            ready.wait()
            began = time.perf_counter()
            done = self._probe(kind, rounds, memory, size)
            spans.append((began, time.perf_counter(), done))

        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(self._threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(span[2] for span in spans), max(span[1] for span in spans) - min(span[0] for span in spans)


def measure_peaks(native: NativeObject, threads: int, cores: list[int]) -> MachinePeaks:
    crew = _Crew(native, threads, cores)
    return MachinePeaks(
        memory_bytes_s=crew.best(_READ, _MEMORY_BYTES),
        cached_bytes_s=crew.best(_READ, _CACHED_BYTES),
        multiply_adds_s={name: crew.best(kind) for name, kind in _KINDS.items()},
    )
