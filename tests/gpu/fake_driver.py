"""A driver without a device that is stricter than any: what is queued runs as late as it may, and every mistake raises.

Memory is the host's, poisoned when it is allocated. Kernels are Python functions (`toy_kernels`), or do nothing.
Nothing queued on a stream happens before somebody waits for it, so a missing wait is seen as poison; a pinned source
that changes before its copy, memory that is used after it was freed, a pointer into nothing and a call that a
recording stream cannot take are errors.
"""

from __future__ import annotations

import ctypes
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.errors import DeviceLost, DeviceMemoryTooSmall, DriverTooOld
from tessera_runtime.executor.gpu.driver import Device, LaunchShape, TensorMapShape
from tessera_runtime.executor.gpu.grid import MAX_GRID
from tessera_runtime.executor.gpu.program import ELEMENT_BYTES

POISON, UNREAD = 0xA5, 0xCD
ALIGNMENT = 256
Bytes = NDArray[np.uint8]


class Misuse(AssertionError):
    """What no driver would forgive, or worse, what it would."""


@dataclass
class Allocation:
    memory: Bytes
    address: int
    size: int
    freed: bool = False


class FakeMemory:
    """Allocations that never share an address, even after they were freed."""

    def __init__(self, capacity: int, poison: bool) -> None:
        self.capacity = capacity
        self.poison = poison
        self.held = 0
        self._allocations: list[Allocation] = []
        self._starts: list[int] = []

    def allocate(self, size: int) -> int:
        if self.held + size > self.capacity:
            raise DeviceMemoryTooSmall(f"{size} bytes are not free.")
        raw = np.empty(size + ALIGNMENT, np.uint8)
        if self.poison:
            raw.fill(POISON)
        aligned = raw[-raw.ctypes.data % ALIGNMENT :][:size]
        found = Allocation(aligned, aligned.ctypes.data, size)
        place = bisect_right(self._starts, found.address)
        self._allocations.insert(place, found)
        self._starts.insert(place, found.address)
        self.held += size
        return found.address

    def free(self, address: int) -> None:
        found = self._at(address)
        if found.freed or found.address != address:
            raise Misuse(f"{address:#x} is freed twice, or was never allocated")
        found.freed = True
        found.memory.fill(POISON)
        self.held -= found.size

    def view(self, address: int, size: int, what: str) -> Bytes:
        """The bytes at an address; all must lie in one allocation that is still held."""
        found = self._at(address)
        start = address - found.address
        if found.freed:
            raise Misuse(f"{what} uses memory that was freed")
        if size < 0 or start + size > found.size:
            raise Misuse(f"{what} reaches {start + size - found.size} bytes past an allocation of {found.size}")
        return found.memory[start : start + size]

    def room(self, address: int) -> int:
        """Bytes from an address to the end of its allocation."""
        found = self._at(address)
        return found.address + found.size - address

    def _at(self, address: int) -> Allocation:
        place = bisect_right(self._starts, address) - 1
        if place < 0 or address >= self._starts[place] + max(1, self._allocations[place].size):
            raise Misuse(f"{address:#x} points into no allocation")
        return self._allocations[place]


Operation = Callable[[], None]


@dataclass
class Stream:
    queue: list[tuple[Operation | None, int | None]] = field(default_factory=list)
    """Operations; those with a number instead record that event."""
    recording: list[Operation] | None = None


