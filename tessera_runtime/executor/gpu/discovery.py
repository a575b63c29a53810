"""Which GPUs this machine has."""

from __future__ import annotations

from tessera_runtime.errors import DeviceLost, LaunchFailed, TargetUnavailable
from tessera_runtime.executor.gpu.driver import Device
from tessera_runtime.executor.gpu.opening import open_driver
from tessera_runtime.executor.gpu.targets import FAMILIES


def found_devices() -> list[Device]:
    """The first device of each vendor whose driver answers, those that are preferred first; the one that an executor
    would use. Opens and closes a context on each."""
    devices = []
    for family in FAMILIES:
        try:
            driver = open_driver(family)
        except (TargetUnavailable, DeviceLost, LaunchFailed):
            continue
        devices.append(driver.device)
        driver.close()
    return devices
