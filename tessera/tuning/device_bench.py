"""Runs trials of the tuner on a GPU (`tessera_compiler.autotune.device_tuner.DeviceBench`).

A launch is timed among many of the same kernel, each with weights of its own, recorded in a graph and timed by the
device's own events: as in a step, and with nothing of the host in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.errors import DeviceLost, ExecutionError, TargetUnavailable
from tessera_runtime.executor.gpu.binding import Addresses, BoundLaunches, LaunchBinder, scratch_bytes
from tessera_runtime.executor.gpu.driver import Driver
from tessera_runtime.executor.gpu.grid import StepSizes
from tessera_runtime.executor.gpu.memory import Region
from tessera_runtime.executor.gpu.metadata import MetadataLayout
from tessera_runtime.executor.gpu.modules import ModuleLibrary
from tessera_runtime.executor.gpu.program import GpuProgram, read_program
from tessera_runtime.executor.gpu.staging import Staging
from tessera_runtime.executor.gpu.timing import time_graph
from tessera_runtime.executor.gpu.weights import load_weights, weight_offsets

if TYPE_CHECKING:
    from tessera_compiler.autotune.device_trial import DeviceTrial
    from tessera_compiler.autotune.device_tuner import DeviceRunner

FEWEST_LAUNCHES = 8
SAMPLE_SECONDS = 0.002
"""How long a sample takes at least, by how often the graph runs."""
WARMING_SECONDS = 0.1
"""How long a device that was idle is kept busy before the first sample."""
MOST_REPEATS = 64
UNWRITTEN = 0xA5
_PATTERN = 4 << 20
_TABLE_WIDTH = 8


class _Loaded:
    """A trial's code on the device."""

    def __init__(self, driver: Driver, trial: DeviceTrial, folder: Path) -> None:
        for name, data in trial.target.files.items():
            (folder / name).write_bytes(data)
        self.program = read_program(trial.target.program)
        self.modules = ModuleLibrary(driver, self.program, folder)
        self.binder = LaunchBinder(driver, self.program, self.modules, self.program.launches)


class _Recorded:
    """The launches of a trial at one number of rows."""

    def __init__(self, bound: list[BoundLaunches], graph: int) -> None:
        self.bound, self.graph = bound, graph
        self.seconds = 0.0


