"""Stand-ins for cuda-bindings and hip-python: their calls and their return values, over the fake driver.

So the vendors' drivers can be run whole, and every argument they pass is one that the fake driver checks.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_driver import FakeDriver

from tessera_runtime.errors import DeviceLost, DeviceMemoryTooSmall, DriverTooOld
from tessera_runtime.executor.gpu.driver import LaunchShape


class Status(IntEnum):
    """Of CUDA; HIP has the same numbers."""

    CUDA_SUCCESS = 0
    INVALID_VALUE = 1
    OUT_OF_MEMORY = 2
    DEVICE_UNAVAILABLE = 46
    NO_DEVICE = 100
    INVALID_CONTEXT = 201
    UNSUPPORTED_PTX_VERSION = 222
    NO_BINARY_FOR_GPU = 209
    INVALID_HANDLE = 400
    LAUNCH_FAILED = 719
    UNKNOWN = 999


class Handle:
    """What calls that make something give: no number, but an object that has one."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __int__(self) -> int:
        return self._value


MAKERS = (
    *(
        "MemAlloc",
        "HostAlloc",
        "Malloc",
        "StreamCreate",
        "StreamCreateWithFlags",
        "EventCreate",
        "EventCreateWithFlags",
    ),
    *(
        "ModuleLoadData",
        "ModuleGetFunction",
        "EndCapture",
        "GraphInstantiate",
        "GraphInstantiateWithFlags",
        "CtxRetain",
    ),
)
"""How the names of calls end that give a handle."""


