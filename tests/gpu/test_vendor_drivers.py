"""CUDA's and HIP's drivers, run whole over stand-ins of the libraries that speak to them."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hash_executor import HashExecutor
from test_gpu_executor import batch_of, greedy
from toy_program import ToyWeights, toy_driver, toy_program, write_code
from vendor_apis import CudaApi, HipApi, Status, VendorApi

from tessera_runtime.errors import (
    DeviceLost,
    DeviceMemoryTooSmall,
    DeviceUnavailable,
    DriverTooOld,
    DriverUnavailable,
    LaunchFailed,
)
from tessera_runtime.executor.cuda.driver import CudaDriver, open_cuda_driver
from tessera_runtime.executor.gpu.driver import Driver, LaunchShape, TensorMapShape
from tessera_runtime.executor.gpu.executor import GpuExecutor
from tessera_runtime.executor.gpu.program import read_program
from tessera_runtime.executor.hip.driver import HipDriver, open_hip_driver

VENDORS = ["cuda", "hip"]


def open_on(api: VendorApi) -> Driver:
    """The vendor's own driver over a stand-in."""
    return CudaDriver(api) if isinstance(api, CudaApi) else HipDriver(api)


def vendor(kind: str, **options: Any) -> tuple[Driver, VendorApi]:
    fake = toy_driver(read_program(toy_program()), **options)
    if kind == "cuda":
        cuda = CudaApi(fake)
        return CudaDriver(cuda), cuda
    hip = HipApi(fake)
    return HipDriver(hip), hip


@pytest.mark.parametrize("kind", VENDORS)
def test_a_whole_program_runs(kind: str, tmp_path: Path) -> None:
    raw = toy_program()
    write_code(tmp_path, raw)
    driver, api = vendor(kind)
    oracle = HashExecutor()
    oracle.allocate_cache(20)
    with GpuExecutor(driver, read_program(raw), tmp_path, ToyWeights()) as executor:
        executor.allocate_cache(20)
        executor.allocate_seats(2)
        batch = batch_of([(0, [1, 2, 3, 4, 5], [7, 3]), (0, [6], [1])])
        expected = oracle.step(batch)
        for _ in range(3):
            np.testing.assert_array_equal(executor.step(batch), expected)
        drawn = executor.collect(executor.submit(batch, greedy([1, 0])))
        assert drawn.ids.tolist() == expected.argmax(axis=1).tolist()
    assert api.fake.left_over() == {}
    assert any(call.endswith("GraphLaunch") for call in api.calls)


def test_what_a_device_is(tmp_path: Path) -> None:
    cuda, _ = vendor("cuda")
    assert (cuda.device.architecture, cuda.device.capability, cuda.device.driver_version) == ("sm90", (9, 0), 13000)
    assert (cuda.device.name, cuda.device.warp_size, cuda.device.shared_bytes) == ("fake", 32, 200_000)
    hip, _ = vendor("hip")
    assert (hip.device.architecture, hip.device.family) == ("gfx942", "hip")


@pytest.mark.parametrize("kind", VENDORS)
def test_errors_are_told_apart(kind: str) -> None:
    driver, api = vendor(kind, capacity=1000)
    with pytest.raises(DeviceMemoryTooSmall, match="has no memory left: OUT_OF_MEMORY"):
        driver.allocate(2000)
    api.fake.too_old = True
    with pytest.raises(DriverTooOld, match="cannot read the package's code"):
        driver.load_module(np.frombuffer(b"[]\0", np.uint8))
    api.fake.lose_after = -1
    with pytest.raises(DeviceLost, match="device failed: LAUNCH_FAILED"):
        driver.allocate(10)


def test_a_call_that_is_refused_says_which_words_the_driver_had() -> None:
    driver, api = vendor("cuda")
    api.unreadable = api.CUresult.INVALID_HANDLE  # type: ignore[attr-defined]
    api.fake.too_old = True
    with pytest.raises(LaunchFailed, match=r"refused a call: INVALID_HANDLE \(in words\)"):
        driver.load_module(np.frombuffer(b"[]\0", np.uint8))


def test_launches_carry_their_attributes() -> None:
    driver, _ = vendor("cuda")
    configuration, function = driver.prepare(LaunchShape(5, (3, 2, 1), 128, 4096, cluster=2, dependent=True))
    cluster, dependent = configuration.attrs
    assert (cluster.id, vars(cluster.value.clusterDim)) == (4, {"x": 2, "y": 1, "z": 1})
    assert (dependent.id, dependent.value.programmaticStreamSerializationAllowed) == (6, 1)
    assert (configuration.gridDimX, configuration.gridDimY, configuration.gridDimZ, function) == (3, 2, 1, 5)
    assert (configuration.blockDimX, configuration.sharedMemBytes) == (128, 4096)


