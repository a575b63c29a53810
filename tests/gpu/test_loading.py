"""Which target is run: what the machine has, else the processor, with a sentence where that surprises."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_driver import FakeDriver
from toy_program import toy_driver, toy_program, write_code

from tessera import runtime
from tessera_runtime import loading
from tessera_runtime.errors import (
    AbiMismatch,
    DeviceMemoryTooSmall,
    DeviceUnavailable,
    DriverTooOld,
    DriverUnavailable,
    TargetUnavailable,
)
from tessera_runtime.executor.gpu import discovery
from tessera_runtime.executor.gpu.driver import Device
from tessera_runtime.executor.gpu.program import read_program
from tessera_runtime.executor.gpu.targets import Fit, family_of, fitting_targets
from tessera_runtime.package.safetensors_reader import SafetensorsFile

H200 = Device("NVIDIA H200", "cuda", (9, 0), "sm90", 32, 141 << 30, 132, 232448, 13000)


def device(major: int, minor: int) -> Device:
    return replace(H200, capability=(major, minor), architecture=f"sm{major}{minor}")


def test_devices_run_their_own_code_before_any_other() -> None:
    targets = ["cpu", "cuda-sm80", "cuda-sm90", "cuda-sm100", "hip-gfx942"]
    assert fitting_targets(device(9, 0), targets) == [Fit("cuda-sm90", False), Fit("cuda-sm80", True)]
    assert fitting_targets(device(8, 9), targets) == [Fit("cuda-sm80", False)]
    assert fitting_targets(device(12, 0), targets)[0] == Fit("cuda-sm100", True)
    # From 9.0 on, code runs on its own architecture alone.
    assert fitting_targets(device(10, 3), targets)[0] == Fit("cuda-sm100", True)
    assert fitting_targets(device(7, 5), targets) == []
    amd = replace(H200, family="hip", architecture="gfx942")
    assert fitting_targets(amd, targets) == [Fit("hip-gfx942", False)]
    assert fitting_targets(replace(amd, architecture="gfx90a"), targets) == []
    assert [family_of(target) for target in targets] == [None, "cuda", "cuda", "cuda", "hip"]


@dataclass
class ToyPackage:
    """What loading looks at of a package."""

    path: Path
    programs: dict[str, dict[str, Any]]

    @property
    def manifest(self) -> Any:
        targets = {name: SimpleNamespace(name=name) for name in self.programs}
        return SimpleNamespace(targets=list(targets.values()), target=targets.get)

    def program(self, target: str) -> dict[str, Any]:
        if target not in self.programs:
            raise TargetUnavailable(f"not built for {target}")
        return self.programs[target]

    def weights(self) -> SafetensorsFile:
        return SafetensorsFile(self.path / "weights.safetensors")


@pytest.fixture
def package(tmp_path: Path) -> ToyPackage:
    from safetensors.numpy import save_file

    save_file({"scale": np.full(16, 3, np.int32)}, tmp_path / "weights.safetensors")
    raw = toy_program()
    folder = tmp_path / "tile_kernels" / "cuda-sm90"
    folder.mkdir(parents=True)
    write_code(folder, raw)
    return ToyPackage(tmp_path, {"cuda-sm90": raw, "cpu": {}})


class Machine:
    """Stands for `open_driver`: a machine with one device, or none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found: Device | None, **options: Any) -> None:
        self.drivers: list[FakeDriver] = []
        self.too_old = False
        self._found, self._options = found, options
        monkeypatch.setattr(loading, "open_driver", self.open)
        monkeypatch.setattr(
            "tessera_runtime.executor.cpu.executor.open_cpu_executor", lambda *_: SimpleNamespace(description="cpu")
        )

    def open(self, family: str) -> FakeDriver:
        if self._found is None or family != self._found.family:
            raise DriverUnavailable("There is no driver on this machine.")
        driver = toy_driver(read_program(toy_program()), device=self._found, **self._options)
        driver.too_old = self.too_old
        self.drivers.append(driver)
        return driver


def load(package: ToyPackage, notices: list[str], target: str | None = None) -> Any:
    return loading.load_executor(package, target=target, notice=notices.append)  # type: ignore[arg-type]


def test_what_the_machine_has_is_listed(package: ToyPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "open_driver", Machine(monkeypatch, None).open)
    nothing = runtime.capabilities()
    assert [device.kind for device in nothing.devices] == ["cpu"]
    assert nothing.backends == ("cpu", "reference")
    machine = Machine(monkeypatch, H200)
    monkeypatch.setattr(discovery, "open_driver", machine.open)
    found = runtime.capabilities()
    assert found.devices[0] == runtime.Device("cuda", "NVIDIA H200", 141 << 30, "sm90")
    assert found.backends == ("cuda-sm90", "cpu", "reference")
    assert runtime.target_for(package) == ("cuda-sm90", "")  # type: ignore[arg-type]


def test_a_device_goes_before_the_processor(package: ToyPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, H200)
    notices: list[str] = []
    executor = load(package, notices)
    assert executor.description == "cuda-sm90, NVIDIA H200, 141 GiB" and notices == []
    executor.close()
    assert all(driver.closed for driver in machine.drivers) and machine.drivers[-1].left_over() == {}


def test_without_a_driver_the_processor_serves_and_nobody_wonders(
    package: ToyPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch, None)
    notices: list[str] = []
    assert load(package, notices).description == "cpu" and notices == []
    with pytest.raises(DriverUnavailable, match="no driver"):
        load(package, notices, "cuda-sm90")


