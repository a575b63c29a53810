"""Runs a GPU target's program, whatever the vendor: steps in, logits or drawn tokens out.

One stream does everything in order: the step's inputs are copied, its kernels run (from a recorded graph where its
sizes came before), its results are copied back. Up to two steps are queued at a time, so the device need not wait for
the host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.errors import (
    CacheNotAllocated,
    ExecutionError,
    InvalidRequest,
    ProgramInvalid,
    StepInvalid,
)
from tessera_runtime.executor.batch_check import check_batch
from tessera_runtime.executor.drawing import BITMASK, LOGPROB_WORDS, LOGPROBS, MAX_BIASES, Drawn, idle_draws
from tessera_runtime.executor.gpu.driver import Driver
from tessera_runtime.executor.gpu.grid import StepSizes
from tessera_runtime.executor.gpu.memory import SPARE_SHARE, Region
from tessera_runtime.executor.gpu.metadata import MetadataLayout, StepInputs
from tessera_runtime.executor.gpu.modules import ModuleLibrary
from tessera_runtime.executor.gpu.program import GpuProgram
from tessera_runtime.executor.gpu.slots import IN_FLIGHT, StepSlot
from tessera_runtime.executor.gpu.staging import Staging
from tessera_runtime.executor.gpu.step_runner import Form, StepRunner
from tessera_runtime.executor.gpu.timing import LaunchTime
from tessera_runtime.executor.gpu.weights import WeightSource, load_weights, weight_offsets
from tessera_runtime.executor.interface import ExecutorLimits, StepBatch

USUAL_ROWS = 256
"""Rows of logits that room is made for at once."""


class GpuExecutor:
    """One program on one device (`interface.Executor` and `drawing.DrawingExecutor`)."""

    def __init__(
        self,
        driver: Driver,
        program: GpuProgram,
        folder: Path,
        source: WeightSource,
        *,
        compile_at_load: bool = False,
    ) -> None:
        """Takes the driver over: `close` closes it, and so does a failure here. `folder` holds the code objects.

        Raises what `Driver` raises, and WeightsInvalid.
        """
        self._driver = driver
        self._program = program
        self._blocks = self._seats = 0
        self._closed = False
        self._tickets: dict[int, tuple[StepSlot, int, bool]] = {}
        self._next_ticket = 0
        self._slots: list[StepSlot] = []
        self._weights = Region(driver, "The package's weights take")
        self._cache = Region(driver, "The KV cache takes")
        self._seat_memory = Region(driver, "The memory of the seats takes")
        self._arena = Region(driver, "The arena of the largest step takes")
        self._metadata = Region(driver, "The inputs of a step take")
        self._results = Region(driver, "The results of a step take")
        self._scratch = Region(driver, "The kernels' scratch takes")
        try:
            self._modules = ModuleLibrary(driver, program, folder, compile_at_load=compile_at_load)
            # Whether the driver reads the code is known before anything large is loaded: another target may serve then.
            for kernel in tuple(program.kernels)[:1]:
                self._modules.function(kernel)
            self._stream = driver.create_stream()
            self._staging = Staging(driver, self._stream)
            self._runner = StepRunner(driver, program, self._modules, self._stream)
            self._slots = [StepSlot(driver) for _ in range(IN_FLIGHT)]
            self._weights.grow(max(1, weight_offsets(program.weights)[1]))
            self._weight_addresses = load_weights(driver, program.weights, source, self._weights.address)
        except BaseException:
            # Not every driver's `close` gives memory back, and the processor may serve now, in this process.
            with contextlib.suppress(ExecutionError):
                self._weights.release()
            driver.close()
            raise
        self._limits = ExecutorLimits(
            max_tokens=program.limits.max_tokens,
            max_model_len=program.limits.max_model_len,
            vocab_size=program.limits.vocab_size,
            block_tokens=program.cache.block_tokens,
            bytes_per_block=program.cache.bytes_per_block,
        )

    @property
    def limits(self) -> ExecutorLimits:
        return self._limits

    @property
    def description(self) -> str:
        device = self._driver.device
        return f"{self._program.target}, {device.name}, {device.memory_bytes / 2**30:.0f} GiB"

    @property
    def draws(self) -> bool:
        return bool(self._program.drawing)

    @property
    def recorded_graphs(self) -> int:
        """How many sizes of step run from a graph by now."""
        return self._runner.recorded

    def free_memory(self) -> int:
        """What the cache may take, after all that a step of the most tokens needs."""
        largest = self._largest_step()
        step = self._program.arena_bytes(largest.tokens, largest.logit_rows) + 2 * self._runner.scratch_bytes(largest)
        held = self._arena.size + self._scratch.size + self._cache.size
        free = self._driver.free_memory() + held - step
        return max(0, int(free * SPARE_SHARE))

    def allocate_cache(self, blocks: int) -> None:
        if blocks < 1:
            raise InvalidRequest(f"A cache has at least one block, not {blocks}.")
        self._require_idle()
        # One more than asked for: padding is written somewhere.
        size = (blocks + 1) * self._limits.bytes_per_block
        self._cache.release()
        self._blocks = 0
        if self._cache.grow(size):
            self._runner.forget()
        self._driver.fill(self._cache.address, size, 0, self._stream)
        self._driver.synchronize(self._stream)
        self._blocks = blocks
        self._reserve()

    def allocate_seats(self, seats: int) -> None:
        if seats < 1:
            raise InvalidRequest(f"There is at least one seat, not {seats}.")
        self._require_idle()
        size = seats * sum(self._program.seats.values())
        self._seat_memory.release()
        self._seats = 0
        if self._seat_memory.grow(max(1, size)):
            self._runner.forget()
        self._driver.fill(self._seat_memory.address, size, 0, self._stream)
        self._driver.synchronize(self._stream)
        self._seats = seats
        self._reserve()
        if self.draws and self._blocks:
            for sizes in self._runner.buckets.frequent(min(seats, self._limits.max_tokens)):
                self._runner.record("greedy", sizes, MetadataLayout.of(sizes))

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        self._require_idle()
        rows = len(batch.logit_rows)
        slot, sizes = self._queue(batch, None, "logits")
        del slot
        return self._read_buffer(self._program.output, sizes, rows)

    def trace(self, batch: StepBatch) -> list[tuple[str, NDArray[np.float32]]]:
        # A buffer's memory is used again by later launches, so each layer takes a run that ends with it.
        self._require_idle()
        outputs = []
        for path, end, buffer in self._program.layers:
            _, sizes = self._queue(batch, None, "logits", end)
            rows = len(batch.token_ids) if self._program.buffers[buffer].rows == "T" else len(batch.logit_rows)
            outputs.append((path, self._read_buffer(buffer, sizes, rows)))
        return outputs

    def begin_seat(self, seat: int, counts: NDArray[np.int16] | None, biases: Sequence[tuple[int, float]]) -> None:
        self._require_seat(seat)
        if len(biases) > MAX_BIASES:
            raise InvalidRequest(f"A sequence has at most {MAX_BIASES} biases, not {len(biases)}.")
        if counts is not None:
            self._write_seat("token_counts", seat, np.ascontiguousarray(counts, np.int16))
        if biases:
            rows = np.zeros((len(biases), 2), np.int32)
            rows[:, 0] = [token for token, _ in biases]
            rows[:, 1] = np.array([bias for _, bias in biases], np.float32).view(np.int32)
            self._write_seat("bias", seat, rows)

    def set_bitmask(self, seat: int, words: NDArray[np.int32]) -> None:
        self._require_seat(seat)
        self._write_seat("bitmask", seat, np.ascontiguousarray(words, np.int32))

    def submit(self, batch: StepBatch, draws: NDArray[Any]) -> int:
        if not self.draws:
            raise StepInvalid("The program leaves the drawing to the host.", hint="Run it with `step`.")
        self._require_draws(batch, draws)
        flags = int(np.bitwise_or.reduce(draws["flags"])) if len(draws) else 0
        if flags & BITMASK and self._tickets:
            raise StepInvalid(
                "A bitmask depends on the token before, so its step cannot be queued behind another.",
                hint="Collect the step before.",
            )
        plain = not len(draws) or bool((draws["flags"] == 1).all())
        slot, _ = self._queue(batch, draws, "greedy" if plain else "full")
        with_logprobs = bool(flags & LOGPROBS)
        rows = len(draws)
        slot.read(self._driver, self._stream, self._result_addresses(), rows, with_logprobs)
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        self._tickets[ticket] = (slot, rows, with_logprobs)
        return ticket

    def collect(self, ticket: int) -> Drawn:
        if ticket not in self._tickets:
            raise StepInvalid(f"There is no step with the ticket {ticket}, or it was collected.")
        slot, rows, with_logprobs = self._tickets[ticket]
        self._driver.synchronize_event(slot.done)
        del self._tickets[ticket]
        return slot.take(rows, with_logprobs)

    def time_step(
        self, batch: StepBatch, form: Form = "logits", repeats: int = 50, draws: NDArray[Any] | None = None
    ) -> float:
        """Seconds that the device takes for a step, without the copies; see `timing` for what it leaves behind. Without
        `draws`, it draws for nobody."""
        sizes = self._lay_out(batch, draws)
        return self._runner.time_step(form, sizes, MetadataLayout.of(sizes), repeats)

    def time_launches(self, batch: StepBatch, form: Form = "logits", repeats: int = 20) -> list[LaunchTime]:
        """Seconds of each launch of a step, alone."""
        sizes = self._lay_out(batch)
        return self._runner.time_launches(form, sizes, MetadataLayout.of(sizes), repeats)

    def _lay_out(self, batch: StepBatch, draws: NDArray[Any] | None = None) -> StepSizes:
        self._require_idle()
        draws = idle_draws(len(batch.logit_rows)) if draws is None else draws
        self._require_draws(batch, draws)
        _, sizes = self._queue(batch, draws, "logits")
        self._driver.synchronize(self._stream)
        return sizes

    def close(self) -> None:
        """Gives everything back. A device that was lost takes its memory with it."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ExecutionError):
            self._driver.synchronize(self._stream)
            self._runner.forget()
            self._modules.close()
            for slot in self._slots:
                slot.close(self._driver)
            self._staging.close()
            for region in (
                *(self._weights, self._cache, self._seat_memory, self._arena),
                *(self._metadata, self._results, self._scratch),
            ):
                region.release()
            self._driver.destroy_stream(self._stream)
        self._driver.close()

    def __enter__(self) -> GpuExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _queue(
        self, batch: StepBatch, draws: NDArray[Any] | None, form: Form, end: int | None = None
    ) -> tuple[StepSlot, StepSizes]:
        """Queues a step's copy and its kernels."""
        if not self._blocks or self._closed:
            raise CacheNotAllocated(
                "A step needs an open executor with a cache.", hint="Call allocate_cache before the first step."
            )
        check_batch(batch, self._limits, self._blocks, 0 if draws is None else self._seats)
        slot = self._free_slot()
        cache = self._program.cache
        inputs = StepInputs.of(batch, draws, cache.tile_tokens)
        sizes = self._runner.buckets.padded(inputs.sizes(cache.block_tokens, cache.chunk_tokens))
        layout = MetadataLayout.of(sizes)
        self._make_room(sizes, layout)
        slot.reserve(self._driver, self._stream, layout.size, sizes.logit_rows)
        block = slot.inputs(layout.size)
        layout.write(block, inputs, cache.block_tokens, self._blocks)
        self._driver.copy_in(self._metadata.address, block, self._stream)
        self._runner.run(form, sizes, layout, end)
        self._driver.record_event(slot.done, self._stream)
        return slot, sizes

    def _make_room(self, sizes: StepSizes, layout: MetadataLayout) -> None:
        """Grows what is too small for a step; graphs that were recorded with the old addresses are forgotten."""
        program = self._program
        scratch = self._runner.scratch_bytes(sizes)
        wanted = (
            (self._arena, program.arena_bytes(sizes.tokens, sizes.logit_rows)),
            (self._metadata, layout.size),
            (self._results, self._result_bytes(sizes.logit_rows)),
            (self._scratch, 2 * scratch),
        )
        if all(size <= region.size for region, size in wanted) and self._runner.ready:
            return
        self._driver.synchronize(self._stream)
        self._runner.forget()
        for region, size in wanted:
            region.grow(size if region.size == 0 else size + size // 4)
        seats, end = {}, self._seat_memory.address
        for name, row_bytes in program.seats.items():
            seats[name] = end
            end += row_bytes * self._seats
        self._runner.place(
            weights=self._weight_addresses,
            arena=self._arena.address,
            metadata=self._metadata.address,
            cache=self._cache.address,
            scratch=(self._scratch.address, self._scratch.address + self._scratch.size // 512 * 256),
            seats=seats,
            results=self._result_addresses(),
        )

    def _reserve(self) -> None:
        """Takes what the largest step needs, so that memory cannot run out later and nothing recorded moves."""
        # Kernels are given the memory of the seats whether or not the program at hand draws.
        if self._seat_memory.size == 0:
            size = max(64, sum(self._program.seats.values()))
            self._seat_memory.grow(size)
            self._driver.fill(self._seat_memory.address, size, 0, self._stream)
        largest = self._largest_step()
        layout = MetadataLayout.of(largest)
        self._make_room(largest, layout)
        for slot in self._slots:
            slot.reserve(self._driver, self._stream, layout.size, largest.logit_rows)

    def _largest_step(self) -> StepSizes:
        """The most tokens over the longest contexts; only steps that want more rows of logits take more."""
        tokens = self._limits.max_tokens
        rows = min(tokens, max(USUAL_ROWS, self._seats))
        width = self._runner.buckets.max_width
        cache = self._program.cache
        return StepSizes(
            tokens=tokens,
            logit_rows=rows,
            table_rows=rows + 1,
            table_width=width,
            tiles=tokens,
            singles=tokens,
            chunks=-(-width * cache.block_tokens // cache.chunk_tokens),
        )

    def _result_bytes(self, rows: int) -> int:
        return 256 * (-(-4 * rows // 256) + rows)

    def _result_addresses(self) -> dict[str, int]:
        rows = self._results.size // (4 * LOGPROB_WORDS + 4)
        return {
            "logprobs": self._results.address,
            "ids": self._results.address + 4 * LOGPROB_WORDS * rows,
        }

    def _read_buffer(self, index: int, sizes: StepSizes, rows: int) -> NDArray[np.float32]:
        """A copy of a buffer's first rows as float32 [rows, elements of a row]; waits for the step."""
        buffer = self._program.buffers[index]
        if buffer.dtype not in ("f32", "bf16"):
            raise ProgramInvalid(f"The buffer {buffer.name!r} is of dtype {buffer.dtype!r}, which is not read back.")
        place, _ = buffer.place(sizes.tokens, sizes.logit_rows)
        raw = self._staging.read(self._arena.address + place, rows * buffer.row_bytes).reshape(rows, buffer.row_bytes)
        width = int(np.prod(buffer.shape, dtype=np.int64))
        if buffer.dtype == "f32":
            return np.ascontiguousarray(raw[:, : 4 * width]).view(np.float32)
        halves = np.ascontiguousarray(raw[:, : 2 * width]).view(np.uint16)
        return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)

    def _write_seat(self, name: str, seat: int, values: NDArray[Any]) -> None:
        row_bytes = self._program.seats.get(name)
        if row_bytes is None:
            raise StepInvalid(f"The program has no seat memory {name!r}, so it cannot do what was asked for.")
        raw = values.reshape(-1).view(np.uint8)
        if len(raw) > row_bytes:
            raise StepInvalid(f"A row of the seat memory {name!r} has {row_bytes} bytes, not {len(raw)}.")
        address = self._seat_memory.address
        for other, size in self._program.seats.items():
            if other == name:
                break
            address += size * self._seats
        self._staging.write(address + seat * row_bytes, raw)

    def _free_slot(self) -> StepSlot:
        taken = {id(slot) for slot, _, _ in self._tickets.values()}
        for slot in self._slots:
            if id(slot) not in taken:
                # A step without a ticket has been waited for, or nobody will.
                self._driver.synchronize_event(slot.done)
                return slot
        raise StepInvalid(f"{IN_FLIGHT} steps are in flight.", hint="Collect one before submitting another.")

    def _require_idle(self) -> None:
        if self._tickets:
            raise StepInvalid("Steps are in flight.", hint="Collect them first.")

    def _require_draws(self, batch: StepBatch, draws: NDArray[Any]) -> None:
        if len(draws) != len(batch.logit_rows):
            raise StepInvalid(f"A step with {len(batch.logit_rows)} rows of logits has {len(draws)} draws.")
        if len(draws) and not -1 <= int(draws["seat"].min()) <= int(draws["seat"].max()) < self._seats:
            raise StepInvalid(f"The seats of a step's draws must lie in 0 to {self._seats - 1}, or be -1.")

    def _require_seat(self, seat: int) -> None:
        if not 0 <= seat < self._seats:
            raise StepInvalid(f"There are seats 0 to {self._seats - 1}, and no seat {seat}.")