class FakeDriver:
    """Implements `driver.Driver`. Set `memory.capacity`, `too_old` or `lose_after` to see things go wrong."""

    def __init__(
        self,
        parameters: dict[str, tuple[str, ...]],
        kernels: dict[str, Callable[..., None]] | None = None,
        *,
        capacity: int = 1 << 30,
        poison: bool = True,
        device: Device | None = None,
    ) -> None:
        """`parameters` are the kinds of each entry's parameters, scratch pointers included. Without `poison`, memory
        that nothing touches costs nothing."""
        self.memory = FakeMemory(capacity, poison)
        self.parameters = parameters
        self.kernels = kernels or {}
        self.too_old = False
        self.lose_after: int | None = None
        """Launches until the device is lost."""
        self.launches: list[str] = []
        self.graph_launches = 0
        self.closed = False
        self.tensor_maps: list[TensorMapShape] = []
        self.loaded: list[Sequence[str]] = []
        self._device = device or Device("fake", "cuda", (9, 0), "sm90", 32, capacity, 4, 200_000, 13000)
        self._pinned: dict[int, Bytes] = {}
        self._streams: dict[int, Stream] = {}
        self._events: dict[int, bool] = {}
        self._functions: dict[int, tuple[str, int]] = {}
        self._modules: dict[int, Sequence[str]] = {}
        self._graphs: dict[int, list[Operation]] = {}
        self._launched: set[int] = set()
        self._handles = 0

    @property
    def device(self) -> Device:
        return self._device

    def free_memory(self) -> int:
        return self.memory.capacity - self.memory.held

    def allocate(self, size: int) -> int:
        self._alive()
        return self.memory.allocate(size)

    def free(self, address: int) -> None:
        self._not_recording("free")
        if any(stream.queue for stream in self._streams.values()):
            raise Misuse("memory is freed while something is queued")
        self.memory.free(address)

    def allocate_pinned(self, size: int) -> Bytes:
        memory = np.full(size, POISON, np.uint8)
        self._pinned[memory.ctypes.data] = memory
        return memory

    def free_pinned(self, memory: Bytes) -> None:
        if any(stream.queue for stream in self._streams.values()):
            raise Misuse("pinned memory is freed while something is queued")
        del self._pinned[memory.ctypes.data]

    def create_stream(self) -> int:
        handle = self._handle()
        self._streams[handle] = Stream()
        return handle

    def destroy_stream(self, stream: int) -> None:
        if self._streams.pop(stream).queue:
            raise Misuse("a stream with work is destroyed")

    def synchronize(self, stream: int) -> None:
        self._alive()
        self._not_recording("synchronize")
        self._run(stream, None)

    def create_event(self) -> int:
        handle = self._handle()
        self._events[handle] = True
        return handle

    def destroy_event(self, event: int) -> None:
        del self._events[event]

    def record_event(self, event: int, stream: int) -> None:
        self._not_recording("record_event")
        self._events[event] = False
        # Recorded anew, it no longer stands for what it was recorded for before.
        for other in self._streams.values():
            other.queue = [entry for entry in other.queue if entry[1] != event]
        self._streams[stream].queue.append((None, event))

    def wait_for(self, stream: int, event: int) -> None:
        self._queue(stream, lambda: self.synchronize_event(event))

    def synchronize_event(self, event: int) -> None:
        self._alive()
        self._not_recording("synchronize_event")
        for handle, stream in self._streams.items():
            if any(entry[1] == event for entry in stream.queue):
                self._run(handle, event)

    def seconds_between(self, first: int, second: int) -> float:
        if not (self._events[first] and self._events[second]):
            raise Misuse("the time between events that were not reached")
        return 0.001

    def copy_in(self, address: int, source: Bytes, stream: int) -> None:
        self._not_recording("copy_in")
        self._require_pinned(source)
        before = source.tobytes()

        def copy() -> None:
            if source.tobytes() != before:
                raise Misuse("pinned memory changed before it was copied")
            self.memory.view(address, len(source), "copy_in")[:] = source

        self._queue(stream, copy)

    def copy_out(self, target: Bytes, address: int, stream: int) -> None:
        self._not_recording("copy_out")
        self._require_pinned(target)
        target.fill(UNREAD)

        def copy() -> None:
            target[:] = self.memory.view(address, len(target), "copy_out")

        self._queue(stream, copy)

    def fill(self, address: int, size: int, value: int, stream: int) -> None:
        self._not_recording("fill")
        self._queue(stream, lambda: self.memory.view(address, size, "fill").fill(value))

    def load_module(self, code: Bytes) -> int:
        self._alive()
        if self.too_old:
            raise DriverTooOld("The driver is of version 12.0 and cannot read this code object.", hint="Update it.")
        if code[-1] != 0:
            raise Misuse("a module does not end in a zero")
        handle = self._handle()
        self._modules[handle] = json.loads(code[:-1].tobytes())
        self.loaded.append(self._modules[handle])
        return handle

    def unload_module(self, module: int) -> None:
        del self._modules[module]

    def function(self, module: int, name: str, shared_bytes: int) -> int:
        if name not in self._modules[module]:
            raise Misuse(f"the module has no {name}")
        handle = self._handle()
        self._functions[handle] = (name, shared_bytes)
        return handle

    def prepare(self, shape: LaunchShape) -> Any:
        name, shared_bytes = self._functions[shape.function]
        if any(not 1 <= extent <= most for extent, most in zip(shape.grid, MAX_GRID, strict=True)):
            raise Misuse(f"{name} has the grid {shape.grid}")
        if shape.threads > 1024 or shape.threads % self._device.warp_size:
            raise Misuse(f"{name} has blocks of {shape.threads} threads")
        if not shape.shared_bytes <= shared_bytes <= self._device.shared_bytes:
            raise Misuse(f"{name} has {shape.shared_bytes} bytes of shared memory, {shared_bytes} were promised")
        return shape

    def launch(self, prepared: Any, parameters: int, stream: int) -> None:
        self._alive()
        if self.lose_after is not None:
            self.lose_after -= 1
            self._alive()
        name, _ = self._functions[prepared.function]
        values = self.decode(parameters, self.parameters[name])
        grid = prepared.grid
        self._queue(stream, lambda: self._execute(name, values, grid))

    def begin_capture(self, stream: int) -> None:
        self._not_recording("begin_capture")
        self._streams[stream].recording = []

    def end_capture(self, stream: int) -> int:
        recorded = self._streams[stream].recording
        if recorded is None:
            raise Misuse("a recording ends that never began")
        self._streams[stream].recording = None
        handle = self._handle()
        self._graphs[handle] = recorded
        return handle

    def launch_graph(self, graph: int, stream: int) -> None:
        self._alive()
        self._not_recording("launch_graph")
        self.graph_launches += 1
        self._launched.add(graph)
        for operation in self._graphs[graph]:
            self._queue(stream, operation)

    def destroy_graph(self, graph: int) -> None:
        if graph in self._launched and any(stream.queue for stream in self._streams.values()):
            raise Misuse("a graph is destroyed while something is queued")
        del self._graphs[graph]

    def tensor_map(self, shape: TensorMapShape) -> bytes:
        rows, *inner = shape.shape
        size = ELEMENT_BYTES[shape.dtype]
        strides = (*shape.strides, size)
        if shape.address % 16 or any(stride % 16 for stride in shape.strides):
            raise Misuse("a tensor map starts at no multiple of 16, or its rows do")
        if not all(0 < box <= 256 for box in shape.box) or len(shape.box) != len(shape.shape):
            raise Misuse(f"a tensor map has the box {shape.box}")
        if shape.swizzle and shape.box[-1] * size > shape.swizzle:
            raise Misuse(f"rows of {shape.box[-1] * size} bytes do not fit {shape.swizzle} that are swizzled")
        if any(outer < extent * stride for outer, extent, stride in zip(strides, inner, strides[1:], strict=False)):
            raise Misuse("rows of a tensor map overlap")
        self.memory.view(shape.address, rows * strides[0], "tensor_map")
        self.tensor_maps.append(shape)
        words = shape.address, len(self.tensor_maps) - 1
        return b"".join(word.to_bytes(8, "little") for word in words).ljust(128, b"\0")

    def close(self) -> None:
        self.closed = True

    def declare(self, name: str, shared_bytes: int) -> int:
        """A function without code, for launches that are looked at and not run."""
        handle = self._handle()
        self._functions[handle] = (name, shared_bytes)
        return handle

    def left_over(self) -> dict[str, int]:
        """What nobody gave back."""
        held = {
            "bytes": self.memory.held,
            "pinned": len(self._pinned),
            "streams": len(self._streams),
            "events": len(self._events),
            "graphs": len(self._graphs),
            "modules": len(self._modules),
        }
        return {name: count for name, count in held.items() if count}

    @staticmethod
    def decode(parameters: int, kinds: Sequence[str]) -> list[int]:
        """The values of parameters, as a driver reads them: integers, addresses; a tensor map by its first word."""
        addresses = (ctypes.c_uint64 * len(kinds)).from_address(parameters)
        sizes: dict[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64}
        return [
            int(sizes.get(kind, ctypes.c_uint64).from_address(address).value)
            for kind, address in zip(kinds, addresses, strict=True)
        ]

    def map_of(self, parameters: int, place: int) -> TensorMapShape:
        """What a parameter that is a tensor map describes."""
        address = int(ctypes.c_uint64.from_address(parameters + 8 * place).value)
        if address % 64:
            raise Misuse("a tensor map lies where no driver reads it")
        return self.tensor_maps[int(ctypes.c_uint64.from_address(address + 8).value)]

    def _execute(self, name: str, values: list[int], grid: tuple[int, int, int]) -> None:
        kinds = self.parameters[name]
        for place, (kind, value) in enumerate(zip(kinds, values, strict=True)):
            if kind == "pointer" and value:
                self.memory.view(value, 1, f"parameter {place} of {name}")
                if value % 64:
                    raise Misuse(f"parameter {place} of {name} is {value:#x}, no multiple of 64")
        self.launches.append(name)
        kernel = self.kernels.get(name)
        if kernel is not None:
            kernel(self.memory, values, grid)

    def _run(self, handle: int, until: int | None) -> None:
        queue = self._streams[handle].queue
        while queue:
            operation, event = queue.pop(0)
            if operation is not None:
                operation()
            elif event is not None:
                self._events[event] = True
                if event == until:
                    return

    def _queue(self, stream: int, operation: Operation) -> None:
        self._alive()
        target = self._streams[stream]
        if target.recording is not None:
            target.recording.append(operation)
        else:
            target.queue.append((operation, None))

    def _not_recording(self, call: str) -> None:
        if any(stream.recording is not None for stream in self._streams.values()):
            raise Misuse(f"{call} while a graph is recorded")

    def _require_pinned(self, memory: Bytes) -> None:
        start = memory.ctypes.data
        for address, held in self._pinned.items():
            if address <= start and start + len(memory) <= address + len(held):
                return
        raise Misuse("a copy from or to memory that is not pinned")

    def _alive(self) -> None:
        if self.lose_after is not None and self.lose_after < 0:
            raise DeviceLost("The device fell off the bus.")

    def _handle(self) -> int:
        self._handles += 1
        return self._handles
