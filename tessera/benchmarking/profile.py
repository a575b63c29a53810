"""Times every kernel of a step and sets it against what this machine can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tessera.benchmarking.launch_costs import PEAK_OF, LaunchCost, StepShape, launch_cost, launched_variant
from tessera.benchmarking.workload import busy_note
from tessera_runtime.errors import ContextLengthExceeded, InvalidRequest, StepTooLarge, TargetUnavailable
from tessera_runtime.executor.interface import ExecutorLimits, StepBatch
from tessera_runtime.loading import load_executor
from tessera_runtime.package.reader import open_package

if TYPE_CHECKING:
    from tessera_runtime.executor.cpu.executor import CpuExecutor
    from tessera_runtime.executor.cpu.peaks import MachinePeaks

DEFAULT_SHAPES = (StepShape(1, 128, 1), StepShape(64, 128, 64), StepShape(512, 0, 1))
"""One user's decode, that of 64, and a prompt."""
SECONDS_A_SHAPE = 0.5
FEWEST_STEPS, MOST_STEPS = 7, 100


def is_tuned(marked: object, cpu_class: str) -> bool | None:
    """What a program's group says of one class; packages of before said it of all classes together."""
    return cpu_class in marked if isinstance(marked, list) else None if marked is None else bool(marked)


@dataclass(frozen=True)
class KernelFigures:
    """All launches of one group in a step."""

    group: str
    kind: str
    source: str
    tuned: bool | None
    symbol: str
    calls: int
    seconds: float
    cost: LaunchCost
    bound_seconds: float
    bound_by: str
    """`memory`, `cache` or the element whose arithmetic it is."""


@dataclass(frozen=True)
class StepFigures:
    shape: StepShape
    seconds: float
    """The median step; the kernels' times add up to it but for the median of each."""
    barriers: int
    kernels: tuple[KernelFigures, ...]
    peaks: MachinePeaks
    """The better of what was measured right before and right after the step: other users of a machine take now more and
    now less of its memory's rate.
    """

    @property
    def bound_seconds(self) -> float:
        return sum(kernel.bound_seconds for kernel in self.kernels)


@dataclass(frozen=True)
class Profile:
    package: str
    executor: str
    steps: tuple[StepFigures, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "package": self.package,
            "executor": self.executor,
            "steps": [_step_dict(step) for step in self.steps],
            "notes": list(self.notes),
        }


