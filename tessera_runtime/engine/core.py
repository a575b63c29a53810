"""The engine without its process: requests in, tokens out, one step at a time.

A step is: schedule, build the batch, run the executor, draw tokens, say what is new. Whatever goes wrong with one
request ends that request; the others do not notice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.engine.batch import BatchBuilder, rows_of
from tessera_runtime.engine.protocol import EngineStatistics, Failure, Output, Submit, TokenLogprob
from tessera_runtime.engine.request import Request, check_submission, read_logprob
from tessera_runtime.errors import DeviceLost, NumericalError, TesseraError
from tessera_runtime.executor.interface import (
    Executor,
    ExecutorLimits,
    StepBatch,
    StepOutput,
    WeighingExecutor,
    runner_of,
)
from tessera_runtime.kvcache.block_pool import BlockPool
from tessera_runtime.sampling.errors import LogitsNotFinite
from tessera_runtime.sampling.sampler import sample
from tessera_runtime.scheduler.scheduler import Scheduler, SchedulerLimits, Work

SPARE_ROWS = 64
"""Rows of logits that a step may have beside one for each sequence: prompts whose every row is wanted take these."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLimits:
    """What one engine works on at most; `cache_plan.plan_engine` makes it from settings and machine."""

    max_batch_tokens: int
    max_sequences: int
    max_model_len: int
    cache_blocks: int
    lane_seats: tuple[int, ...]
    prefix_reuse: bool = True


