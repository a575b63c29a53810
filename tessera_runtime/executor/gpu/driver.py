"""What a GPU executor asks of a vendor's driver: some thirty calls, and nothing of any vendor in their types.

Addresses and handles are plain integers. There is one device and one context, and a driver is used by one thread at a
time, whichever that is. Every call raises `DeviceLost` once the device is gone, `DeviceMemoryTooSmall` if its memory
does not suffice, `DriverTooOld` from `load_module`, and `LaunchFailed` for any other refusal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Device:
    """What the executor has to know of a device."""

    name: str
    family: str
    """`cuda` or `hip`."""
    capability: tuple[int, int]
    """CUDA's compute capability; of HIP the major and minor version, for people."""
    architecture: str
    """As targets spell it: `sm90`, `gfx942`."""
    warp_size: int
    memory_bytes: int
    multiprocessors: int
    shared_bytes: int
    """The most dynamic shared memory that one block can have."""
    driver_version: int
    """As `cuDriverGetVersion` counts; 0 where there is no such number."""


@dataclass(frozen=True)
class LaunchShape:
    """Everything of a launch but its parameters."""

    function: int
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    cluster: int = 1
    dependent: bool = False
    """May start before the launch before it has ended; the kernel waits by itself."""


@dataclass(frozen=True)
class TensorMapShape:
    """A tensor as the copy engine sees it; outermost axis first, but strides leave out the innermost."""

    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int


class Driver(Protocol):
    """One device. See the module's docstring for threads and errors."""

    @property
    def device(self) -> Device: ...

    def free_memory(self) -> int:
        """Bytes of device memory that nobody holds."""
        ...

    def allocate(self, size: int) -> int:
        """Device memory at a multiple of 256 bytes, not zeroed."""
        ...

    def free(self, address: int) -> None:
        """Gives back what `allocate` gave; nothing may be running on it."""
        ...

    def allocate_pinned(self, size: int) -> Bytes:
        """Host memory that copies can read and write while the host goes on."""
        ...

    def free_pinned(self, memory: Bytes) -> None: ...

    def create_stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None:
        """Returns when everything queued on the stream is done."""
        ...

    def create_event(self) -> int: ...

    def destroy_event(self, event: int) -> None: ...

    def record_event(self, event: int, stream: int) -> None: ...

    def wait_for(self, stream: int, event: int) -> None:
        """What is queued on the stream from now on starts after the event."""
        ...

    def synchronize_event(self, event: int) -> None:
        """Returns when the event has been reached; at once if it was never recorded."""
        ...

    def seconds_between(self, first: int, second: int) -> float:
        """Of two events that have been reached."""
        ...

    def copy_in(self, address: int, source: Bytes, stream: int) -> None:
        """Queues a copy to the device. `source` is pinned and must stay as it is until the copy is done."""
        ...

    def copy_out(self, target: Bytes, address: int, stream: int) -> None:
        """Queues a copy from the device. `target` is pinned and must not be read until the copy is done."""
        ...

    def fill(self, address: int, size: int, value: int, stream: int) -> None:
        """Queues setting bytes to a value."""
        ...

    def load_module(self, code: Bytes) -> int: ...

    def unload_module(self, module: int) -> None: ...

    def function(self, module: int, name: str, shared_bytes: int) -> int:
        """A function that may be launched with so much dynamic shared memory."""
        ...

    def prepare(self, shape: LaunchShape) -> Any:
        """What `launch` takes: made once, used for many launches."""
        ...

    def launch(self, prepared: Any, parameters: int, stream: int) -> None:
        """Queues a kernel. `parameters` is the address of an array of addresses, one of each parameter's value; all of
        it is read before the call returns."""
        ...

    def begin_capture(self, stream: int) -> None:
        """What is queued on the stream from now on is recorded and not run."""
        ...

    def end_capture(self, stream: int) -> int:
        """The graph of what was recorded, ready to run."""
        ...

    def launch_graph(self, graph: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...

    def tensor_map(self, shape: TensorMapShape) -> bytes:
        """The 128 bytes that stand for a tensor; CUDA from capability 9.0 on."""
        ...

    def close(self) -> None: ...
