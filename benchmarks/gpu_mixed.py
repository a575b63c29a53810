"""What a long prompt costs those who are being answered: steps that carry a part of it, beside steps that do not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_measure import blocks_of
from benchmarks.gpu_models import GpuModel
from tessera_runtime.engine.core import EngineCore, EngineLimits
from tessera_runtime.engine.pipeline import open_core
from tessera_runtime.engine.protocol import Submit
from tessera_runtime.executor.drawing import Drawn
from tessera_runtime.executor.gpu.executor import GpuExecutor
from tessera_runtime.executor.gpu.step_runner import Form
from tessera_runtime.executor.interface import StepBatch
from tessera_runtime.sampling.parameters import SamplingParameters


@dataclass(frozen=True)
class Mix:
    """Who is there: users who are answered, and a prompt that comes in chunks."""

    users: int = 64
    context: int = 512
    """Of each user when the answers begin."""
    prompt: int = 2048
    chunk: int = 512
    rounds: int = 5
    """After one that is not counted."""
    quiet: int = 20
    """Steps before each prompt."""

    @property
    def chunks(self) -> int:
        return -(-self.prompt // self.chunk)

    @property
    def answer(self) -> int:
        """Tokens that each user's answer needs, so that nobody has ended before the last prompt is done."""
        filling = -(-self.users * self.context // self.chunk)
        return filling + (self.rounds + 1) * (self.quiet + self.chunks + 4) + 16


@dataclass(frozen=True)
class MixedTime:
    """Seconds from a step's tokens to the next step's, as the users see them; and of the device."""

    alone: float
    carrying: tuple[float, ...]
    """By chunk of the prompt."""
    first_token: float
    """From handing the prompt over to its first token."""
    context: int
    """Of the users, for the device's times."""
    device_alone: float
    device_carrying: tuple[float, ...]

    @property
    def times(self) -> float:
        """How much longer the slowest step is that carries a chunk."""
        return max(self.carrying) / self.alone


@dataclass
class _Watch:
    """How many tokens each step had, and when its results were there."""

    tokens: list[int] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    @contextmanager
    def over(self, executor: GpuExecutor) -> Iterator[None]:
        queued: dict[int, int] = {}
        submit, collect, step = executor.submit, executor.collect, executor.step

        def watched_submit(batch: StepBatch, draws: NDArray[Any]) -> int:
            ticket = submit(batch, draws)
            queued[ticket] = len(batch.token_ids)
            return ticket

        def watched_collect(ticket: int) -> Drawn:
            drawn = collect(ticket)
            self._note(queued.pop(ticket))
            return drawn

        def watched_step(batch: StepBatch) -> NDArray[np.float32]:
            logits = step(batch)
            self._note(len(batch.token_ids))
            return logits

        try:
            executor.submit, executor.collect = watched_submit, watched_collect  # type: ignore[method-assign]
            executor.step = watched_step  # type: ignore[method-assign]
            yield
        finally:
            executor.submit, executor.collect, executor.step = submit, collect, step  # type: ignore[method-assign]

    def _note(self, tokens: int) -> None:
        self.tokens.append(tokens)
        self.ends.append(time.perf_counter())

    def gaps(self, mix: Mix, since: int) -> tuple[list[float], list[list[float]]]:
        """Seconds before the end of each step from `since` on: of those that only decode, and by chunk."""
        alone: list[float] = []
        carrying: list[list[float]] = [[] for _ in range(mix.chunks)]
        chunk = 0
        for number in range(since, len(self.ends)):
            gap = self.ends[number] - self.ends[number - 1]
            if self.tokens[number] == mix.users:
                alone.append(gap)
                chunk = 0
            elif self.tokens[number] > mix.users and chunk < mix.chunks:
                carrying[chunk].append(gap)
                chunk += 1
        return alone, carrying


def time_mixed(model: GpuModel, executor: GpuExecutor, seed: int, mix: Mix | None = None) -> MixedTime:
    """Through the engine, greedy; leaves the executor with the cache and the seats of this many users."""
    mix = mix or Mix()
    each = blocks_of(model, mix.context + mix.answer)
    limits = EngineLimits(
        max_batch_tokens=mix.users + mix.chunk,
        max_sequences=mix.users + 1,
        max_model_len=executor.limits.max_model_len,
        # One each is kept free for those who run.
        cache_blocks=mix.users * (each + 1) + blocks_of(model, mix.prompt + 1) + 1,
        lane_seats=(mix.users + 1,) * 3,
        prefix_reuse=False,
    )
    watch = _Watch()
    with watch.over(executor):
        core = open_core(executor, limits)
        counted, first_tokens = _serve(core, watch, mix, executor.limits.vocab_size, seed)
    alone, carrying = watch.gaps(mix, counted)
    context = mix.context + mix.answer // 2
    form: Form = "greedy" if executor.draws else "logits"
    devices = [
        executor.time_step(mixed_batch(model, mix, context, start), form)
        for start in (None, *range(0, mix.prompt, mix.chunk))
    ]
    return MixedTime(
        alone=statistics.median(alone),
        carrying=tuple(statistics.median(gaps) for gaps in carrying),
        first_token=statistics.median(first_tokens),
        context=context,
        device_alone=devices[0],
        device_carrying=tuple(devices[1:]),
    )


def _serve(core: EngineCore, watch: _Watch, mix: Mix, vocab_size: int, seed: int) -> tuple[int, list[float]]:
    """Answers all users with prompts between; the first step that counts, and seconds to each prompt's first token."""
    random = np.random.default_rng(seed)

    def submit(name: str, length: int, answer: int) -> None:
        prompt = random.integers(0, vocab_size, length).tolist()
        core.submit(
            Submit(request_id=name, prompt_ids=prompt, max_tokens=answer, sampling=SamplingParameters(temperature=0))
        )

    def step() -> set[str]:
        """Who has ended."""
        if not core.has_work:
            raise RuntimeError("all answers ended before the last prompt was done")
        ended = set()
        for output in core.step():
            if output.error is not None:
                raise RuntimeError(f"{output.request_id}: {output.error.message}")
            if output.finish_reason is not None:
                ended.add(output.request_id)
        return ended

    for user in range(mix.users):
        submit(f"user {user}", mix.context, mix.answer)
    while watch.tokens[-2:] != [mix.users] * 2:
        step()
    counted = 0
    first_tokens = []
    for number in range(mix.rounds + 1):
        for _ in range(mix.quiet):
            step()
        if number == 1:
            # Graphs are recorded by now.
            counted = len(watch.ends)
        name = f"prompt {number}"
        began = time.perf_counter()
        submit(name, mix.prompt, 1)
        while name not in step():
            pass
        if number:
            first_tokens.append(time.perf_counter() - began)
    for user in range(mix.users):
        core.abort(f"user {user}")
    while core.has_work:
        core.step()
    return counted, first_tokens


def mixed_batch(model: GpuModel, mix: Mix, context: int, start: int | None) -> StepBatch:
    """Each user's next token at position `context`, and the chunk of a prompt that begins at `start`, if there is one,
    as the engine puts them together."""
    count = 0 if start is None else min(mix.chunk, mix.prompt - start)
    each, wide = blocks_of(model, context + 1), blocks_of(model, mix.prompt)
    tables = np.zeros((mix.users, each), np.int32)
    tables[:] = np.arange(mix.users * each, dtype=np.int32).reshape(mix.users, each)
    users = np.arange(mix.users, dtype=np.int32)
    rows = list(range(mix.users))
    positions = np.full(mix.users, context, np.int32)
    if start is not None:
        width = max(each, wide)
        tables = np.pad(tables, ((0, 1), (0, width - each)))
        tables[-1, :wide] = mix.users * each + np.arange(wide)
        positions = np.concatenate([positions, np.arange(start, start + count, dtype=np.int32)])
        if start + count == mix.prompt:
            rows.append(mix.users + count - 1)
    return StepBatch(
        token_ids=(np.arange(mix.users + count, dtype=np.int32) * 37) % model.program.limits.vocab_size,
        positions=positions,
        sequences=np.concatenate([users, np.full(count, mix.users, np.int32)]).astype(np.int32),
        block_tables=np.ascontiguousarray(tables),
        logit_rows=np.array(rows, np.int32),
    )
