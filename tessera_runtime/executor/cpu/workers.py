"""The threads that run steps.

Workers are Python threads that spend their lives inside `tessera_worker`, without the interpreter's lock. One that has
waited in vain for some milliseconds parks itself: it comes back to Python and sleeps on a lock of its own, until the
step that needs it wakes it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref

from tessera_runtime.errors import ExecutionError
from tessera_runtime.executor.cpu.context import Context
from tessera_runtime.executor.cpu.disturbance import CoreWatch
from tessera_runtime.executor.cpu.native_object import NativeObject

IDLE_YIELDS = 100
"""How often an idle worker yields before it parks; between two yields it spins for about 30 µs."""
_JOIN_SECONDS = 10.0


class _Crew:
    """What workers share. They hold this and not the pool, so that a forgotten pool can be collected."""

    def __init__(self, native: NativeObject, context: Context, count: int) -> None:
        self.native = native
        self.context = context
        self.closing = False
        self.parking = [threading.Lock() for _ in range(count)]
        self.away = [threading.Event() for _ in range(count)]
        """Set while a worker is not in native code."""
        self.cores: list[int | None] = [None] * count
        self.threads: list[threading.Thread] = []
        for lock in self.parking:
            lock.acquire()

    def serve(self, worker: int) -> None:
        parking, away = self.parking[worker - 1], self.away[worker - 1]
        pinned: int | None = None
        while not self.closing:
            core = self.cores[worker - 1]
            if core is not None and core != pinned:
                with contextlib.suppress(OSError):  # the core may have been taken away since it was listed
                    os.sched_setaffinity(0, {core})
                pinned = core
            self.native.worker(self.context.address, worker, IDLE_YIELDS)
            away.set()
            parking.acquire()
            away.clear()

    def wake(self, bits: int) -> None:
        for worker, lock in enumerate(self.parking, start=1):
            if bits >> worker & 1 and lock.locked():
                lock.release()

    def gather(self, cores: list[int]) -> bool:
        """Has threads compute on these cores from now on, the caller on the first; between steps. Whether it is so."""
        self.context["stop"] = 1
        home = all(away.wait(_JOIN_SECONDS) for away in self.away)
        self.context["stop"] = 0
        if home:
            self.context["threads"] = len(cores)
            self.cores = [*cores[1:], *[None] * (len(self.cores) - len(cores) + 1)]
        for worker in range(1, len(self.cores) + 1):
            self.context.forget_worker(worker)
        self.wake_all()
        return home

    def wake_all(self) -> None:
        """Every worker that takes part in steps."""
        self.wake((1 << self.context["threads"]) - 1)

    def stop(self) -> bool:
        """Sends all workers home; whether they have gone."""
        self.closing = True
        self.context["stop"] = 1
        self.wake(-1)
        for thread in self.threads:
            thread.join(_JOIN_SECONDS)
        return not any(thread.is_alive() for thread in self.threads)


class WorkerPool:
    """`threads` threads: the caller of `run` and threads - 1 workers, each on a core of its own while there are enough.

    The pool belongs to the process that made it; a child made by `fork` has none of its threads, and is refused.
    """

    def __init__(self, native: NativeObject, context: Context, threads: int, cores: list[int]) -> None:
        self._crew = _Crew(native, context, threads - 1)
        self._process = os.getpid()
        self._caller_core = {cores[0]} if threads > 1 and cores else None
        self._watch = CoreWatch(cores[:threads]) if 1 < threads <= len(cores) else None
        context["threads"] = threads
        context["stop"] = 0
        # Also at exit: no thread may be inside native code when the interpreter takes its memory away.
        self._finalizer = weakref.finalize(self, _Crew.stop, self._crew)
        for worker in range(1, threads):
            self._crew.cores[worker - 1] = cores[worker % len(cores)] if cores else None
            thread = threading.Thread(
                target=self._crew.serve, args=(worker,), name=f"tessera-worker-{worker}", daemon=True
            )
            self._crew.threads.append(thread)
            thread.start()

    def run(self) -> None:
        """One step on all threads. The caller's thread is pinned for as long as it takes."""
        if os.getpid() != self._process:
            raise ExecutionError(
                "The executor was made in another process, whose worker threads this one does not have.",
                hint="Make the executor after the fork.",
            )
        if self._caller_core is None:
            self._step()
            return
        if self._watch is not None:
            self._move(self._watch)
        before = os.sched_getaffinity(0)
        try:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self._caller_core)
            self._step()
        finally:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, before)

    def _move(self, watch: CoreWatch) -> None:
        """Leaves cores to others that take much of them, and comes back."""
        threads = [threading.get_native_id(), *(thread.native_id or 0 for thread in self._crew.threads)]
        cores = watch.look(threads)
        if cores is not None and self._crew.gather(cores):
            self._caller_core = {cores[0]}

    def close(self) -> bool:
        """Ends the workers; whether all have left native code. Must not be called during `run`."""
        if self._finalizer.detach() is None:
            return True
        # A child of fork has no workers to wait for.
        return os.getpid() != self._process or self._crew.stop()

    def _step(self) -> None:
        crew = self._crew
        native, context = crew.native, crew.context
        generation = context["generation"]
        try:
            crew.wake(native.begin(context.address))
            native.step(context.address)
        except BaseException:
            # Ctrl-C may strike between publishing a step and running it. Workers would wait for ever: run it, then go
            # on with the exception.
            if context["generation"] != generation and context["finished"] == generation:
                crew.wake_all()
                native.step(context.address)
            raise
