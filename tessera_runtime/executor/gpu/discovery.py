"""Which GPUs this machine has."""

from __future__ import annotations

from collections.abc import Callable

from tessera_runtime.errors import DeviceLost, DriverUnavailable, LaunchFailed, TargetUnavailable
from tessera_runtime.executor.gpu.driver import Device
from tessera_runtime.executor.gpu.opening import open_driver
from tessera_runtime.executor.gpu.targets import FAMILIES


def found_devices(notice: Callable[[str], None] | None = None) -> list[Device]:
    """The first device of each vendor whose driver answers, those that are preferred first; the one that an executor
    would use. Opens and closes a context on each. `notice` is told why a device that is there is not listed."""
    devices = []
    for family in FAMILIES:
        try:
            driver = open_driver(family)
        except DriverUnavailable:
            continue
        except (TargetUnavailable, DeviceLost, LaunchFailed) as error:
            if notice is not None:
                notice(str(error))
            continue
        devices.append(driver.device)
        driver.close()
    return devices