def test_much_shared_memory_is_asked_for() -> None:
    driver, api = vendor("cuda")
    module = driver.load_module(np.frombuffer(b'["embed"]\0', np.uint8))
    driver.function(module, "embed", 48 << 10)
    assert api.shared == {}  # type: ignore[attr-defined]
    function = driver.function(module, "embed", 100_000)
    assert api.shared == {function: 100_000}  # type: ignore[attr-defined]


def test_amd_has_no_tensor_maps() -> None:
    with pytest.raises(LaunchFailed, match="tensor map"):
        vendor("hip")[0].tensor_map(TensorMapShape(0, "bf16", (1,), (), (1,), 0))


@pytest.mark.parametrize("kind", VENDORS)
def test_a_machine_without_devices(kind: str) -> None:
    fake = toy_driver(read_program(toy_program()))
    api: Any = CudaApi(fake) if kind == "cuda" else HipApi(fake)
    api.devices = 0
    with pytest.raises(DriverUnavailable, match="has 0 .* devices"):
        open_on(api)
    # The vendor's tool shows even those that are hidden from this process.
    api.failing = {f"{'cu' if kind == 'cuda' else 'hip'}Init": Status.NO_DEVICE}
    with pytest.raises(DriverUnavailable, match=r"finds no device.*NO_DEVICE.*(CUDA|HIP)_VISIBLE_DEVICES hides it"):
        open_on(api)


@pytest.mark.parametrize(
    ("kind", "call", "status", "error"),
    [
        ("cuda", "cuDevicePrimaryCtxRetain", Status.DEVICE_UNAVAILABLE, DeviceUnavailable),
        ("cuda", "cuInit", Status.UNKNOWN, DeviceUnavailable),
        ("cuda", "cuInit", KeyError(1234), DeviceUnavailable),
        ("cuda", "cuDevicePrimaryCtxRetain", Status.OUT_OF_MEMORY, DeviceMemoryTooSmall),
        ("hip", "hipSetDevice", Status.INVALID_VALUE, DeviceUnavailable),
    ],
)
def test_a_device_that_is_there_and_not_to_be_had(kind: str, call: str, status: Any, error: type[Exception]) -> None:
    fake = toy_driver(read_program(toy_program()))
    api: Any = CudaApi(fake) if kind == "cuda" else HipApi(fake)
    api.failing = {call: status}
    with pytest.raises(error, match="serve with --target cpu"):
        open_on(api)


@pytest.mark.parametrize("kind", VENDORS)
@pytest.mark.parametrize("unknown", [KeyError(1234), ValueError("1234 is not a valid status")])
def test_a_status_that_the_package_does_not_know_ends_the_engine(kind: str, unknown: Exception) -> None:
    driver, api = vendor(kind)
    stream = driver.create_stream()
    api.failing = {f"{'cu' if kind == 'cuda' else 'hip'}StreamSynchronize": unknown}
    with pytest.raises(DeviceLost, match="an error that (cuda-bindings|hip-python) does not know: 1234"):
        driver.synchronize(stream)


@pytest.mark.parametrize("kind", VENDORS)
def test_any_thread_may_compute(kind: str, tmp_path: Path) -> None:
    raw = toy_program()
    write_code(tmp_path, raw)
    driver, api = vendor(kind)
    batch = batch_of([(0, [1, 2, 3], [4])])
    with GpuExecutor(driver, read_program(raw), tmp_path, ToyWeights()) as executor:
        executor.allocate_cache(20)
        expected = executor.step(batch)
        with ThreadPoolExecutor(1) as other:
            np.testing.assert_array_equal(other.submit(executor.step, batch).result(), expected)
            entered = api.calls.count("cuCtxSetCurrent" if kind == "cuda" else "hipSetDevice")
            np.testing.assert_array_equal(other.submit(executor.step, batch).result(), expected)
        np.testing.assert_array_equal(executor.step(batch), expected)
    assert entered == 2 and api.calls.count("cuCtxSetCurrent" if kind == "cuda" else "hipSetDevice") == 3


def test_hip_python_of_either_kind() -> None:
    fake = toy_driver(read_program(toy_program()))
    assert HipDriver(HipApi(fake)).device == HipDriver(HipApi(fake, older=True)).device


@pytest.mark.parametrize(("kind", "opened"), [("cuda", open_cuda_driver), ("hip", open_hip_driver)])
def test_a_machine_without_the_library_or_the_driver(kind: str, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("cuda", "cuda.bindings", "cuda.bindings.driver") if kind == "cuda" else ("hip", "hip.hip")
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DriverUnavailable, match="is not installed"):
        opened()

    class NoDriver(ModuleType):
        CUresult, hipError_t = CudaApi.CUresult, HipApi.hipError_t

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            raise RuntimeError("libraries of the driver cannot be found")

    modules = {name: NoDriver(name) for name in names}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    with pytest.raises(DriverUnavailable, match=r"no (NVIDIA|AMD) driver on this machine: .* found\. Install"):
        opened()
