"""NVIDIA's driver through cuda-bindings alone: `gpu.driver.Driver` in the driver API's own calls.

Nothing of cuda-bindings is imported before a device is opened, and no toolkit is needed: the driver's library, which
comes with the driver, is all.
"""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

from tessera_runtime.errors import DriverTooOld
from tessera_runtime.executor.gpu.driver import Bytes, Device, LaunchShape, TensorMapShape
from tessera_runtime.executor.gpu.vendor_driver import Vendor, VendorDriver, open_vendor_driver

_LOST = frozenset(
    {4, 46, 201, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 804, 806, 810, 911, 999}
)
_NVIDIA = Vendor("NVIDIA", "cuda", "cuda-bindings", "nvidia-smi", "CUDA_VISIBLE_DEVICES", "Install one", _LOST)
_UNREADABLE = frozenset({200, 209, 218, 221, 222})
"""A code object of a kind or version that the driver does not know."""
_TENSOR_MAP_TYPES = {
    "u8": "UINT8",
    "i8": "UINT8",
    "f8_e4m3": "UINT8",
    "i16": "UINT16",
    "i32": "INT32",
    "f16": "FLOAT16",
    "bf16": "BFLOAT16",
    "f32": "FLOAT32",
}
_SWIZZLES = {0: "NONE", 32: "32B", 64: "64B", 128: "128B"}


