"""Keeps one engine alive, and its requests with it.

An engine that ends, or is silent while it does nothing, is killed and started again; what it was working on is
submitted to the new one with the ids that had already come. A request that was there each time an engine died, and that
got no further in between, is suspected of being the reason and given up after `MAX_CRASHES`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from tessera_runtime.engine.protocol import (
    Abort,
    EngineCapacity,
    EngineStatistics,
    FromEngine,
    Outputs,
    Ping,
    Pong,
    Ready,
    Refused,
    Shutdown,
    Submit,
    ToEngine,
)
from tessera_runtime.engine.settings import EngineSettings
from tessera_runtime.observe.logs import Log
from tessera_runtime.server.answer import Answer
from tessera_runtime.server.engine_process import ENGINE_MODULE, EngineProcess, EngineProtocol
from tessera_runtime.server.errors import EngineStartFailed, internal, unavailable

PING_SECONDS = 0.5
SILENT_PINGS = 4
"""Pings without an answer after which an engine that does not work hangs."""
BUSY_PINGS = 240
"""Pings without an answer after which even one that works does."""
LEAST_TICKS = 2
"""Clock ticks of processor time between two pings that count as work."""
EXIT_SECONDS = 1.0
"""How long an engine may take to end after it has closed its socket, before it is killed."""
MAX_CRASHES = 3
LONG_LIFE = 60.0
"""An engine that lived this long did not die of how it was started."""
FIRST_DELAY, LONGEST_DELAY = 0.25, 10.0
COUNTERS = (
    *("steps", "computed_tokens", "generated_tokens", "prefix_queried_tokens", "prefix_hit_tokens"),
    *("preemptions", "step_seconds", "executor_seconds", "numerical_errors"),
)
"""Fields of `EngineStatistics` that only grow."""
REFUSE_AFTER = 3
"""Failed starts in a row after which new requests are refused instead of waiting for the next one."""


class EngineInstance:
    """One engine, whichever process it is at the moment. All methods run in the event loop."""

    def __init__(
        self,
        name: str,
        settings: EngineSettings,
        process: EngineProcess,
        log: Log,
        *,
        module: str = ENGINE_MODULE,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.name = name
        self.ready = False
        self.capacity: EngineCapacity | None = None
        self.phases: list[tuple[str, float]] = []
        self.statistics: EngineStatistics | None = None
        self.past_counters: dict[str, float] = dict.fromkeys(COUNTERS, 0.0)
        """What processes that are gone had counted, so that counters never go back."""
        self.restarts = 0
        self.active: dict[str, Answer] = {}
        """What the engine works on, oldest first."""
        self._settings = settings
        self._module = module
        self._log = log
        self._on_step = on_step
        self._failures = 0
        self._failed_starts = 0
        self._stopping = False
        self._first: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._protocol: EngineProtocol | None = None
        self._lost = asyncio.Event()
        self._spoke = asyncio.Event()
        self._answered = 0
        self._refused: Refused | None = None
        self._process: EngineProcess | None = process

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def refuses(self) -> bool:
        """Whether new requests had better not wait for it."""
        return self._stopping or (not self.ready and self._failed_starts >= REFUSE_AFTER)

    def resident_bytes(self) -> int:
        return self._process.resident_bytes() if self._process is not None else 0

    def start(self) -> asyncio.Future[None]:
        """Begins to supervise. The result is there once the engine is ready for the first time, or has failed to be."""
        self._first = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._supervise())
        return self._first

    def submit(self, answer: Answer) -> None:
        """Hands an answer to the engine; while that is being started again, it waits."""
        self.active[answer.submit.request_id] = answer
        answer.instance = self
        if self.ready:
            self._send(answer.submit)

    def abort(self, answer: Answer) -> None:
        """The answer is not wanted any more."""
        if self.active.pop(answer.submit.request_id, None) is not None:
            self._send(Abort(answer.submit.request_id))

    async def stop(self, seconds: float) -> None:
        """Asks the engine to end and kills it after this time."""
        self._stopping = True
        self.ready = False
        process = self._process
        if process is not None:
            if seconds > 0 and self._protocol is not None:
                self._send(Shutdown())
                await process.wait(seconds)
            process.kill()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._fail_all("The server is shutting down.")

    def kill_now(self) -> None:
        """Ends the process without waiting for anything; for the very end."""
        if self._process is not None:
            self._process.kill()

    async def _supervise(self) -> None:
        while not self._stopping:
            ready_at: float | None = None
            try:
                if self._process is None:
                    self._process = EngineProcess(self._settings, self._module)
                await self._until_ready(self._process)
                ready_at = time.monotonic()
                self._resubmit()
                if self._first is not None and not self._first.done():
                    self._first.set_result(None)
                await self._until_lost(self._process)
                if self._lost.is_set():
                    # Its exit code says why it went, and comes a moment after the end of its socket.
                    await self._process.wait(EXIT_SECONDS)
                reason = "ended"
            except EngineStartFailed as error:
                reason = str(error)
                if self._first is not None and not self._first.done():
                    self._first.set_exception(error)
                    self._discard()
                    return
            if self._stopping:
                return
            self._after_loss(reason, ready_at)
            # One death is followed by a new engine at once, more of them by longer and longer pauses.
            if self._failures > 1:
                await asyncio.sleep(min(FIRST_DELAY * 2 ** (self._failures - 2), LONGEST_DELAY))

    def _after_loss(self, reason: str, ready_at: float | None) -> None:
        pid, code = self.pid, self._process.exit_code if self._process is not None else None
        self._discard()
        lived = time.monotonic() - ready_at if ready_at is not None else 0.0
        self._failures = 0 if lived > LONG_LIFE else self._failures + 1
        self._failed_starts = self._failed_starts + 1 if ready_at is None else 0
        self.restarts += 1
        self._keep_counters()
        self._log.error(
            "engine_lost", engine=self.name, pid=pid, exit_code=code, reason=reason, running=len(self.active)
        )
        for answer in list(self.active.values()):
            if answer.survived_crash() >= MAX_CRASHES:
                self._give_up(answer, "The engine failed repeatedly while it worked on this request.")
        if self.refuses:
            self._fail_all("The engine cannot be started.")

    def counter(self, name: str) -> float:
        """One of `COUNTERS`, over all processes that this engine has been."""
        now = getattr(self.statistics, name) if self.statistics is not None else 0
        return self.past_counters[name] + float(now)

    def _keep_counters(self) -> None:
        self.past_counters = {name: self.counter(name) for name in COUNTERS}
        self.statistics = None

    async def _until_ready(self, process: EngineProcess) -> None:
        self._lost.clear()
        self._refused = None
        self._spoke = asyncio.Event()
        self._protocol = EngineProtocol(self._on_message, self._on_lost)
        await process.connect(self._protocol)
        while not self.ready:
            lost = asyncio.ensure_future(self._lost.wait())
            seen = asyncio.ensure_future(self._spoke.wait())
            await asyncio.wait({lost, seen}, return_when=asyncio.FIRST_COMPLETED)
            lost.cancel()
            seen.cancel()
            if self._refused is not None:
                raise EngineStartFailed(self._refused.error.message)
            if self._lost.is_set() and not self.ready:
                await process.wait(2.0)
                process.raise_if_dead()
                raise EngineStartFailed("The engine closed its connection before it was ready.")
        self._log.info("engine_ready", engine=self.name, pid=process.pid, restarts=self.restarts)

    async def _until_lost(self, process: EngineProcess) -> None:
        """Returns when the engine is gone or has been found to hang."""
        number = self._answered = 0
        silent_idle = 0
        before = process.progress()
        while not self._lost.is_set():
            number += 1
            self._send(Ping(number))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._lost.wait(), PING_SECONDS)
            now = process.progress()
            worked = now[0] - before[0] >= LEAST_TICKS or now[1] > before[1]
            before = now
            # Counted in pings, not in seconds: if this process was stopped itself, the engine is not to blame.
            silent = number - self._answered
            silent_idle = 0 if silent == 0 or worked else silent_idle + 1
            if silent_idle >= SILENT_PINGS or silent >= BUSY_PINGS:
                self._log.error("engine_hangs", engine=self.name, pid=process.pid, silent_s=silent * PING_SECONDS)
                return

    def _on_message(self, message: FromEngine) -> None:
        if isinstance(message, Outputs):
            if self._on_step is not None:
                self._on_step(len(message.outputs))
            for output in message.outputs:
                answer = self.active.get(output.request_id)
                if answer is None:
                    continue
                try:
                    answer.accept(output)
                except Exception as error:
                    # One answer that cannot be decoded must not take the others of this step with it.
                    self._log.defect("answer_failed", error, request=output.request_id)
                    answer.fail(internal("The answer could not be turned into text."))
                if answer.ended:
                    del self.active[output.request_id]
                    if output.finish_reason is None and output.error is None:
                        self._send(Abort(output.request_id))
        elif isinstance(message, Pong):
            self._answered = message.number
            self.statistics = message.statistics
        elif isinstance(message, Ready):
            self.capacity = message.capacity
            self.phases = message.phases
            self.ready = True
            self._spoke.set()
        else:
            self._refused = message
            self._spoke.set()

    def _on_lost(self) -> None:
        self.ready = False
        self._lost.set()

    def _send(self, message: ToEngine) -> None:
        if self._protocol is not None:
            self._protocol.send(message)

    def _resubmit(self) -> None:
        for answer in list(self.active.values()):
            message: Submit = answer.resubmission()
            self._send(message)

    def _discard(self) -> None:
        self.ready = False
        if self._process is not None:
            self._process.kill()
            self._process = None
        if self._protocol is not None:
            self._protocol.close()
            self._protocol = None

    def _give_up(self, answer: Answer, message: str) -> None:
        self.active.pop(answer.submit.request_id, None)
        answer.fail(internal(message, "engine_failed"))

    def _fail_all(self, message: str) -> None:
        for answer in list(self.active.values()):
            self.active.pop(answer.submit.request_id, None)
            answer.fail(unavailable(message, "service_unavailable", 5))