def profile_package(
    path: Path,
    shapes: tuple[StepShape, ...] = (),
    *,
    threads: int | None = None,
    target: str | None = None,
    report: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Profile:
    """Profiles steps of these shapes; without any, of `DEFAULT_SHAPES`, cut down to what the package takes."""
    note = busy_note()
    package = open_package(path, verify="digests")
    with load_executor(package, target=target or "cpu", threads=threads) as executor:
        from tessera_runtime.executor.cpu.executor import CpuExecutor

        if not isinstance(executor, CpuExecutor):
            raise TargetUnavailable(
                f"Kernels are timed on the target cpu, and this is {executor.description}.",
                hint="Leave --target out.",
            )
        limits = executor.limits
        for shape in shapes:
            _require_possible(shape, limits)
        chosen = shapes or tuple(dict.fromkeys(_cut_down(shape, limits) for shape in DEFAULT_SHAPES))
        report("measuring", 0, len(chosen) + 1)
        before = executor.measure_peaks()
        program = package.program("cpu")
        sizes = {name: int(array.nbytes) for name, array in package.weights().items()}
        steps = []
        for number, shape in enumerate(chosen):
            report("measuring", number + 1, len(chosen) + 1)
            times = _time_step(executor, shape)
            after = executor.measure_peaks()
            steps.append(_figures(program, executor.cpu_class, sizes, before.or_better(after), shape, times))
            before = after
        report("measuring", len(chosen) + 1, len(chosen) + 1)
        return Profile(
            package=f"{package.manifest.name} {package.manifest.version}",
            executor=executor.description,
            steps=tuple(steps),
            notes=(note,) if note else (),
        )


def batch_of(shape: StepShape, limits: ExecutorLimits) -> tuple[StepBatch, int]:
    """Some step of this shape, and how many blocks of the cache it needs."""
    blocks = -(-(shape.context + shape.each) // limits.block_tokens)
    first = np.arange(shape.sequences, dtype=np.int32)
    positions = np.arange(shape.context, shape.context + shape.each, dtype=np.int32)
    batch = StepBatch(
        token_ids=(np.arange(shape.tokens, dtype=np.int32) * 7919 + 5) % np.int32(limits.vocab_size),
        positions=np.tile(positions, shape.sequences),
        sequences=np.repeat(first, shape.each),
        block_tables=np.arange(shape.sequences * blocks, dtype=np.int32).reshape(shape.sequences, blocks),
        logit_rows=(first + np.int32(1)) * np.int32(shape.each) - np.int32(1),
    )
    return batch, shape.sequences * blocks


def _time_step(executor: CpuExecutor, shape: StepShape) -> NDArray[np.float64]:
    """Seconds of each launch in some steps."""
    batch, blocks = batch_of(shape, executor.limits)
    executor.allocate_cache(blocks)
    once = float(np.median(executor.profile(batch, 2).sum(axis=1)))
    return executor.profile(batch, min(MOST_STEPS, max(FEWEST_STEPS, int(SECONDS_A_SHAPE / max(once, 1e-6)))))


def _figures(
    program: Mapping[str, Any],
    cpu_class: str,
    weight_sizes: Mapping[str, int],
    peaks: MachinePeaks,
    shape: StepShape,
    times: NDArray[np.float64],
) -> StepFigures:
    by_launch = np.median(times, axis=0)
    seconds: dict[str, float] = {}
    costs: dict[str, LaunchCost] = {}
    calls: dict[str, int] = {}
    bounds: dict[str, dict[str, float]] = {}
    variants: dict[str, dict[str, Any]] = {}
    for launch, taken in zip(program["launches"], by_launch, strict=True):
        name = launch["group"]
        if name not in variants:
            variants[name] = launched_variant(program, cpu_class, name, shape)
        cost = launch_cost(program, launch, variants[name]["grid"], weight_sizes, shape)
        seconds[name] = seconds.get(name, 0.0) + float(taken)
        costs[name] = costs[name] + cost if name in costs else cost
        calls[name] = calls.get(name, 0) + 1
        for bound, value in bounds_of(cost, peaks).items():
            each = bounds.setdefault(name, {})
            each[bound] = each.get(bound, 0.0) + value
    kernels = []
    for name, taken in seconds.items():
        group = program["groups"][name]
        bound_by = max(bounds[name], key=lambda bound: bounds[name][bound])
        kernels.append(
            KernelFigures(
                group=name,
                kind=group["kind"],
                source=group["source"],
                tuned=is_tuned(group["tuned"], cpu_class),
                symbol=variants[name]["symbol"],
                calls=calls[name],
                seconds=taken,
                cost=costs[name],
                bound_seconds=bounds[name][bound_by],
                bound_by=bound_by,
            )
        )
    barriers = sum(bool(launch["barrier"]) for launch in program["launches"])
    return StepFigures(shape, float(np.median(times.sum(axis=1))), barriers, tuple(kernels), peaks)


def bounds_of(cost: LaunchCost, peaks: MachinePeaks) -> dict[str, float]:
    """The least seconds by each limit. Weights and the KV cache come from memory, for a step reads more than caches
    hold; intermediate values stay in them.
    """
    found = {
        "memory": (cost.weight_bytes + cost.cache_bytes) / peaks.memory_bytes_s,
        "cache": cost.buffer_bytes / peaks.cached_bytes_s,
    }
    peak = peaks.multiply_adds_s.get(PEAK_OF.get(cost.element or "", ""))
    if peak and cost.multiply_adds:
        found[str(cost.element)] = cost.multiply_adds / peak
    return found


def _require_possible(shape: StepShape, limits: ExecutorLimits) -> None:
    if shape.tokens % shape.sequences:
        raise InvalidRequest(
            f"{shape.tokens} tokens cannot be shared out among {shape.sequences} sequences.",
            hint="Choose --tokens as a multiple of --sequences.",
        )
    if shape.tokens > limits.max_tokens:
        raise StepTooLarge(
            f"A step of this package has at most {limits.max_tokens} tokens, not {shape.tokens}.",
            hint="Choose a smaller --tokens.",
        )
    if shape.context + shape.each > limits.max_model_len:
        raise ContextLengthExceeded(
            f"{shape.context} tokens of context and {shape.each} new ones do not fit {limits.max_model_len}.",
            hint="Choose a smaller --context.",
        )


def _cut_down(shape: StepShape, limits: ExecutorLimits) -> StepShape:
    if shape.sequences > 1:
        sequences = min(shape.sequences, limits.max_tokens)
        return StepShape(sequences, min(shape.context, limits.max_model_len - 1), sequences)
    tokens = min(shape.tokens, limits.max_tokens, limits.max_model_len)
    return StepShape(tokens, min(shape.context, limits.max_model_len - tokens), 1)


def _step_dict(step: StepFigures) -> dict[str, Any]:
    return {
        "tokens": step.shape.tokens,
        "context": step.shape.context,
        "sequences": step.shape.sequences,
        "seconds": step.seconds,
        "bound_seconds": step.bound_seconds,
        "barriers": step.barriers,
        "peaks": {
            "memory_bytes_s": step.peaks.memory_bytes_s,
            "cached_bytes_s": step.peaks.cached_bytes_s,
            "multiply_adds_s": dict(step.peaks.multiply_adds_s),
        },
        "kernels": [
            {
                "group": kernel.group,
                "kind": kernel.kind,
                "source": kernel.source,
                "tuned": kernel.tuned,
                "symbol": kernel.symbol,
                "calls": kernel.calls,
                "seconds": kernel.seconds,
                "weight_bytes": kernel.cost.weight_bytes,
                "buffer_bytes": kernel.cost.buffer_bytes,
                "cache_bytes": kernel.cost.cache_bytes,
                "multiply_adds": kernel.cost.multiply_adds,
                "element": kernel.cost.element,
                "bound_seconds": kernel.bound_seconds,
                "bound_by": kernel.bound_by,
            }
            for kernel in step.kernels
        ],
    }
