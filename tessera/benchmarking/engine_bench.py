"""Measures an engine in this process, without HTTP."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.benchmarking.workload import PASSAGE, Prompts, Workload, busy_note, median
from tessera_runtime.engine.cache_plan import plan_for
from tessera_runtime.engine.pipeline import open_core
from tessera_runtime.engine.protocol import Output, Submit
from tessera_runtime.engine.settings import EngineSettings
from tessera_runtime.errors import ContextLengthExceeded, ExecutionError, InvalidRequest
from tessera_runtime.executor.interface import Executor, ExecutorLimits
from tessera_runtime.loading import load_executor
from tessera_runtime.package.reader import open_package
from tessera_runtime.sampling.parameters import SamplingParameters
from tessera_runtime.text.tokenizer import Tokenizer

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EngineFigures:
    """Medians over the rounds; rates in tokens per second, times in seconds."""

    package: str
    executor: str
    prefill_tok_s: dict[int, float]
    decode_tok_s: dict[int, float]
    """By batch size; of steps in which every sequence of the batch draws a token."""
    overhead_share: dict[int, float]
    """By batch size: the part of those steps that was not spent in the executor."""
    load_s: float
    """Opening the package, checking every byte of it, loading the executor, planning the cache."""
    first_token_s: float
    """The very first request after that: from submission to its first token."""
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "prefill_tok_s": _keyed(self.prefill_tok_s),
            "decode_tok_s": _keyed(self.decode_tok_s),
            "load_s": self.load_s,
            "first_token_s": self.first_token_s,
            "overhead_share": _keyed(self.overhead_share),
            "package": self.package,
            "executor": self.executor,
            "notes": list(self.notes),
        }


def bench_package(
    path: Path,
    workload: Workload,
    *,
    threads: int | None = None,
    target: str | None = None,
    temperature: float = 0.0,
    notice: Callable[[str], None] | None = None,
    report: Report = lambda phase, done, total: None,
) -> EngineFigures:
    """Loads the package and measures it. Prefixes are not reused and answers do not end early."""
    note = busy_note()
    started = time.perf_counter()
    package = open_package(path, verify="digests")
    tokenizer = Tokenizer(package.path / "tokenizer")
    with load_executor(package, target=target, threads=threads, notice=notice) as executor:
        bench = _Bench(executor, workload, tokenizer, temperature)
        load_s = time.perf_counter() - started
        first_token_s = bench.prefill(workload.prompt)
        figures = bench.measure(report)
        return EngineFigures(
            package=f"{package.manifest.name} {package.manifest.version}",
            executor=executor.description,
            prefill_tok_s=figures["prefill"],
            decode_tok_s=figures["decode"],
            overhead_share=figures["overhead"],
            load_s=load_s,
            first_token_s=first_token_s,
            notes=(note,) if note else (),
        )


class _Bench:
    def __init__(self, executor: Executor, workload: Workload, tokenizer: Tokenizer, temperature: float) -> None:
        self._workload = workload
        self._sampling = SamplingParameters(temperature=temperature)
        self._numbers = itertools.count()
        self._limit = executor.limits.max_model_len
        settings = EngineSettings(
            max_sequences=max(workload.batches),
            pages=_pages(workload, executor.limits),
            prefix_reuse=False,
            lane_shares=(1.0, 1.0, 1.0),
        )
        limits = plan_for(settings, executor)
        if limits.max_sequences < max(workload.batches):
            raise InvalidRequest(
                f"A batch of {max(workload.batches)} was asked for, and this package takes {limits.max_sequences}.",
                hint="Choose smaller numbers for --batch.",
            )
        self._core = open_core(executor, limits)
        vocabulary = executor.limits.vocab_size
        ids = tokenizer.encode(PASSAGE, add_special_tokens=False)
        self._prompts = Prompts([token for token in ids if token < vocabulary], seed=0)

    def measure(self, report: Report) -> dict[str, dict[int, float]]:
        """Rounds are interleaved, so that a busy moment of the machine falls on one sample of each and not on all of
        one. Prompts and the first steps, which are not timed, warm up each batch.
        """
        workload = self._workload
        total = workload.rounds * (len(workload.prefills) + len(workload.batches))
        done = 0
        prefill: dict[int, list[float]] = {length: [] for length in workload.prefills}
        decode: dict[int, list[float]] = {batch: [] for batch in workload.batches}
        overhead: dict[int, list[float]] = {batch: [] for batch in workload.batches}
        self.decode(min(workload.batches), min(4, workload.new))
        for _ in range(workload.rounds):
            for length in workload.prefills:
                prefill[length].append(length / self.prefill(length))
                report("measuring", done := done + 1, total)
            for batch in workload.batches:
                rate, share = self.decode(batch, workload.new)
                decode[batch].append(rate)
                overhead[batch].append(share)
                report("measuring", done := done + 1, total)
        return {"prefill": _medians(prefill), "decode": _medians(decode), "overhead": _medians(overhead)}

    def prefill(self, length: int) -> float:
        """Seconds from the submission of a prompt to its first token."""
        started = time.perf_counter()
        self._submit(length, 1)
        while not any(output.ids for output in self._step()):
            pass
        return time.perf_counter() - started

    def decode(self, batch: int, steps: int) -> tuple[float, float]:
        """Tokens per second of steps in which all sequences draw one, and the share of them outside the executor."""
        waiting = {self._submit(self._workload.prompt, self._limit) for _ in range(batch)}
        names = tuple(waiting)
        while waiting:
            waiting -= {output.request_id for output in self._step() if output.ids}
        before = self._core.statistics().executor_seconds
        started = time.perf_counter()
        tokens = sum(len(self._step()) for _ in range(steps))
        seconds = time.perf_counter() - started
        executor = self._core.statistics().executor_seconds - before
        for name in names:
            self._core.abort(name)
        self._core.step()
        if tokens < batch * steps:
            raise ExecutionError(
                f"Only {tokens} of {batch * steps} tokens came in {steps} steps: the cache is too small for {batch}"
                " sequences.",
                hint="Choose smaller numbers for --batch, --prompt or --new.",
            )
        return tokens / seconds, 1.0 - executor / seconds

    def _submit(self, length: int, max_tokens: int) -> str:
        name = str(next(self._numbers))
        prompt = self._prompts.take(length)
        self._core.submit(Submit(request_id=name, prompt_ids=prompt, max_tokens=max_tokens, sampling=self._sampling))
        return name

    def _step(self) -> list[Output]:
        outputs = self._core.step()
        for output in outputs:
            if output.error is not None:
                raise ExecutionError(f"The engine refused to be measured: {output.error.message}")
        return outputs


def _pages(workload: Workload, limits: ExecutorLimits) -> int:
    """Blocks for the largest batch, whose first sequences draw tokens while the last are still in their prompts."""
    batch = max(workload.batches)
    early = 2 * -(-batch * workload.prompt // max(1, limits.max_tokens - batch)) + 8
    longest = max(workload.prompt + workload.new + min(early, limits.max_model_len), *workload.prefills, 1)
    if max(workload.prompt + workload.new, *workload.prefills, 1) >= limits.max_model_len:
        raise ContextLengthExceeded(
            f"{workload.prompt} tokens of prompt and {workload.new} of answer, or a prompt of {max(workload.prefills)},"
            f" do not fit the context of {limits.max_model_len}.",
            hint="Choose smaller numbers for --prompt, --new or --prefill.",
        )
    whole = -(-limits.max_model_len // limits.block_tokens)
    return max(batch * (-(-longest // limits.block_tokens) + 1), whole)


def _medians(samples: dict[int, list[float]]) -> dict[int, float]:
    found = {key: median(values) for key, values in samples.items()}
    return {key: value for key, value in found.items() if value is not None}


def _keyed(values: dict[int, float]) -> dict[str, float]:
    return {str(key): value for key, value in values.items()}