class CudaDriver(VendorDriver):
    """One NVIDIA device, by its primary context."""

    def __init__(self, api: ModuleType | Any, ordinal: int = 0) -> None:
        """`api` is `cuda.bindings.driver`. Raises `DriverUnavailable` if there is no such device."""
        super().__init__(_NVIDIA, api.CUresult.CUDA_SUCCESS)
        self._api = api
        self._context: Any = None

        def enter() -> None:
            if self._context is None:
                self._ordinal = self._call(api.cuDeviceGet, ordinal)
                self._context = self._call(api.cuDevicePrimaryCtxRetain, self._ordinal)
            self._call(api.cuCtxSetCurrent, self._context)

        self._open(lambda: self._call(api.cuInit, 0), lambda: int(self._call(api.cuDeviceGetCount)), enter, ordinal)
        self._device = self._describe()

    @property
    def device(self) -> Device:
        return self._device

    def free_memory(self) -> int:
        free, _ = self._call(self._api.cuMemGetInfo)
        return int(free)

    def allocate(self, size: int) -> int:
        return int(self._call(self._api.cuMemAlloc, size))

    def free(self, address: int) -> None:
        self._call(self._api.cuMemFree, address)

    def allocate_pinned(self, size: int) -> Bytes:
        return self._as_pinned(int(self._call(self._api.cuMemHostAlloc, max(1, size), 0)), size)

    def free_pinned(self, memory: Bytes) -> None:
        self._call(self._api.cuMemFreeHost, self._taken_back(memory))

    def create_stream(self) -> int:
        # 1: work on it does not wait for the default stream.
        return int(self._call(self._api.cuStreamCreate, 1))

    def destroy_stream(self, stream: int) -> None:
        self._call(self._api.cuStreamDestroy, stream)

    def synchronize(self, stream: int) -> None:
        self._call(self._api.cuStreamSynchronize, stream)

    def create_event(self) -> int:
        return int(self._call(self._api.cuEventCreate, 0))

    def destroy_event(self, event: int) -> None:
        self._call(self._api.cuEventDestroy, event)

    def record_event(self, event: int, stream: int) -> None:
        self._call(self._api.cuEventRecord, event, stream)

    def wait_for(self, stream: int, event: int) -> None:
        self._call(self._api.cuStreamWaitEvent, stream, event, 0)

    def synchronize_event(self, event: int) -> None:
        self._call(self._api.cuEventSynchronize, event)

    def seconds_between(self, first: int, second: int) -> float:
        return float(self._call(self._api.cuEventElapsedTime, first, second)) / 1000

    def copy_in(self, address: int, source: Bytes, stream: int) -> None:
        self._call(self._api.cuMemcpyHtoDAsync, address, source.ctypes.data, len(source), stream)

    def copy_out(self, target: Bytes, address: int, stream: int) -> None:
        self._call(self._api.cuMemcpyDtoHAsync, target.ctypes.data, address, len(target), stream)

    def fill(self, address: int, size: int, value: int, stream: int) -> None:
        if size:
            self._call(self._api.cuMemsetD8Async, address, value, size, stream)

    def load_module(self, code: Bytes) -> int:
        status, (module,) = self._ask(self._api.cuModuleLoadData, code.ctypes.data)
        if int(status) in _UNREADABLE:
            major, minor = divmod(self._device.driver_version // 10, 100)
            raise DriverTooOld(
                f"The NVIDIA driver, which speaks CUDA {major}.{minor}, cannot read the package's code for "
                f"{self._device.architecture}: {self._words(status)}.",
                hint="Update the driver, or serve with --target cpu.",
            )
        self._check(status)
        return int(module)

    def unload_module(self, module: int) -> None:
        self._call(self._api.cuModuleUnload, module)

    def function(self, module: int, name: str, shared_bytes: int) -> int:
        function = self._call(self._api.cuModuleGetFunction, module, name.encode())
        if shared_bytes > 48 << 10:
            attribute = self._api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call(self._api.cuFuncSetAttribute, function, attribute, shared_bytes)
        return int(function)

    def prepare(self, shape: LaunchShape) -> Any:
        api = self._api
        configuration = api.CUlaunchConfig()
        configuration.gridDimX, configuration.gridDimY, configuration.gridDimZ = shape.grid
        configuration.blockDimX, configuration.blockDimY, configuration.blockDimZ = shape.threads, 1, 1
        configuration.sharedMemBytes = shape.shared_bytes
        attributes = []
        if shape.cluster > 1:
            value = api.CUlaunchAttributeValue()
            value.clusterDim.x, value.clusterDim.y, value.clusterDim.z = shape.cluster, 1, 1
            attributes.append(self._attribute("CLUSTER_DIMENSION", value))
        if shape.dependent:
            value = api.CUlaunchAttributeValue()
            value.programmaticStreamSerializationAllowed = 1
            attributes.append(self._attribute("PROGRAMMATIC_STREAM_SERIALIZATION", value))
        configuration.attrs = attributes
        configuration.numAttrs = len(attributes)
        return configuration, api.CUfunction(shape.function)

    def launch(self, prepared: Any, parameters: int, stream: int) -> None:
        configuration, function = prepared
        configuration.hStream = stream
        self._call(self._api.cuLaunchKernelEx, configuration, function, parameters, 0)

    def begin_capture(self, stream: int) -> None:
        mode = self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call(self._api.cuStreamBeginCapture, stream, mode)

    def end_capture(self, stream: int) -> int:
        graph = self._call(self._api.cuStreamEndCapture, stream)
        try:
            return int(self._call(self._api.cuGraphInstantiate, graph, 0))
        finally:
            self._call(self._api.cuGraphDestroy, graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call(self._api.cuGraphLaunch, graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call(self._api.cuGraphExecDestroy, graph)

    def tensor_map(self, shape: TensorMapShape) -> bytes:
        api = self._api
        rank = len(shape.shape)
        made = self._call(
            api.cuTensorMapEncodeTiled,
            getattr(api.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{_TENSOR_MAP_TYPES[shape.dtype]}"),
            rank,
            shape.address,
            # Here the innermost axis comes first.
            [api.cuuint64_t(extent) for extent in reversed(shape.shape)],
            [api.cuuint64_t(stride) for stride in reversed(shape.strides)],
            [api.cuuint32_t(extent) for extent in reversed(shape.box)],
            [api.cuuint32_t(1)] * rank,
            api.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            getattr(api.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{_SWIZZLES[shape.swizzle]}"),
            api.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            api.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        return ctypes.string_at(int(made.getPtr()), 128)

    def close(self) -> None:
        self._api.cuDevicePrimaryCtxRelease(self._ordinal)

    def _describe(self) -> Device:
        def attribute(name: str) -> int:
            known = getattr(self._api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
            return int(self._call(self._api.cuDeviceGetAttribute, known, self._ordinal))

        major, minor = attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")
        name = bytes(self._call(self._api.cuDeviceGetName, 128, self._ordinal))
        return Device(
            name=name.split(b"\0", 1)[0].decode("utf-8", "replace"),
            family="cuda",
            capability=(major, minor),
            architecture=f"sm{major}{minor}",
            warp_size=attribute("WARP_SIZE"),
            memory_bytes=int(self._call(self._api.cuDeviceTotalMem, self._ordinal)),
            multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
            shared_bytes=attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
            driver_version=int(self._call(self._api.cuDriverGetVersion)),
        )

    def _attribute(self, name: str, value: Any) -> Any:
        attribute = self._api.CUlaunchAttribute()
        attribute.id = getattr(self._api.CUlaunchAttributeID, f"CU_LAUNCH_ATTRIBUTE_{name}")
        attribute.value = value
        return attribute

    def _words(self, status: Any) -> str:
        known, text = self._api.cuGetErrorString(status)
        name = getattr(status, "name", str(int(status)))
        return f"{name} ({text.decode()})" if int(known) == 0 and text else name


def open_cuda_driver(ordinal: int = 0) -> CudaDriver:
    """The driver of this machine. Raises `DriverUnavailable` if cuda-bindings, the driver or a device is missing."""

    def library() -> ModuleType:
        from cuda.bindings import driver

        return driver

    return open_vendor_driver(_NVIDIA, library, lambda api: CudaDriver(api, ordinal))