class EngineCore:
    """Owns the executor's cache. Not thread-safe."""

    def __init__(self, executor: Executor, limits: EngineLimits) -> None:
        of_program = executor.limits
        self._run_step = runner_of(executor)
        faster = executor if isinstance(executor, WeighingExecutor) else None
        self._weigh, self._row_sampler = (faster.weigh, faster.row_sampler) if faster else (None, None)
        self._limits = ExecutorLimits(
            max_tokens=limits.max_batch_tokens,
            max_model_len=limits.max_model_len,
            vocab_size=of_program.vocab_size,
            block_tokens=of_program.block_tokens,
            bytes_per_block=of_program.bytes_per_block,
        )
        executor.allocate_cache(limits.cache_blocks)
        self._pool = BlockPool(limits.cache_blocks)
        self._scheduler = Scheduler(
            SchedulerLimits(
                max_batch_tokens=limits.max_batch_tokens,
                max_sequences=limits.max_sequences,
                max_rows=limits.max_sequences + SPARE_ROWS,
                block_tokens=of_program.block_tokens,
                lane_seats=limits.lane_seats,
                prefix_reuse=limits.prefix_reuse,
            ),
            self._pool,
        )
        widest = -(-limits.max_model_len // of_program.block_tokens)
        self._batches = BatchBuilder(limits.max_sequences, widest)
        self._requests: dict[str, Request] = {}
        self._news: list[Output] = []
        self._steps = self._computed = self._generated = self._numerical_errors = 0
        self._step_seconds = self._executor_seconds = self._step_began = 0.0

    @property
    def has_work(self) -> bool:
        """Whether `step` would do or say something."""
        return bool(self._requests or self._news)

    def submit(self, submit: Submit) -> None:
        """Takes a request, or says in the next step's outputs why not."""
        if submit.request_id in self._requests:
            # An answer would be taken for the end of the first, which goes on.
            _log.error("the request id %s is in use; its second submission is ignored", submit.request_id)
            return
        try:
            check_submission(submit, self._limits, self._pool.total)
        except TesseraError as error:
            self.refuse(submit.request_id, error)
            return
        request = Request(submit, self._limits)
        if reason := request.finish_reason():
            self._news.append(Output(request_id=request.id, finish_reason=reason))
            return
        self._requests[request.id] = request
        self._scheduler.submit(request.sequence)

    def refuse(self, request_id: str, error: TesseraError) -> None:
        """Answers a request that was not taken."""
        self._news.append(Output(request_id=request_id, error=failure_of(error)))

    def abort(self, request_id: str) -> None:
        """Ends a request now; nothing happens if it is over."""
        request = self._requests.get(request_id)
        if request is not None:
            self._end(request)
            self._news.append(Output(request_id=request_id, finish_reason="abort"))

    def step(self) -> list[Output]:
        """Computes one step and returns all news since the last."""
        started = self._step_began = time.perf_counter()
        plan = self._scheduler.schedule()
        if plan:
            for done, output in self._run(plan):
                self._scheduler.complete(done)
                self._read(done, output)
            self._steps += 1
            self._step_seconds += time.perf_counter() - started
        news, self._news = self._news, []
        return news

    def statistics(self) -> EngineStatistics:
        running = len(self._scheduler.running)
        return EngineStatistics(
            running=running,
            waiting=self._scheduler.waiting,
            used_blocks=self._pool.held,
            cached_blocks=self._pool.idle,
            total_blocks=self._pool.total,
            steps=self._steps,
            computed_tokens=self._computed,
            generated_tokens=self._generated,
            prefix_queried_tokens=self._scheduler.prefix_queried_tokens,
            prefix_hit_tokens=self._scheduler.prefix_hit_tokens,
            preemptions=self._scheduler.preemptions,
            step_seconds=self._step_seconds,
            executor_seconds=self._executor_seconds,
            numerical_errors=self._numerical_errors,
        )

    def check_integrity(self) -> None:
        """Raises `CacheCorrupt` if the books of scheduler and cache contradict one another."""
        self._scheduler.check_integrity()

    def _run(self, plan: list[Work]) -> Iterator[tuple[list[Work], StepOutput]]:
        """Runs the plan; if that fails, its halves, down to the requests at fault, which end. Work may be run twice: it
        writes the same again.
        """
        try:
            batch = self._batches.build(plan)
            output = self._execute(batch)
        except DeviceLost:
            raise
        except Exception as error:
            if len(plan) == 1:
                self._fail(self._requests[plan[0].sequence.name], error)
                return
            middle = len(plan) // 2
            yield from self._run(plan[:middle])
            yield from self._run(plan[middle:])
            return
        self._computed += len(batch.token_ids)
        yield plan, output

    def _execute(self, batch: StepBatch) -> StepOutput:
        started = time.perf_counter()
        try:
            return self._run_step(batch)
        finally:
            self._executor_seconds += time.perf_counter() - started

    def _read(self, plan: list[Work], output: StepOutput) -> None:
        """Draws a token for each sequence whose tokens are all computed, and says it."""
        drawing: list[Request] = []
        rows: list[int] = []
        row = 0
        for work in plan:
            request = self._requests[work.sequence.name]
            request.begin(self._step_began)
            count = rows_of(work)
            try:
                if work.sequence.every_row and count:
                    request.read_prompt_rows(output.logits[row : row + count], work.start)
            except Exception as error:
                self._fail(request, error)
            else:
                if work.draws:
                    drawing.append(request)
                    rows.append(row + count - 1)
            row += count
        if not drawing:
            return
        chosen = output.rows(rows)
        for index, (request, token) in enumerate(zip(drawing, self._draw(chosen, drawing), strict=True)):
            if token >= 0:
                try:
                    self._say(request, token, chosen.logits[index])
                except Exception as error:
                    self._fail(request, error)

    def _draw(self, output: StepOutput, requests: Sequence[Request]) -> list[int]:
        """The tokens of the rows; -1 where the request was ended instead."""
        runs = None if output.peaks is None else (output.peaks.values, output.peaks.columns)
        try:
            sequences = [request.sampled for request in requests]
            return sample(output.logits, sequences, runs, self._weigh, self._row_sampler).tolist()
        except LogitsNotFinite as error:
            for row in error.rows:
                self._fail(requests[row], error)
            return error.tokens.tolist()
        except Exception as error:
            if len(requests) == 1:
                self._fail(requests[0], error)
                return [-1]
            return [self._draw(output.rows([row]), [request])[0] for row, request in enumerate(requests)]

    def _say(self, request: Request, token: int, row: NDArray[np.float32]) -> None:
        self._tell(request, token, [] if request.logprobs is None else [read_logprob(row, token, request.logprobs)])

    def _tell(self, request: Request, token: int, logprobs: list[TokenLogprob]) -> None:
        """A token was drawn for a request: it is news, and perhaps the last."""
        request.append(token)
        self._generated += 1
        reason = request.finish_reason()
        if reason:
            self._end(request)
        first, request.silent = request.silent, False
        self._news.append(
            Output(
                request_id=request.id,
                ids=[token],
                logprobs=logprobs,
                prompt_logprobs=request.prompt_logprobs if first else None,
                cached_tokens=min(request.sequence.cached_tokens or 0, request.prompt_length) if first else 0,
                queue_seconds=request.queue_seconds if first else None,
                finish_reason=reason,
            )
        )
        request.sequence.every_row = False

    def _end(self, request: Request, *, poisoned: bool = False) -> None:
        del self._requests[request.id]
        self._scheduler.finish(request.sequence, poisoned=poisoned)

    def _fail(self, request: Request, error: Exception) -> None:
        if isinstance(error, NumericalError):
            self._numerical_errors += 1
        elif not isinstance(error, TesseraError):
            _log.error("request %s failed", request.id, exc_info=error)
        self._end(request, poisoned=True)
        self._news.append(Output(request_id=request.id, error=failure_of(error)))


def failure_of(error: Exception) -> Failure:
    """What a client may know: nothing of the inside of a defect."""
    if isinstance(error, NumericalError):
        return Failure(error.code, "The model's logits are not numbers, so the answer cannot go on.")
    if isinstance(error, TesseraError):
        return Failure(error.code, str(error))
    return Failure("internal-error", "The engine failed on this request; its log says how.")
