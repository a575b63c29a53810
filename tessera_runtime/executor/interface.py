"""The one interface behind which every executor stands.

An executor runs one *step* of a package's program (docs/spec/program.md): T tokens of any number of sequences in,
logits of the rows asked for out. It knows no model, no request and no scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.sampling.weighing import RowSampler


@dataclass(frozen=True)
class StepBatch:
    """The inputs of one step. All arrays are C-contiguous int32; docs/spec/program.md says what each means."""

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    sequences: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    logit_rows: NDArray[np.int32]


@dataclass(frozen=True)
class ExecutorLimits:
    """What a caller must stay within; steps beyond it are refused with `StepTooLarge`."""

    max_tokens: int
    max_model_len: int
    vocab_size: int
    block_tokens: int
    bytes_per_block: int


@dataclass(frozen=True)
class Peaks:
    """The largest of each run of `columns` logits."""

    values: NDArray[np.float32]
    """[L, runs]; NaN where a run holds one."""
    columns: int


Weigh: TypeAlias = Callable[[NDArray[np.float32], float, float], tuple[NDArray[np.float32], NDArray[np.float32], int]]
"""exp((row - peak) / temperature) of a row of logits, its highest, and a temperature: a function of nothing else. Then
the sums of runs of these weights, and how long runs are. The arrays hold until the next call."""


@dataclass(frozen=True)
class StepOutput:
    """What a step made: valid until the next one begins."""

    logits: NDArray[np.float32]
    """[L, vocab_size]"""
    peaks: Peaks | None = None

    def rows(self, rows: Sequence[int]) -> StepOutput:
        """Those of some of the logit rows, in this order."""
        if len(rows) == len(self.logits):
            return self
        peaks = self.peaks and Peaks(self.peaks.values[rows], self.peaks.columns)
        return StepOutput(self.logits[rows], peaks)


class Executor(Protocol):
    """A loaded program. Not thread-safe: one caller at a time."""

    @property
    def limits(self) -> ExecutorLimits: ...

    @property
    def description(self) -> str:
        """One line for people: the target, the CPU class and the threads."""
        ...

    def allocate_cache(self, blocks: int) -> None:
        """Makes the KV pool, all zero. Called once before the first step; calling it again starts over."""
        ...

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        """Runs one step and returns logits [L, vocab_size]. The array is the caller's to keep."""
        ...

    def trace(self, batch: StepBatch) -> list[tuple[str, NDArray[np.float32]]]:
        """Runs one step and returns the output of every layer of `program.layers` as (module path, [T, width])."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class LendingExecutor(Protocol):
    """An executor that can lend what a step made instead of copying it."""

    def run(self, batch: StepBatch) -> StepOutput:
        """Runs one step; the arrays are the executor's own, and hold until the next."""
        ...


@runtime_checkable
class WeighingExecutor(Protocol):
    """An executor that may have faster ways to weigh logits, and to draw from them, than NumPy."""

    @property
    def weigh(self) -> Weigh | None: ...

    @property
    def row_sampler(self) -> RowSampler | None: ...


def runner_of(executor: Executor) -> Callable[[StepBatch], StepOutput]:
    """What makes a step by the shortest way that the executor has."""
    return executor.run if isinstance(executor, LendingExecutor) else lambda batch: StepOutput(executor.step(batch))
