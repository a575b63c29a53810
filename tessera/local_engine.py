"""A package and its engine in this process, for offline work: no server, no socket, no thread of its own.

Whoever waits for tokens drives the engine. With several threads waiting, one of them computes the step for all, so that
requests of different threads share batches as they do in a server.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path

from tessera.errors import ApplicationInvalid
from tessera_runtime.engine.cache_plan import plan_for
from tessera_runtime.engine.core import EngineLimits
from tessera_runtime.engine.pipeline import open_core
from tessera_runtime.engine.protocol import EngineStatistics, Output, Submit
from tessera_runtime.engine.request import check_submission
from tessera_runtime.engine.settings import EngineSettings
from tessera_runtime.executor.interface import Executor, ExecutorLimits
from tessera_runtime.loading import load_executor
from tessera_runtime.package.reader import Package, open_package

Notice = Callable[[str], None]


class LocalEngine:
    """Threads may share it. `close` it, or use it as a context manager; it must not be used afterwards."""

    def __init__(self, executor: Executor, settings: EngineSettings) -> None:
        self.limits: EngineLimits = plan_for(settings, executor)
        self._executor = executor
        self._core = open_core(executor, self.limits)
        self._changed = threading.Condition()
        self._stepping = False
        self._closed = False
        self._asked: deque[Submit | str] = deque()
        """Submissions, and ids to abort, that the next step takes."""
        self._news: dict[str, list[Output]] = {}

    @property
    def description(self) -> str:
        """One line about what computes."""
        return self._executor.description

    @property
    def vocab_size(self) -> int:
        return self._executor.limits.vocab_size

    def check(self, submit: Submit) -> None:
        """Raises a `RequestError` if the engine could never answer this."""
        of_program = self._executor.limits
        limits = ExecutorLimits(
            max_tokens=self.limits.max_batch_tokens,
            max_model_len=self.limits.max_model_len,
            vocab_size=of_program.vocab_size,
            block_tokens=of_program.block_tokens,
            bytes_per_block=of_program.bytes_per_block,
        )
        check_submission(submit, limits, self.limits.cache_blocks)

    def submit(self, submit: Submit) -> None:
        """Takes a request, whose id must be new; its outputs come from `wait`."""
        with self._changed:
            self._check_open()
            self._news[submit.request_id] = []
            self._asked.append(submit)

    def abort(self, request_id: str) -> None:
        """Ends a request; nothing of it will be heard any more."""
        with self._changed:
            if self._news.pop(request_id, None) is not None:
                self._asked.append(request_id)

    def wait(self, request_ids: Collection[str]) -> list[Output]:
        """Computes until there is news of one of these requests, and returns all there is, oldest first."""
        while True:
            with self._changed:
                while True:
                    self._check_open()
                    news = self._take(request_ids)
                    if news:
                        return news
                    if not self._stepping:
                        break
                    self._changed.wait()
                self._stepping = True
                asked, self._asked = self._asked, deque()
            outputs: list[Output] = []
            try:
                outputs = self._step(asked)
            finally:
                with self._changed:
                    self._stepping = False
                    for output in outputs:
                        if output.request_id in self._news:
                            self._news[output.request_id].append(output)
                    self._changed.notify_all()

    def statistics(self) -> EngineStatistics:
        """Counters since the engine was made."""
        return self._core.statistics()

    def close(self) -> None:
        """Ends all work and gives the memory back, once the step at hand is over."""
        with self._changed:
            while self._stepping:
                self._changed.wait()
            if not self._closed:
                self._closed = True
                self._executor.close()
                self._changed.notify_all()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _step(self, asked: deque[Submit | str]) -> list[Output]:
        for each in asked:
            if isinstance(each, Submit):
                self._core.submit(each)
            else:
                self._core.abort(each)
        return self._core.step()

    def _take(self, request_ids: Collection[str]) -> list[Output]:
        news: list[Output] = []
        for request_id in request_ids:
            waiting = self._news.get(request_id)
            if not waiting:
                continue
            news += waiting
            last = waiting[-1]
            if last.finish_reason is not None or last.error is not None:
                del self._news[request_id]
            else:
                self._news[request_id] = []
        return news

    def _check_open(self) -> None:
        if self._closed:
            raise ApplicationInvalid("The engine is closed.", hint="Make a new one.")


def open_local_engine(package: Package, settings: EngineSettings, notice: Notice | None = None) -> LocalEngine:
    """Loads a package to run it here. Settings left out are what the machine and the package allow."""
    executor = load_executor(package, target=settings.target, threads=settings.threads, notice=notice)
    try:
        return LocalEngine(executor, settings)
    except BaseException:
        executor.close()
        raise


def open_checked(path: Path | str) -> Package:
    """A package of which every byte was checked."""
    return open_package(Path(path), verify="digests")
