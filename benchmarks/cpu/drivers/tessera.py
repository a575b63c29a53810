"""Tessera: the engine of `tessera bench`, in this process, its scheduler and sampling included.

`settings`: `steps`, token counts whose steps are timed alone. The windows of a perplexity are computed like a prompt,
one step of the package's limit after another. Beside a decode of one user, `read` says how fast memory was just before
and after it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu.drivers.protocol import Job, serve, surprise
from benchmarks.cpu.machine import measure_peaks
from benchmarks.cpu.work import DECODE_1
from tessera.benchmarking.engine_bench import bench_package
from tessera.benchmarking.workload import Workload
from tessera_runtime.executor.interface import Executor, StepBatch
from tessera_runtime.loading import load_executor
from tessera_runtime.package.reader import open_package


def workload(work: dict[str, Any]) -> Workload:
    if not work["new"]:
        return Workload(batches=(1,), prompt=16, new=1, prefills=(work["prompt"],), rounds=work["repeats"])
    # The smallest batch of a workload is what warms up, and it need not be the large one.
    batches = tuple(sorted({1, work["users"]}))
    return Workload(batches=batches, prompt=work["prompt"], new=work["new"], prefills=(), rounds=work["repeats"])


def chunk(tokens: list[int], start: int, blocks: int, wanted: bool) -> StepBatch:
    """Tokens of one sequence from position `start` on; logits for all of them or for the last."""
    count = len(tokens)
    rows = np.arange(count, dtype=np.int32) if wanted else np.array([count - 1], np.int32)
    return StepBatch(
        token_ids=np.array(tokens, np.int32),
        positions=np.arange(start, start + count, dtype=np.int32),
        sequences=np.zeros(count, np.int32),
        block_tables=np.arange(blocks, dtype=np.int32)[None].copy(),
        logit_rows=rows,
    )


def step_seconds(executor: Executor, count: int, tokens: list[int]) -> float:
    """Median time of a step of `count` tokens of one prompt."""
    batch = chunk(tokens[:count], 0, -(-count // executor.limits.block_tokens), wanted=False)
    samples: list[float] = []
    deadline = time.perf_counter() + 0.4
    while len(samples) < 7 or time.perf_counter() < deadline:
        started = time.perf_counter()
        executor.step(batch)
        samples.append(time.perf_counter() - started)
    return statistics.median(samples[2:])


def perplexity(executor: Executor, windows: list[list[int]]) -> float:
    total, scored = 0.0, 0
    limit = executor.limits
    for window in windows:
        blocks = -(-len(window) // limit.block_tokens)
        for start in range(0, len(window), limit.max_tokens):
            tokens = window[start : start + limit.max_tokens]
            logits = executor.step(chunk(tokens, start, blocks, wanted=True))
            following = window[start + 1 : start + 1 + len(tokens)]
            total += sum(surprise(row, token) for row, token in zip(logits, following, strict=False))
            scored += len(following)
    return math.exp(total / scored)


def bandwidth(job: Job) -> float:
    return measure_peaks(Path(job["peaks"]), job["threads"], kind="read")["read"]


def measure(job: Job) -> Iterator[dict[str, Any]]:
    path = Path(job["model"])
    for work in job["work"]:
        bound = work["name"] == DECODE_1.name and job["peaks"] is not None
        before = bandwidth(job) if bound else 0.0
        figures = bench_package(path, workload(work), threads=job["threads"])
        rate = figures.decode_tok_s[work["users"]] if work["new"] else figures.prefill_tok_s[work["prompt"]]
        row = {"work": work["name"], "tok_s": rate}
        yield {**row, "read": (before + bandwidth(job)) / 2} if bound else row
    steps = job["settings"].get("steps", ())
    if not steps and not job["windows"]:
        return
    with load_executor(open_package(path), threads=job["threads"]) as executor:
        longest = max([*steps, *map(len, job["windows"])])
        executor.allocate_cache(-(-longest // executor.limits.block_tokens))
        for count in steps:
            tokens = job["prompts"][str(max(map(int, job["prompts"])))][0]
            yield {"step": count, "seconds": step_seconds(executor, count, tokens)}
        if job["windows"]:
            yield {"perplexity": perplexity(executor, job["windows"])}


if __name__ == "__main__":
    serve(measure)
