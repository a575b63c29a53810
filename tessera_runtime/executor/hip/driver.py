"""AMD's driver through hip-python: `gpu.driver.Driver` in HIP's own calls.

Run whole with hip-python 7 and 10 over a stand-in for ROCm's library; it has not met a device yet.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from tessera_runtime.errors import DriverTooOld, LaunchFailed
from tessera_runtime.executor.gpu.driver import Bytes, Device, LaunchShape, TensorMapShape
from tessera_runtime.executor.gpu.vendor_driver import Vendor, VendorDriver, open_vendor_driver

_LOST = frozenset({4, 46, 214, 700, 702, 709, 710, 718, 719, 999, 1053})
_AMD = Vendor("AMD", "hip", "hip-python", "rocm-smi", "HIP_VISIBLE_DEVICES", "Install ROCm", _LOST)
_UNREADABLE = frozenset({200, 209, 218})
"""A code object of a kind or version that the driver does not know."""


class HipDriver(VendorDriver):
    """One AMD device."""

    def __init__(self, api: ModuleType | Any, ordinal: int = 0) -> None:
        """`api` is `hip.hip`. Raises `DriverUnavailable` if there is no such device."""
        super().__init__(_AMD, api.hipError_t.hipSuccess)
        self._api = api
        self._code: dict[int, Bytes] = {}
        self._open(
            lambda: self._call(api.hipInit, 0),
            lambda: int(self._call(api.hipGetDeviceCount)),
            lambda: self._call(api.hipSetDevice, ordinal),
            ordinal,
        )
        properties = self._properties(ordinal)
        self._device = Device(
            name=_text(properties.name),
            family="hip",
            capability=(int(properties.major), int(properties.minor)),
            # Features follow after a colon; code objects are made for any of them.
            architecture=_text(properties.gcnArchName).split(":", 1)[0],
            warp_size=int(properties.warpSize),
            memory_bytes=int(properties.totalGlobalMem),
            multiprocessors=int(properties.multiProcessorCount),
            shared_bytes=int(properties.sharedMemPerBlock),
            driver_version=0,
        )

    @property
    def device(self) -> Device:
        return self._device

    def free_memory(self) -> int:
        free, _ = self._call(self._api.hipMemGetInfo)
        return int(free)

    def allocate(self, size: int) -> int:
        return int(self._call(self._api.hipMalloc, size))

    def free(self, address: int) -> None:
        self._call(self._api.hipFree, address)

    def allocate_pinned(self, size: int) -> Bytes:
        return self._as_pinned(int(self._call(self._api.hipHostMalloc, max(1, size), 0)), size)

    def free_pinned(self, memory: Bytes) -> None:
        self._call(self._api.hipHostFree, self._taken_back(memory))

    def create_stream(self) -> int:
        # 1: work on it does not wait for the default stream.
        return int(self._call(self._api.hipStreamCreateWithFlags, 1))

    def destroy_stream(self, stream: int) -> None:
        self._call(self._api.hipStreamDestroy, stream)

    def synchronize(self, stream: int) -> None:
        self._call(self._api.hipStreamSynchronize, stream)

    def create_event(self) -> int:
        return int(self._call(self._api.hipEventCreateWithFlags, 0))

    def destroy_event(self, event: int) -> None:
        self._call(self._api.hipEventDestroy, event)

    def record_event(self, event: int, stream: int) -> None:
        self._call(self._api.hipEventRecord, event, stream)

    def wait_for(self, stream: int, event: int) -> None:
        self._call(self._api.hipStreamWaitEvent, stream, event, 0)

    def synchronize_event(self, event: int) -> None:
        self._call(self._api.hipEventSynchronize, event)

    def seconds_between(self, first: int, second: int) -> float:
        return float(self._call(self._api.hipEventElapsedTime, first, second)) / 1000

    def copy_in(self, address: int, source: Bytes, stream: int) -> None:
        self._call(self._api.hipMemcpyHtoDAsync, address, source.ctypes.data, len(source), stream)

    def copy_out(self, target: Bytes, address: int, stream: int) -> None:
        self._call(self._api.hipMemcpyDtoHAsync, target.ctypes.data, address, len(target), stream)

    def fill(self, address: int, size: int, value: int, stream: int) -> None:
        if size:
            self._call(self._api.hipMemsetAsync, address, value, size, stream)

    def load_module(self, code: Bytes) -> int:
        status, (module,) = self._ask(self._api.hipModuleLoadData, code.ctypes.data)
        if int(status.value) in _UNREADABLE:
            raise DriverTooOld(
                f"The AMD driver cannot read the package's code for {self._device.architecture}: "
                f"{self._words(status)}.",
                hint="Update ROCm, or serve with --target cpu.",
            )
        self._check(status)
        handle = int(module)
        # HIP may go on reading the code after the call.
        self._code[handle] = code
        return handle

    def unload_module(self, module: int) -> None:
        self._call(self._api.hipModuleUnload, module)
        self._code.pop(module, None)

    def function(self, module: int, name: str, shared_bytes: int) -> int:
        return int(self._call(self._api.hipModuleGetFunction, module, name.encode()))

    def prepare(self, shape: LaunchShape) -> Any:
        return shape.function, *shape.grid, shape.threads, 1, 1, shape.shared_bytes

    def launch(self, prepared: Any, parameters: int, stream: int) -> None:
        self._call(self._api.hipModuleLaunchKernel, *prepared, stream, parameters, None)

    def begin_capture(self, stream: int) -> None:
        mode = self._api.hipStreamCaptureMode.hipStreamCaptureModeThreadLocal
        self._call(self._api.hipStreamBeginCapture, stream, mode)

    def end_capture(self, stream: int) -> int:
        graph = self._call(self._api.hipStreamEndCapture, stream)
        try:
            return int(self._call(self._api.hipGraphInstantiateWithFlags, graph, 0))
        finally:
            self._call(self._api.hipGraphDestroy, graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call(self._api.hipGraphLaunch, graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call(self._api.hipGraphExecDestroy, graph)

    def tensor_map(self, shape: TensorMapShape) -> bytes:
        raise LaunchFailed(
            "A program for an AMD device has a tensor map, which these devices do not have.",
            hint="Pack the model again.",
        )

    def close(self) -> None:
        """HIP's context belongs to the process and ends with it."""

    def _properties(self, ordinal: int) -> Any:
        try:
            return self._call(self._api.hipGetDeviceProperties, ordinal)
        except TypeError:
            # Before version 10, hip-python takes the memory to write to.
            properties = self._api.hipDeviceProp_t()
            self._call(self._api.hipGetDeviceProperties, properties, ordinal)
            return properties

    def _number(self, status: Any) -> int:
        return int(status.value)


def _text(value: Any) -> str:
    raw = value if isinstance(value, bytes) else str(value).encode()
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def open_hip_driver(ordinal: int = 0) -> HipDriver:
    """The driver of this machine. Raises `DriverUnavailable` if hip-python, the driver or a device is missing."""

    def library() -> ModuleType:
        from hip import hip

        return hip

    return open_vendor_driver(_AMD, library, lambda api: HipDriver(api, ordinal))