def test_a_device_that_cannot_be_used_is_spoken_of(package: ToyPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[str] = []
    Machine(monkeypatch, H200, capacity=10)
    assert load(package, notices).description == "cpu"
    assert notices.pop().startswith("Running on the CPU: The package's weights take")
    with pytest.raises(DeviceMemoryTooSmall):
        load(package, notices, "cuda-sm90")
    machine = Machine(monkeypatch, device(8, 0))
    assert load(package, notices).description == "cpu"
    assert "runs cuda-sm80, and the package was built for cuda-sm90" in notices.pop()
    assert all(driver.closed for driver in machine.drivers)
    Machine(monkeypatch, replace(H200, driver_version=11080))
    assert load(package, notices).description == "cpu"
    assert notices.pop() == (
        "Running on the CPU: The code of cuda-sm90 needs a driver for CUDA 12.4, and this machine's is for 11.8."
    )
    with pytest.raises(DriverTooOld):
        load(package, notices, "cuda-sm90")
    Machine(monkeypatch, H200).too_old = True
    assert load(package, notices).description == "cpu"
    assert notices.pop().startswith("Running on the CPU: The driver is of version 12.0 and cannot read this code")


def test_a_program_of_another_time_leaves_the_processor(package: ToyPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that for the device: one for the processor that cannot be read is an error, whatever else there is."""
    machine = Machine(monkeypatch, H200)
    notices: list[str] = []
    package.programs["cuda-sm90"]["abi"] = 1
    assert load(package, notices).description == "cpu"
    assert notices.pop().startswith("Running on the CPU: The program is of ABI 1")
    with pytest.raises(AbiMismatch, match="ABI 1"):
        load(package, notices, "cuda-sm90")
    del package.programs["cpu"]
    with pytest.raises(AbiMismatch, match="ABI 1"):
        load(package, notices)
    monkeypatch.setattr(discovery, "open_driver", machine.open)
    assert not runtime.capabilities().runs(package)  # type: ignore[arg-type]
    assert all(driver.closed for driver in machine.drivers)

    def unreadable(*_: Any) -> Any:
        raise AbiMismatch("The program is of ABI 9.")

    package.programs |= {"cpu": {}, "reference": {}}
    monkeypatch.setattr("tessera_runtime.executor.cpu.executor.open_cpu_executor", unreadable)
    with pytest.raises(AbiMismatch, match="ABI 9"):
        load(package, notices)


def test_a_device_that_its_driver_withholds_is_spoken_of(package: ToyPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[str] = []
    Machine(monkeypatch, None)
    package.programs["hip-gfx942"] = package.programs["cuda-sm90"]

    def held(family: str) -> FakeDriver:
        if family == "cuda":
            raise DriverUnavailable("There is no NVIDIA driver on this machine.")
        raise DeviceUnavailable("The AMD device cannot be used: another process has it.")

    monkeypatch.setattr(loading, "open_driver", held)
    assert load(package, notices).description == "cpu"
    assert notices.pop() == "Running on the CPU: The AMD device cannot be used: another process has it."
    monkeypatch.setattr(discovery, "open_driver", held)
    assert discovery.found_devices(notices.append) == []
    assert notices == ["The AMD device cannot be used: another process has it."]


def test_what_a_machine_runs_is_what_loading_opens(package: ToyPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    del package.programs["cpu"]

    def runs(found: Device) -> bool:
        """As `Capabilities.runs` says, which must be what loading does."""
        machine = Machine(monkeypatch, found)
        monkeypatch.setattr(discovery, "open_driver", machine.open)
        said = runtime.capabilities().runs(package)  # type: ignore[arg-type]
        try:
            load(package, []).close()
        except TargetUnavailable:
            assert not said
        else:
            assert said
        assert all(driver.closed for driver in machine.drivers)
        return said

    new, old_driver = device(10, 0), replace(H200, driver_version=11080)
    assert runs(H200) and not runs(new) and not runs(device(8, 0)) and not runs(old_driver)
    assert not runs(replace(H200, warp_size=64))
    add_ptx(package)
    assert runs(H200) and runs(new) and not runs(device(8, 0))
    assert runtime.target_for(package) is None  # type: ignore[arg-type]
    package.programs["cuda-sm80"] = {**package.programs["cuda-sm90"], "target": "cuda-sm80"}
    assert runtime.target_for(package) == ("cuda-sm80", "")  # type: ignore[arg-type]


def add_ptx(package: ToyPackage) -> None:
    """PTX beside all code, as far as its name says."""
    raw = package.programs["cuda-sm90"]
    folder = package.path / "tile_kernels" / "cuda-sm90"
    for index in range(2):
        cubin = raw["modules"][index]
        name = cubin["file"].replace("cubin", "ptx")
        (folder / name).write_bytes((folder / cubin["file"]).read_bytes())
        raw["modules"].append({**cubin, "file": name, "kind": "ptx"})
        cubin["fallback"] = 2 + index


def test_code_for_an_older_device_needs_ptx(package: ToyPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, device(10, 0))
    notices: list[str] = []
    assert load(package, notices).description == "cpu"
    assert "runs on no other architecture" in notices.pop()
    add_ptx(package)
    with load(package, notices) as executor:
        assert executor.description.startswith("cuda-sm90")
    assert "the driver compiles that of cuda-sm90" in notices.pop()


def test_a_target_that_the_package_lacks_is_named(package: ToyPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, H200)
    with pytest.raises(TargetUnavailable, match="not built for cuda-sm80"):
        load(package, [], "cuda-sm80")
    with pytest.raises(TargetUnavailable, match="cannot execute the target 'tpu'"):
        load(package, [], "tpu")
