"""Runs a program's native object on the processor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.abi import require_supported
from tessera_runtime.errors import CacheNotAllocated, InvalidRequest, ProgramInvalid, TargetUnavailable
from tessera_runtime.executor.batch_check import check_batch
from tessera_runtime.executor.cpu.attention_tiles import attention_tiles
from tessera_runtime.executor.cpu.context import EVERY_LAUNCH, MAX_THREADS, Context
from tessera_runtime.executor.cpu.memory import address_of, zeroed_memory
from tessera_runtime.executor.cpu.native_object import NativeObject
from tessera_runtime.executor.cpu.peaks import MachinePeaks, measure_peaks
from tessera_runtime.executor.cpu.processor import (
    choose_class,
    machine_of_class,
    missing_features,
    physical_cores,
    read_processor,
    usable_cores,
)
from tessera_runtime.executor.cpu.row_drawer import RowDrawer
from tessera_runtime.executor.cpu.timeline import Timeline
from tessera_runtime.executor.cpu.weigher import Weigher
from tessera_runtime.executor.cpu.weight_table import bind_weights
from tessera_runtime.executor.cpu.workers import WorkerPool
from tessera_runtime.executor.interface import ExecutorLimits, Peaks, StepBatch, StepOutput, Weigh
from tessera_runtime.sampling.weighing import RowSampler

ELEMENT_BYTES = {"f32": 4, "i32": 4, "bf16": 2, "i8": 1, "u8": 1}


class CpuExecutor:
    """One program on one processor (`interface.Executor`). Weights stay where they are: held, not copied."""

    def __init__(
        self,
        program: Mapping[str, Any],
        object_path: Path,
        weights: Mapping[str, NDArray[Any]],
        threads: int | None = None,
    ) -> None:
        """`program` is the parsed program.json, `object_path` the object of one of its classes; one thread per core by
        default.

        Raises AbiMismatch, TargetUnavailable, ObjectRejected, NativeLoadFailed or WeightsInvalid.
        """
        require_supported(program["abi"])
        self._program = program
        self._class_name = _class_of(program, object_path)
        self._cores = cores = usable_cores()
        self._threads = min(MAX_THREADS, physical_cores(cores)) if threads is None else threads
        if not 1 <= self._threads <= MAX_THREADS:
            raise InvalidRequest(f"threads must lie in 1 to {MAX_THREADS}, not {threads}.")
        self._limits = ExecutorLimits(
            max_tokens=program["limits"]["max_tokens"],
            max_model_len=program["limits"]["max_model_len"],
            vocab_size=program["limits"]["vocab_size"],
            block_tokens=program["cache"]["block_tokens"],
            bytes_per_block=program["cache"]["bytes_per_block"],
        )
        self._table, self._arrays = bind_weights(program["weights"], weights)
        self._counters = zeroed_memory(16 * max(1, len(program["launches"])) * self._threads).view(np.int64)
        self._arena = zeroed_memory(0)
        self._cache: NDArray[np.uint8] | None = None
        self._blocks = 0
        self._context = Context()
        self._native = NativeObject(object_path, machine_of_class(self._class_name), program["exports"])
        self._weigh = None if self._native.weigh is None else Weigher(self._native.weigh)
        try:
            self._native.require_abi(program["abi"])
            self._context["weights"] = address_of(self._table)
            self._context["counters"] = address_of(self._counters)
            self._context["yield"] = self._native.yield_address
            self._pool = WorkerPool(self._native, self._context, self._threads, cores)
            self._drawer: RowDrawer | None = None
            if self._native.draw is not None:
                self._drawer = RowDrawer(
                    self._native.draw, self._context, self._counters, self._pool.run, self._threads
                )
        except BaseException:
            self._native.close()
            raise
        self._closed = False

    @property
    def limits(self) -> ExecutorLimits:
        return self._limits

    @property
    def description(self) -> str:
        return f"cpu, {self._class_name}, {self._threads} thread{'s' if self._threads > 1 else ''}"

    @property
    def cpu_class(self) -> str:
        """The class of the program whose object runs."""
        return self._class_name

    def allocate_cache(self, blocks: int) -> None:
        if blocks < 1:
            raise InvalidRequest(f"A cache has at least one block, not {blocks}.")
        self._cache = zeroed_memory(blocks * self._limits.bytes_per_block)
        self._blocks = blocks
        self._context["cache"] = address_of(self._cache)

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        # A copy: the arena changes with the next step.
        return np.array(self.run(batch).logits)

    def run(self, batch: StepBatch) -> StepOutput:
        """One step whose arrays are lent (`interface.LendingExecutor`)."""
        self._run(batch, EVERY_LAUNCH)
        logits = self._read_buffer(self._program["output"], batch)
        described = self._program.get("peaks")
        if described is None:
            return StepOutput(logits)
        return StepOutput(logits, Peaks(self._read_buffer(described["buffer"], batch), described["columns"]))

    @property
    def weigh(self) -> Weigh | None:
        """Part of `interface.WeighingExecutor`; objects of earlier versions cannot."""
        return self._weigh

    @property
    def row_sampler(self) -> RowSampler | None:
        """Part of `interface.WeighingExecutor`; objects of earlier versions have none."""
        return self._drawer

    def trace(self, batch: StepBatch) -> list[tuple[str, NDArray[np.float32]]]:
        # A buffer's memory is used again by later launches, so each layer takes a run that ends with it. What the step
        # writes to the cache does not depend on how often it is written.
        outputs = []
        for layer in self._program["layers"]:
            self._run(batch, layer["end"])
            outputs.append((layer["path"], np.array(self._read_buffer(layer["buffer"], batch))))
        return outputs

    def profile(self, batch: StepBatch, steps: int, launches: int | None = None) -> NDArray[np.float64]:
        """Runs a step `steps` times, after one that is not timed, and returns how many seconds each launch took,
        [steps, launches].

        A launch ends where the next begins, so the wait at a barrier counts for the launch before it. With `launches`,
        only so many are run, and the last of them is not timed.
        """
        count = len(self._program["launches"])
        limit = EVERY_LAUNCH
        if launches is not None and launches < count:
            count, limit = launches - 1, launches
        timeline = Timeline(count)
        try:
            self._context["timeline"] = timeline.address
            for _ in range(steps + 1):
                self._run(batch, limit)
                timeline.note_step()
        finally:
            self._context["timeline"] = 0
        return timeline.seconds()

    def raw_buffers(self, batch: StepBatch, launches: int) -> list[NDArray[np.uint8]]:
        """Runs the first launches of a step and returns what every buffer then holds, [rows, bytes of a row]."""
        self._run(batch, launches)
        return [np.array(self._raw_buffer(buffer, batch)) for buffer in self._program["buffers"]]

    def raw_cache(self) -> NDArray[np.uint8]:
        """What the KV cache holds, as bytes; none before it is allocated."""
        return np.empty(0, np.uint8) if self._cache is None else np.array(self._cache)

    def measure_peaks(self) -> MachinePeaks:
        """What this machine reads and multiplies at best, on as many threads as steps have; takes about 0.3 s.

        Raises TargetUnavailable if the package was made before objects could tell.
        """
        return measure_peaks(self._native, self._threads, self._cores)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._pool.close():
                self._native.close()

    def __enter__(self) -> CpuExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, batch: StepBatch, launch_limit: int) -> None:
        if self._cache is None or self._closed:
            raise CacheNotAllocated(
                "A step needs an open executor with a cache.", hint="Call allocate_cache before the first step."
            )
        check_batch(batch, self._limits, self._blocks)
        tokens, rows = len(batch.token_ids), len(batch.logit_rows)
        sizes = self._program["arena"]
        needed = sizes["bytes"] + tokens * sizes["bytes_per_token"] + rows * sizes["bytes_per_logit_row"]
        context = self._context
        if needed > len(self._arena):
            self._arena = zeroed_memory(needed + needed // 4)
            context["arena"] = address_of(self._arena)
        for name in ("token_ids", "positions", "sequences", "block_tables", "logit_rows"):
            context[name] = address_of(getattr(batch, name))
        tiles = attention_tiles(batch.positions, batch.sequences)
        context["tiles"] = address_of(tiles)
        context["tile_count"] = len(tiles)
        context["table_width"] = batch.block_tables.shape[1]
        context["tokens"] = tokens
        context["logit_count"] = rows
        context["launch_limit"] = launch_limit
        self._counters.fill(0)
        self._pool.run()

    def _read_buffer(self, index: int, batch: StepBatch) -> NDArray[np.float32]:
        """A buffer as float32 [rows, elements of a row]: where it can be, the arena itself."""
        buffer = self._program["buffers"][index]
        if buffer["dtype"] not in ("f32", "bf16"):
            raise ProgramInvalid(
                f"The buffer {buffer['name']!r} is of dtype {buffer['dtype']!r}, which is not read back."
            )
        values = self._raw_buffer(buffer, batch)
        if buffer["dtype"] == "bf16":
            widened: NDArray[np.uint32] = values.view(np.uint16).astype(np.uint32) << np.uint32(16)
            return widened.view(np.float32)
        return values.view(np.float32)

    def _raw_buffer(self, buffer: Mapping[str, Any], batch: StepBatch) -> NDArray[np.uint8]:
        """The bytes that a buffer's rows hold, without their padding, where they lie in the arena."""
        tokens, logit_rows = len(batch.token_ids), len(batch.logit_rows)
        rows = {"T": tokens, "L": logit_rows}[buffer["rows"]]
        offset = buffer["offset"]
        start = offset["bytes"] + offset["tokens"] * tokens + offset["logit_rows"] * logit_rows
        width = ELEMENT_BYTES[buffer["dtype"]]
        for extent in buffer["shape"]:
            width *= 1 if isinstance(extent, str) else extent
        raw = self._arena[start : start + rows * buffer["row_bytes"]].reshape(rows, buffer["row_bytes"])
        return raw[:, :width]


def open_cpu_executor(
    program: Mapping[str, Any], folder: Path, weights: Mapping[str, NDArray[Any]], threads: int | None = None
) -> CpuExecutor:
    """The executor of the best CPU class that this machine can run; `folder` holds the program's objects."""
    name = choose_class(program["classes"], read_processor())
    return CpuExecutor(program, folder / program["classes"][name]["object"], weights, threads)


def _class_of(program: Mapping[str, Any], object_path: Path) -> str:
    """Which class an object belongs to, and that all its instructions exist here: one that does not is fatal."""
    for name, description in program["classes"].items():
        if Path(description["object"]).name == object_path.name:
            missing = missing_features(name, description, read_processor())
            if missing:
                raise TargetUnavailable(
                    f"The object {object_path.name!r} is for {name}, and this machine lacks {', '.join(missing)}.",
                    hint="Build a package for this machine with `tessera pack … --target cpu`.",
                )
            return str(name)
    raise ProgramInvalid(f"No class of the program names the object {object_path.name!r}.")