class VendorApi:
    """What both have in common: a table of calls, each giving a status and results."""

    def __init__(self, fake: FakeDriver, unreadable: Status) -> None:
        self.fake = fake
        self.unreadable = unreadable
        self.devices = 1
        self.calls: list[str] = []
        self.failing: dict[str, Status | Exception] = {}
        """What calls give, or raise, instead of doing anything."""
        self.current = threading.local()
        self._pinned: dict[int, np.ndarray[Any, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        table = object.__getattribute__(self, "table")()
        if name not in table:
            raise AttributeError(name)
        act = table[name]

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            failure = self.failing.get(name) or self.refusal(name)
            if isinstance(failure, Exception):
                raise failure
            results = () if name.endswith(("LaunchKernelEx", "LaunchKernel")) else (None,)
            try:
                if failure is not None:
                    return failure, *results
                result = act(*(int(each) if isinstance(each, Handle) else each for each in arguments))
            except DeviceMemoryTooSmall:
                return Status.OUT_OF_MEMORY, *results
            except DriverTooOld:
                return self.unreadable, *results
            except DeviceLost:
                return Status.LAUNCH_FAILED, *results
            if result is None:
                return (Status.CUDA_SUCCESS,)
            if name.endswith(MAKERS):
                return Status.CUDA_SUCCESS, Handle(result[0] if isinstance(result, tuple) else result)
            return (Status.CUDA_SUCCESS, *(result if isinstance(result, tuple) else (result,)))

        return call

    def table(self) -> dict[str, Callable[..., Any]]:
        raise AssertionError("a vendor has a table")

    def refusal(self, name: str) -> Status | None:
        """Why a call cannot be made on this thread."""
        return None

    def pin(self, size: int, flags: int) -> int:
        memory = self.fake.allocate_pinned(size)
        self._pinned[memory.ctypes.data] = memory
        return memory.ctypes.data

    def unpin(self, address: int) -> None:
        self.fake.free_pinned(self._pinned.pop(address))

    def pinned(self, address: int, size: int) -> np.ndarray[Any, Any]:
        """The same memory as an array of its own: the fake looks at addresses."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def copy_in(self, target: int, source: int, size: int, stream: int) -> None:
        self.fake.copy_in(target, self.pinned(source, size), stream)

    def copy_out(self, target: int, source: int, size: int, stream: int) -> None:
        self.fake.copy_out(self.pinned(target, size), source, stream)

    def fill(self, target: int, value: int, size: int, stream: int) -> None:
        self.fake.fill(target, size, value, stream)

    def load(self, code: int) -> int:
        text = ctypes.string_at(code)
        return self.fake.load_module(np.frombuffer(text + b"\0", np.uint8))

    def function(self, module: int, name: bytes) -> int:
        return self.fake.function(module, name.decode(), self.fake.device.shared_bytes)


class CudaApi(VendorApi):
    """`cuda.bindings.driver`."""

    CUresult = Status
    CUlaunchConfig = SimpleNamespace
    CUlaunchAttribute = SimpleNamespace
    CUlaunchAttributeID = SimpleNamespace(
        CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION=4, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION=6
    )
    CUfunction = staticmethod(int)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
        CU_DEVICE_ATTRIBUTE_WARP_SIZE="warp_size",
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT="multiprocessors",
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN="shared_bytes",
    )

    def __init__(self, fake: FakeDriver) -> None:
        super().__init__(fake, Status.UNSUPPORTED_PTX_VERSION)
        self.launched: list[SimpleNamespace] = []
        self.shared: dict[int, int] = {}

    @staticmethod
    def CUlaunchAttributeValue() -> SimpleNamespace:
        return SimpleNamespace(clusterDim=SimpleNamespace())

    def table(self) -> dict[str, Callable[..., Any]]:
        fake = self.fake
        facts = {"major": fake.device.capability[0], "minor": fake.device.capability[1]}
        return {
            "cuInit": lambda flags: None,
            "cuDeviceGetCount": lambda: self.devices,
            "cuDeviceGet": lambda ordinal: ordinal,
            "cuDevicePrimaryCtxRetain": lambda device: 77,
            "cuDevicePrimaryCtxRelease": lambda device: fake.close(),
            "cuCtxSetCurrent": lambda context: setattr(self.current, "context", context),
            "cuDeviceGetAttribute": lambda name, _: facts.get(name) if name in facts else getattr(fake.device, name),
            "cuDeviceGetName": lambda size, _: fake.device.name.encode().ljust(size, b"\0"),
            "cuDeviceTotalMem": lambda _: fake.device.memory_bytes,
            "cuDriverGetVersion": lambda: fake.device.driver_version,
            "cuGetErrorString": lambda status: b"in words",
            "cuMemGetInfo": lambda: (fake.free_memory(), fake.memory.capacity),
            "cuMemAlloc": fake.allocate,
            "cuMemFree": fake.free,
            "cuMemHostAlloc": self.pin,
            "cuMemFreeHost": self.unpin,
            "cuStreamCreate": lambda flags: fake.create_stream(),
            "cuStreamDestroy": fake.destroy_stream,
            "cuStreamSynchronize": fake.synchronize,
            "cuStreamWaitEvent": lambda stream, event, flags: fake.wait_for(stream, event),
            "cuEventCreate": lambda flags: fake.create_event(),
            "cuEventDestroy": fake.destroy_event,
            "cuEventRecord": fake.record_event,
            "cuEventSynchronize": fake.synchronize_event,
            "cuEventElapsedTime": lambda first, second: 1000 * fake.seconds_between(first, second),
            "cuMemcpyHtoDAsync": self.copy_in,
            "cuMemcpyDtoHAsync": self.copy_out,
            "cuMemsetD8Async": self.fill,
            "cuModuleLoadData": self.load,
            "cuModuleUnload": fake.unload_module,
            "cuModuleGetFunction": self.function,
            "cuFuncSetAttribute": lambda function, attribute, value: self.shared.update({function: value}),
            "cuLaunchKernelEx": self.launch,
            "cuStreamBeginCapture": lambda stream, mode: fake.begin_capture(stream),
            "cuStreamEndCapture": lambda stream: (fake.end_capture(stream),),
            "cuGraphInstantiate": lambda graph, flags: graph,
            "cuGraphDestroy": lambda graph: None,
            "cuGraphLaunch": fake.launch_graph,
            "cuGraphExecDestroy": fake.destroy_graph,
        }

    def refusal(self, name: str) -> Status | None:
        anywhere = ("cuInit", "cuDevice", "cuDriver", "cuCtx", "cuGetErrorString")
        here = name.startswith(anywhere) or getattr(self.current, "context", None) == 77
        return None if here else Status.INVALID_CONTEXT

    def launch(self, configuration: SimpleNamespace, function: int, parameters: int, extra: int) -> None:
        assert configuration.numAttrs == len(configuration.attrs)
        self.launched.append(configuration)
        grid = (configuration.gridDimX, configuration.gridDimY, configuration.gridDimZ)
        shape = LaunchShape(function, grid, configuration.blockDimX, configuration.sharedMemBytes)
        self.fake.launch(self.fake.prepare(shape), parameters, configuration.hStream)


class HipStatus:
    """HIP's status is no number; its `value` is."""

    hipSuccess = Status.CUDA_SUCCESS


class HipApi(VendorApi):
    """`hip.hip` of version 10, or with `older` of 7."""

    hipError_t = HipStatus
    hipStreamCaptureMode = SimpleNamespace(hipStreamCaptureModeThreadLocal=1)

    hipDeviceProp_t = SimpleNamespace

    def __init__(self, fake: FakeDriver, *, older: bool = False) -> None:
        super().__init__(fake, Status.NO_BINARY_FOR_GPU)
        self.older = older

    def table(self) -> dict[str, Callable[..., Any]]:
        fake = self.fake
        properties = SimpleNamespace(
            name=fake.device.name.encode(),
            major=9,
            minor=4,
            gcnArchName=b"gfx942:sramecc+:xnack-",
            warpSize=fake.device.warp_size,
            totalGlobalMem=fake.device.memory_bytes,
            multiProcessorCount=fake.device.multiprocessors,
            sharedMemPerBlock=fake.device.shared_bytes,
        )
        return {
            "hipInit": lambda flags: None,
            "hipGetDeviceCount": lambda: self.devices,
            "hipSetDevice": lambda ordinal: setattr(self.current, "device", ordinal),
            "hipGetDeviceProperties": (
                (lambda target, ordinal: vars(target).update(vars(properties)))
                if self.older
                else lambda ordinal: properties
            ),
            "hipMemGetInfo": lambda: (fake.free_memory(), fake.memory.capacity),
            "hipMalloc": fake.allocate,
            "hipFree": fake.free,
            "hipHostMalloc": self.pin,
            "hipHostFree": self.unpin,
            "hipStreamCreateWithFlags": lambda flags: fake.create_stream(),
            "hipStreamDestroy": fake.destroy_stream,
            "hipStreamSynchronize": fake.synchronize,
            "hipStreamWaitEvent": lambda stream, event, flags: fake.wait_for(stream, event),
            "hipEventCreateWithFlags": lambda flags: fake.create_event(),
            "hipEventDestroy": fake.destroy_event,
            "hipEventRecord": fake.record_event,
            "hipEventSynchronize": fake.synchronize_event,
            "hipEventElapsedTime": lambda first, second: 1000 * fake.seconds_between(first, second),
            "hipMemcpyHtoDAsync": self.copy_in,
            "hipMemcpyDtoHAsync": self.copy_out,
            "hipMemsetAsync": self.fill,
            "hipModuleLoadData": self.load,
            "hipModuleUnload": fake.unload_module,
            "hipModuleGetFunction": self.function,
            "hipModuleLaunchKernel": self.launch,
            "hipStreamBeginCapture": lambda stream, mode: fake.begin_capture(stream),
            "hipStreamEndCapture": lambda stream: (fake.end_capture(stream),),
            "hipGraphInstantiateWithFlags": lambda graph, flags: graph,
            "hipGraphDestroy": lambda graph: None,
            "hipGraphLaunch": fake.launch_graph,
            "hipGraphExecDestroy": fake.destroy_graph,
        }

    def launch(self, function: int, *rest: Any) -> None:
        *grid, threads, y, z, shared_bytes, stream, parameters, extra = rest
        assert (y, z, extra) == (1, 1, None)
        shape = LaunchShape(function, (grid[0], grid[1], grid[2]), threads, shared_bytes)
        self.fake.launch(self.fake.prepare(shape), parameters, stream)
