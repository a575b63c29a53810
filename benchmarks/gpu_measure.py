"""What is measured on a GPU: bounds, decoding of one user, serving of 256, single kernels, the start."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_models import GpuModel, RandomSource
from tessera_runtime.engine.core import EngineLimits
from tessera_runtime.engine.pipeline import open_core
from tessera_runtime.engine.protocol import Submit
from tessera_runtime.executor.cuda.driver import CudaDriver, open_cuda_driver
from tessera_runtime.executor.drawing import idle_draws
from tessera_runtime.executor.gpu.executor import GpuExecutor
from tessera_runtime.executor.gpu.step_runner import Form
from tessera_runtime.executor.interface import StepBatch
from tessera_runtime.sampling.parameters import SamplingParameters

COPY_BYTES = 4 << 30
CONTEXT = 512
USERS = 256


@dataclass(frozen=True)
class Bounds:
    """What the device does at best, measured in the same run."""

    bytes_per_second: float
    """Read and written together, by a copy within the device."""
    flops_per_second: float | None
    """Of bf16 products by cuBLAS; None without torch."""

    def seconds(self, size: float, flops: float = 0.0) -> float:
        times = [size / self.bytes_per_second]
        if self.flops_per_second is not None:
            times.append(flops / self.flops_per_second)
        return max(times)


def copy_bandwidth(driver: CudaDriver, api: Any) -> float:
    """Bytes per second, read and written, of the best of some copies."""
    size = min(COPY_BYTES, driver.free_memory() // 4)
    stream = driver.create_stream()
    source, target = driver.allocate(size), driver.allocate(size)
    first, last = driver.create_event(), driver.create_event()
    best = float("inf")
    for _ in range(6):
        driver.record_event(first, stream)
        api.cuMemcpyDtoDAsync(target, source, size, stream)
        driver.record_event(last, stream)
        driver.synchronize(stream)
        best = min(best, driver.seconds_between(first, last))
    for event in (first, last):
        driver.destroy_event(event)
    driver.free(source)
    driver.free(target)
    driver.destroy_stream(stream)
    return 2 * size / best


def open_model(model: GpuModel, seed: int, blocks: int, seats: int) -> GpuExecutor:
    executor = GpuExecutor(open_cuda_driver(), model.program, model.folder, RandomSource(model, seed))
    executor.allocate_cache(blocks)
    executor.allocate_seats(seats)
    return executor


def blocks_of(model: GpuModel, positions: int) -> int:
    return -(-positions // model.program.cache.block_tokens)


def decoding_batch(model: GpuModel, users: int, context: int, tokens: Sequence[int] | None = None) -> StepBatch:
    """Each user's next token at position `context`, in blocks of their own."""
    each = blocks_of(model, context + CONTEXT)
    tables = np.arange(users * each, dtype=np.int32).reshape(users, each)
    return StepBatch(
        token_ids=np.array(tokens if tokens is not None else np.arange(users) % 1000, np.int32),
        positions=np.full(users, context, np.int32),
        sequences=np.arange(users, dtype=np.int32),
        block_tables=np.ascontiguousarray(tables[:, : blocks_of(model, context + 1)]),
        logit_rows=np.arange(users, dtype=np.int32),
    )


def prompt_batch(model: GpuModel, length: int) -> StepBatch:
    return StepBatch(
        token_ids=(np.arange(length, dtype=np.int32) * 37) % 1000,
        positions=np.arange(length, dtype=np.int32),
        sequences=np.zeros(length, np.int32),
        block_tables=np.arange(blocks_of(model, length), dtype=np.int32)[None],
        logit_rows=np.array([length - 1], np.int32),
    )


@dataclass(frozen=True)
class StepTime:
    """A step's time as a user sees it, and as the device counts it."""

    wall: float
    device: float


def time_decoding(model: GpuModel, executor: GpuExecutor, users: int, context: int, steps: int) -> StepTime:
    """Steps that follow each other; where the program draws, each is queued before the one before is read."""
    form: Form = "greedy" if executor.draws else "logits"
    device = executor.time_step(decoding_batch(model, users, context), form)
    draws: NDArray[Any] = idle_draws(users)
    draws["seat"] = np.arange(users)
    walls = []
    for _ in range(3):
        tickets: list[int] = []
        began = time.perf_counter()
        for number in range(steps):
            tokens = -1 - np.arange(users) if executor.draws and number else None
            batch = decoding_batch(model, users, context + number, tokens)  # type: ignore[arg-type]
            if not executor.draws:
                executor.step(batch)
                continue
            tickets.append(executor.submit(batch, draws))
            if len(tickets) > 1:
                executor.collect(tickets.pop(0))
        for ticket in tickets:
            executor.collect(ticket)
        walls.append((time.perf_counter() - began) / steps)
    return StepTime(statistics.median(walls), device)


@dataclass(frozen=True)
class ServingTime:
    seconds: float
    bound: float
    """Seconds that the same steps would take at the device's limits."""
    prompt_tokens: int
    answer_tokens: int
    steps: int


def lengths_of(seed: int, requests: int = USERS) -> list[tuple[int, int]]:
    """Prompt and answer lengths, 100 to 1024 each."""
    random = np.random.default_rng(seed)
    return [(int(a), int(b)) for a, b in random.integers(100, 1025, (requests, 2))]


