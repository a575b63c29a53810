"""The engine over an executor that draws: the next step is queued before the tokens of this one are known.

One scheduling idea carries it: whether a sequence goes on does not depend on *which* token was drawn, but for stop ids.
So the scheduler plans with a placeholder, which the device resolves, and what turns out to have been computed past the
end of an answer is thrown away. At most one step is queued ahead.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.engine.core import EngineCore, EngineLimits
from tessera_runtime.engine.protocol import Output, TokenLogprob
from tessera_runtime.engine.request import Request
from tessera_runtime.errors import DeviceLost
from tessera_runtime.executor.drawing import (
    BIAS,
    DRAW,
    GREEDY,
    LOGPROBS,
    PENALTIES,
    DrawingExecutor,
    Drawn,
    token_counts,
)
from tessera_runtime.executor.interface import Executor
from tessera_runtime.sampling.errors import LogitsNotFinite
from tessera_runtime.sampling.sampler import SMALLEST_TEMPERATURE
from tessera_runtime.scheduler.scheduler import Work


@dataclass(frozen=True)
class _Flight:
    """A step that was queued."""

    ticket: int
    plan: list[Work]
    drawing: list[Request]
    """In the order of the rows; one that has ended since is passed over."""


class PipelinedCore(EngineCore):
    """Answers as `EngineCore` does, with the device's own draws."""

    def __init__(self, executor: DrawingExecutor, limits: EngineLimits) -> None:
        super().__init__(executor, limits)
        self._drawer = executor
        self._flights: deque[_Flight] = deque()
        executor.allocate_seats(limits.max_sequences)

    @property
    def has_work(self) -> bool:
        return super().has_work or bool(self._flights)

    def step(self) -> list[Output]:
        """Queues a step, reads the one before, and returns all news since the last call."""
        started = self._step_began = time.perf_counter()
        queued = self._queue_next()
        if self._flights and (len(self._flights) > 1 or not queued):
            self._collect()
        self._step_seconds += time.perf_counter() - started
        news, self._news = self._news, []
        return news

    def _queue_next(self) -> bool:
        """Whether a step was queued or run."""
        plan = self._scheduler.schedule()
        if not plan:
            return False
        self._steps += 1
        if any(work.sequence.every_row for work in plan):
            # Prompts whose every row is wanted need the logits themselves.
            self._run_on_host(plan)
            return False
        try:
            self._submit(plan)
        except DeviceLost:
            raise
        except Exception:
            # Step by step and with the draws on the host it turns out whose fault it is.
            self._run_on_host(plan)
            return False
        return True

    def _submit(self, plan: list[Work]) -> None:
        started = time.perf_counter()
        drawing = [self._requests[work.sequence.name] for work in plan if work.draws]
        for work in plan:
            if work.sequence.synced == 0:
                self._begin(self._requests[work.sequence.name])
        batch = self._batches.build(plan)
        draws = np.array([_draw_of(request) for request in drawing], DRAW)
        ticket = self._drawer.submit(batch, draws)
        self._executor_seconds += time.perf_counter() - started
        self._computed += len(batch.token_ids)
        self._scheduler.advance(plan)
        for work in plan:
            self._requests[work.sequence.name].begin(self._step_began)
        for request in drawing:
            # Nothing is computed after the last token of an answer, so none needs to stand for it.
            if not request.draws_its_last:
                request.expect(request.sequence.seat)
        self._flights.append(_Flight(ticket, plan, drawing))

    def _begin(self, request: Request) -> None:
        """Tells the device what a sequence that has just got a seat has said so far, if its draws depend on it."""
        sampled = request.sampled
        if sampled.changes_logits:
            tokens = request.sequence.tokens
            counts: NDArray[np.int16] | None = None
            if sampled.parameters.penalizes:
                prompt = tokens[: request.prompt_length] if sampled.parameters.repetition_penalty != 1.0 else []
                counts = token_counts(self._limits.vocab_size, prompt, tokens[request.prompt_length :])
            self._drawer.begin_seat(request.sequence.seat, counts, list(sampled.parameters.logit_bias.items()))

    def _collect(self) -> None:
        """Reads the oldest step in flight."""
        flight = self._flights.popleft()
        started = time.perf_counter()
        drawn = self._drawer.collect(flight.ticket)
        self._executor_seconds += time.perf_counter() - started
        # Those whose logits are not numbers end first: nobody may find their blocks.
        for row, request in enumerate(flight.drawing):
            if drawn.ids[row] < 0 and self._requests.get(request.id) is request:
                self._fail(request, LogitsNotFinite("The model's logits are not finite."))
        self._scheduler.publish([work for work in flight.plan if work.sequence.running])
        for row, request in enumerate(flight.drawing):
            if self._requests.get(request.id) is request:
                try:
                    self._tell(request, int(drawn.ids[row]), _logprob_of(request, drawn, row))
                except Exception as error:
                    self._fail(request, error)

    def _run_on_host(self, plan: list[Work]) -> None:
        """Reads all that is in flight, then computes what is left of the plan as `EngineCore` does."""
        while self._flights:
            self._collect()
        left = [work for work in plan if work.sequence.running and self._requests.get(work.sequence.name) is not None]
        for done, logits in self._run(left) if left else []:
            self._scheduler.complete(done)
            self._read(done, logits)
        for work in left:
            # What was drawn here the device does not know of.
            if work.sequence.running:
                self._begin(self._requests[work.sequence.name])


def open_core(executor: Executor, limits: EngineLimits) -> EngineCore:
    """The engine that suits an executor."""
    if isinstance(executor, DrawingExecutor) and executor.draws:
        return PipelinedCore(executor, limits)
    return EngineCore(executor, limits)


def _draw_of(request: Request) -> tuple[Any, ...]:
    """A row of `draws`, in the order of `DRAW`."""
    parameters = request.sampled.parameters
    flags = (
        GREEDY * parameters.greedy
        | PENALTIES * parameters.penalizes
        | BIAS * bool(parameters.logit_bias)
        | LOGPROBS * (request.logprobs is not None)
    )
    return (
        request.sequence.seat,
        flags,
        max(parameters.temperature, SMALLEST_TEMPERATURE),
        parameters.top_k,
        parameters.top_p,
        parameters.min_p,
        parameters.repetition_penalty,
        parameters.frequency_penalty,
        parameters.presence_penalty,
        len(parameters.logit_bias),
        0.0 if parameters.greedy else request.sampled.draw(request.unknown),
        request.logprobs or 0,
        (0, 0, 0),
    )


def _logprob_of(request: Request, drawn: Drawn, row: int) -> list[TokenLogprob]:
    if request.logprobs is None:
        return []
    token = int(drawn.ids[row])
    value, likeliest = drawn.logprob(row, request.logprobs)
    return [TokenLogprob(token, value, likeliest)]