class DeviceBench:
    """Weights, activations and results on the device; trials of one subject share them."""

    def __init__(self, driver: Driver, trial: DeviceTrial, most_rows: int) -> None:
        """`driver` stays the caller's. Raises what it raises."""
        self._driver = driver
        self._temporary = tempfile.TemporaryDirectory(prefix="tessera-tuning-")
        self._loaded: dict[int, tuple[DeviceTrial, _Loaded]] = {}
        self._recorded: dict[int, _Recorded] = {}
        self._rows = 0
        self._warm = False
        program = read_program(trial.target.program)
        # Everything but its code is the same for all trials of a subject, and so is where it lies.
        self._weights = Region(driver, "The weights of what is tuned take")
        self._arena = Region(driver, "Its activations and results take")
        self._metadata = Region(driver, "The inputs of a step take")
        self._cache = Region(driver, "A cache takes")
        self._scratch = Region(driver, "The kernels' scratch takes")
        self._stream = driver.create_stream()
        self._staging = Staging(driver, self._stream)
        try:
            every = program.weights * trial.copies
            self._weights.grow(max(1, weight_offsets(every)[1]))
            addresses = load_weights(
                driver, every, RandomWeights(trial.target.program["weights"]), self._weights.address
            )
            count = len(program.weights)
            self._copies = [addresses[start : start + count] for start in range(0, len(addresses), count)]
            self._arena.grow(program.arena_bytes(most_rows, most_rows))
            self._metadata.grow(MetadataLayout.of(_sizes(most_rows)).size)
            blocks = (most_rows + 2) * _TABLE_WIDTH
            self._cache.grow(blocks * program.cache.bytes_per_block if program.cache.layers else 256)
        except BaseException:
            self.close()
            raise

    def seconds(self, trial: DeviceTrial, rows: int) -> float:
        recorded = self._record(trial, rows)
        launches = len(recorded.bound)
        with _failures(trial):
            if not self._warm:
                self._warm = True
                time_graph(self._driver, self._stream, recorded.graph, self._repeats(recorded, WARMING_SECONDS))
            return self._time(recorded, self._repeats(recorded, SAMPLE_SECONDS)) / launches

    def output(self, trial: DeviceTrial, rows: int) -> bytes:
        recorded = self._record(trial, rows)
        program = self._load(trial).program
        digest = hashlib.sha256()
        with _failures(trial):
            for start, size in _places(program, rows, written=True):
                self._driver.fill(self._arena.address + start, size, UNWRITTEN, self._stream)
            recorded.bound[0].queue(self._driver, self._stream)
            self._driver.synchronize(self._stream)
            for start, size in _places(program, rows, written=True):
                digest.update(self._staging.read(self._arena.address + start, size).data)
        return digest.digest()

    def close(self) -> None:
        """Gives everything back. A device that was lost takes its memory with it."""
        try:
            self._driver.synchronize(self._stream)
            self._forget()
            for _, loaded in self._loaded.values():
                loaded.modules.close()
            self._loaded.clear()
            for region in (self._weights, self._arena, self._metadata, self._cache, self._scratch):
                region.release()
            self._staging.close()
            self._driver.destroy_stream(self._stream)
        except DeviceLost:
            pass
        finally:
            self._temporary.cleanup()

    def _repeats(self, recorded: _Recorded, seconds: float) -> int:
        if not recorded.seconds:
            recorded.seconds = self._time(recorded, 1)
        return max(1, min(MOST_REPEATS, math.ceil(seconds / max(recorded.seconds, 1e-6))))

    def _time(self, recorded: _Recorded, repeats: int) -> float:
        return time_graph(self._driver, self._stream, recorded.graph, repeats)

    def _load(self, trial: DeviceTrial) -> _Loaded:
        if id(trial) not in self._loaded:
            self._loaded[id(trial)] = trial, _Loaded(self._driver, trial, Path(self._temporary.name))
        return self._loaded[id(trial)][1]

    def _record(self, trial: DeviceTrial, rows: int) -> _Recorded:
        if rows != self._rows:
            self._begin(trial, rows)
        if id(trial) not in self._recorded:
            with _failures(trial):
                self._recorded[id(trial)] = self._capture(self._load(trial), rows)
        return self._recorded[id(trial)]

    def _begin(self, trial: DeviceTrial, rows: int) -> None:
        """Where things lie depends on the number of rows, so what was recorded for another is of no use."""
        self._forget()
        self._rows = rows
        program = self._load(trial).program
        self._driver.fill(self._metadata.address, self._metadata.size, 0, self._stream)
        random = np.random.default_rng(1)
        # What earlier launches would have computed.
        for index, (start, size) in zip(_given(program), _places(program, rows, written=False), strict=True):
            pattern = _pattern(program.buffers[index].dtype, random)
            self._staging.write(self._arena.address + start, np.resize(pattern, size))

    def _capture(self, loaded: _Loaded, rows: int) -> _Recorded:
        sizes = _sizes(rows)
        scratch = -(-scratch_bytes(loaded.program, sizes) // 256) * 256
        self._driver.synchronize(self._stream)
        if 2 * scratch > self._scratch.size:
            self._forget()
            self._scratch.grow(2 * scratch)
        layout = MetadataLayout.of(sizes)
        bound = [
            loaded.binder.bind(sizes, layout, self._addresses(self._copies[number % len(self._copies)], scratch))
            for number in range(max(FEWEST_LAUNCHES, len(self._copies)))
        ]
        self._driver.begin_capture(self._stream)
        try:
            for each in bound:
                each.queue(self._driver, self._stream)
        except DeviceLost:
            raise
        except ExecutionError:
            # A stream left recording would take every later call for part of the graph.
            self._driver.destroy_graph(self._driver.end_capture(self._stream))
            raise
        return _Recorded(bound, self._driver.end_capture(self._stream))

    def _addresses(self, weights: list[int], scratch: int) -> Addresses:
        return Addresses(
            weights=weights,
            arena=self._arena.address,
            metadata=self._metadata.address,
            cache=self._cache.address,
            scratch=(self._scratch.address, self._scratch.address + scratch),
            seats={},
            results={},
        )

    def _forget(self) -> None:
        self._driver.synchronize(self._stream)
        for recorded in self._recorded.values():
            self._driver.destroy_graph(recorded.graph)
        self._recorded.clear()


@contextlib.contextmanager
def _failures(trial: DeviceTrial) -> Iterator[None]:
    """What a driver says of a candidate is a failure of this candidate alone, unless it takes the device with it."""
    from tessera_compiler.autotune.racing import CandidateFailed

    try:
        yield
    except DeviceLost as error:
        raise DeviceLost(
            f"The device was lost with {trial.name}: {error.message}",
            hint="What was measured before is kept: run again, and report the candidate if it happens again.",
        ) from error
    except (ExecutionError, TargetUnavailable) as error:
        raise CandidateFailed(str(error)) from error


class RandomWeights:
    """Numbers such as a model has (`tessera_runtime.executor.gpu.weights.WeightSource`); what they are does not matter,
    as long as none is infinite."""

    def __init__(self, weights: list[dict[str, Any]]) -> None:
        random = np.random.default_rng(0)
        self._sizes = {entry["name"]: int(entry["bytes"]) for entry in weights}
        self._dtypes = {entry["name"]: entry["dtype"] for entry in weights}
        self._patterns = {dtype: _pattern(dtype, random) for dtype in dict.fromkeys(self._dtypes.values())}

    def size(self, name: str) -> int:
        return self._sizes[name]

    def read_into(self, target: NDArray[np.uint8], name: str, start: int) -> None:
        pattern = self._patterns[self._dtypes[name]]
        offset = (zlib.crc32(name.encode()) * 64 + start) % len(pattern)
        done = 0
        while done < len(target):
            piece = pattern[offset : offset + len(target) - done]
            target[done : done + len(piece)] = piece
            done += len(piece)
            offset = 0


def device_runner(driver: Driver) -> DeviceRunner:
    """A runner on an open device."""
    return lambda trial, most_rows: DeviceBench(driver, trial, most_rows)


def _sizes(rows: int) -> StepSizes:
    """As many sequences as tokens, so that rows of tokens and rows of logits are as many."""
    return StepSizes(rows, rows, rows + 1, _TABLE_WIDTH, 0, rows, 1)


def _given(program: GpuProgram) -> list[int]:
    """The buffers that launches read and none writes."""
    written = {index for launch in program.launches for index in (*launch.writes, *launch.updates)}
    read = {each.index for launch in program.launches for each in launch.arguments if each.kind == "buffer"}
    return sorted(read - written)


def _places(program: GpuProgram, rows: int, *, written: bool) -> list[tuple[int, int]]:
    """Where the given buffers lie in the arena, or the written ones that a step leaves behind."""
    given = _given(program)
    results = {index for launch in program.launches for index in (*launch.writes, *launch.updates)}
    wanted = [each for each in sorted(results) if isinstance(program.buffers[each].rows, str)] if written else given
    return [program.buffers[index].place(rows, rows) for index in wanted]


def _pattern(dtype: str, random: np.random.Generator) -> NDArray[np.uint8]:
    normal = random.standard_normal(_PATTERN, np.float32)
    if dtype == "f32":
        return normal.view(np.uint8)
    if dtype == "bf16":
        return (normal.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.uint8)
    if dtype == "f16":
        return normal.astype(np.float16).view(np.uint8)
    if dtype in ("i32", "i64"):
        return random.integers(-4096, 4096, _PATTERN, np.int32 if dtype == "i32" else np.int64).view(np.uint8)
    values = random.integers(0, 256, 2 * _PATTERN, np.uint8)
    if dtype == "f8_e4m3":
        # Neither those of minus zero nor those that are no numbers.
        values[np.isin(values, (0x7F, 0x80, 0xFF))] = 0
    return values