def time_serving(model: GpuModel, executor: GpuExecutor, bounds: Bounds, seed: int, batch_tokens: int) -> ServingTime:
    """All requests there at once, greedy, to their full length."""
    lengths = lengths_of(seed)
    limits = EngineLimits(
        max_batch_tokens=min(batch_tokens, executor.limits.max_tokens),
        max_sequences=USERS,
        max_model_len=executor.limits.max_model_len,
        cache_blocks=sum(blocks_of(model, prompt + answer) for prompt, answer in lengths) + USERS,
        lane_seats=(USERS,) * 3,
        prefix_reuse=False,
    )
    core = open_core(executor, limits)
    bound = 0.0
    check, submit, step = executor, executor.submit, executor.step

    def counted(batch: StepBatch) -> None:
        nonlocal bound
        size = model.step_bytes + model.bytes_per_position * float(_contexts(batch).sum())
        bound += bounds.seconds(size, 2.0 * model.matrix_elements * len(batch.token_ids))

    def counting_submit(batch: StepBatch, draws: NDArray[Any]) -> int:
        counted(batch)
        return submit(batch, draws)

    def counting_step(batch: StepBatch) -> NDArray[np.float32]:
        counted(batch)
        return step(batch)

    check.submit, check.step = counting_submit, counting_step  # type: ignore[method-assign]
    random = np.random.default_rng(seed)
    for number, (prompt, answer) in enumerate(lengths):
        core.submit(
            Submit(
                request_id=str(number),
                prompt_ids=random.integers(0, 10_000, prompt).tolist(),
                max_tokens=answer,
                sampling=SamplingParameters(temperature=0),
            )
        )
    began = time.perf_counter()
    steps = 0
    try:
        while core.has_work:
            core.step()
            steps += 1
    finally:
        check.submit, check.step = submit, step  # type: ignore[method-assign]
    seconds = time.perf_counter() - began
    return ServingTime(seconds, bound, sum(p for p, _ in lengths), sum(a for _, a in lengths), steps)


def _contexts(batch: StepBatch) -> NDArray[np.int64]:
    last = np.zeros(len(batch.block_tables), np.int64)
    np.maximum.at(last, batch.sequences, batch.positions.astype(np.int64) + 1)
    return last


@dataclass(frozen=True)
class KernelTime:
    """A product or an attention of a step, by shape."""

    group: str
    shape: tuple[int, ...]
    seconds: float
    flops: float


def kernel_times(model: GpuModel, executor: GpuExecutor, tokens: int) -> list[KernelTime]:
    """Every distinct product, and attention, of a prompt of so many tokens."""
    batch = prompt_batch(model, tokens)
    by_group: dict[str, float] = {}
    for each in executor.time_launches(batch):
        by_group.setdefault(each.group, each.seconds)
    times: dict[str, KernelTime] = {}
    heads, width = int(model.config["num_attention_heads"]), int(model.config.get("head_dim") or 0)
    width = width or int(model.config["hidden_size"]) // heads
    for launch in model.program.launches:
        group = launch.group
        if group in times or group not in by_group:
            continue
        kind = model.raw["groups"][group]["kind"]
        matrix = matrix_of(model, group)
        if matrix:
            rows, columns = matrix
            of_logits = str(model.raw["groups"][group]["variants"][-1]["grid"][0]).startswith("L")
            count = 1 if of_logits else tokens
            shape = (count, rows, columns)
            times[group] = KernelTime(group, shape, by_group[group], 2.0 * count * rows * columns)
        elif kind == "attention":
            flops = 4.0 * heads * width * tokens * (tokens + 1) / 2
            times[group] = KernelTime(group, (tokens, heads, width), by_group[group], flops)
    return list(times.values())


@dataclass(frozen=True)
class GroupTime:
    """The launches of one group in a step, each timed alone."""

    group: str
    source: str
    """The work it was compiled from."""
    shape: tuple[int, ...]
    """Of its matrix, if it is a product."""
    launches: int
    seconds: float
    """Of all of them."""


def launch_times(
    model: GpuModel, executor: GpuExecutor, users: int, context: int, repeats: int = 10
) -> tuple[float, list[GroupTime]]:
    """Seconds of a whole decoding step on the device, and what its launches take, in order of the first of each
    group."""
    batch = decoding_batch(model, users, context)
    form: Form = "greedy" if executor.draws else "logits"
    step = executor.time_step(batch, form)
    found: dict[str, list[float]] = {}
    for each in executor.time_launches(batch, form, repeats):
        found.setdefault(each.group, []).append(each.seconds)
    return step, [
        GroupTime(group, model.raw["groups"][group]["source"], matrix_of(model, group), len(times), sum(times))
        for group, times in found.items()
    ]


def matrix_of(model: GpuModel, group: str) -> tuple[int, ...]:
    """The shape of a product's matrix; empty if there is none, or more than one."""
    if model.raw["groups"][group]["kind"] != "linear":
        # Others may name a matrix only to have it fetched early.
        return ()
    for launch in model.program.launches:
        if launch.group == group:
            weights = [each.index for each in launch.arguments if each.kind == "weight"]
            matrices = [model.raw["weights"][index]["shape"] for index in weights if model.is_matrix(index)]
            return tuple(matrices[0]) if len(matrices) == 1 else ()
    return ()
