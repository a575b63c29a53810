"""What the drivers of NVIDIA and AMD have in common: calls that return a status before their results, what becomes of
errors, and how a device is found."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from threading import get_ident
from typing import Any, TypeVar

import numpy as np

from tessera_runtime.errors import (
    DeviceLost,
    DeviceMemoryTooSmall,
    DeviceUnavailable,
    DriverUnavailable,
    ExecutionError,
    LaunchFailed,
    TesseraError,
)
from tessera_runtime.executor.gpu.driver import Bytes

_OUT_OF_MEMORY = 2
_NO_DEVICE = 100
D = TypeVar("D", bound="VendorDriver")


@dataclass(frozen=True)
class Vendor:
    """Whose device it is, for the words of errors."""

    name: str
    extra: str
    """Of Tessera's, that brings the package."""
    package: str
    """That speaks to the driver."""
    tool: str
    """That shows what devices there are."""
    hiding: str
    """The environment variable that hides devices, even those that `tool` shows."""
    remedy: str
    """Against there being no driver."""
    lost: frozenset[int]
    """Errors after which every call fails: the process must let go of the device."""


class VendorDriver:
    """The part of a driver that is the same for all vendors."""

    def __init__(self, vendor: Vendor, success: Any) -> None:
        """`success` is the status of a call that did what it should."""
        self._vendor = vendor
        self._success = success
        self._pinned: dict[int, int] = {}
        self._thread = get_ident()
        self._enter: Callable[[], Any] = lambda: None

    def _open(
        self, initialize: Callable[[], Any], count: Callable[[], int], enter: Callable[[], Any], ordinal: int
    ) -> None:
        """Begins to use the device of this number; `enter` makes it the calling thread's. Raises `DriverUnavailable`
        if there is none, and `DeviceUnavailable` if there is one and the vendor's driver does not give it."""
        vendor = self._vendor
        try:
            initialize()
            found = count()
            if ordinal < found:
                enter()
        except ExecutionError as error:
            raise DeviceUnavailable(
                f"The {vendor.name} device cannot be used: {error.message}",
                hint=f"Look with {vendor.tool} whether the driver is in order and no other process has the device to "
                "itself, or serve with --target cpu.",
            ) from error
        if ordinal >= found:
            raise self._no_device(f"This machine has {found} {vendor.name} devices, and number {ordinal} was asked for")
        self._enter = enter

    def _no_device(self, message: str) -> DriverUnavailable:
        vendor = self._vendor
        return DriverUnavailable(
            f"{message}.",
            hint=f"Look with {vendor.tool} what there is, and whether {vendor.hiding} hides it, or serve with "
            "--target cpu.",
        )

    def _as_pinned(self, address: int, size: int) -> Bytes:
        """Host memory that the driver gave, as an array; `_taken_back` has its address."""
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        self._pinned[memory.ctypes.data] = address
        return memory

    def _taken_back(self, memory: Bytes) -> int:
        return self._pinned.pop(memory.ctypes.data)

    def _call(self, function: Any, *arguments: Any) -> Any:
        """The results of a call: none, one, or a tuple of several."""
        status, results = self._ask(function, *arguments)
        if status != self._success:
            self._check(status)
        return results[0] if len(results) == 1 else tuple(results)

    def _ask(self, function: Any, *arguments: Any) -> tuple[Any, list[Any]]:
        """The status of a call, and its results."""
        if get_ident() != self._thread:
            # Drivers know one device for each thread, and whoever waits for tokens computes them.
            self._thread = get_ident()
            self._enter()
        try:
            status, *results = function(*arguments)
        except (KeyError, ValueError) as error:
            # A status that the driver's makers added after this package was made. It may be one after which nothing
            # works any more, and an engine that goes on would fail every request.
            vendor = self._vendor
            raise DeviceLost(
                f"The {vendor.name} driver reports an error that {vendor.package} does not know: {error}.",
                hint=f"Update {vendor.package}; restart to go on.",
            ) from error
        return status, results

    def _check(self, status: Any) -> None:
        code = self._number(status)
        if code == 0:
            return
        name, words = self._vendor.name, self._words(status)
        if code in self._vendor.lost:
            raise DeviceLost(f"The {name} device failed: {words}.", hint="See the system's log; restart to go on.")
        if code == _OUT_OF_MEMORY:
            raise DeviceMemoryTooSmall(
                f"The {name} device has no memory left: {words}.",
                hint="Free memory of the device, or serve with --target cpu.",
            )
        if code == _NO_DEVICE:
            raise self._no_device(f"The {name} driver finds no device to use: {words}")
        raise LaunchFailed(f"The {name} driver refused a call: {words}.")

    def _number(self, status: Any) -> int:
        return int(status)

    def _words(self, status: Any) -> str:
        return str(getattr(status, "name", status))


def open_vendor_driver(vendor: Vendor, library: Callable[[], Any], make: Callable[[Any], D]) -> D:
    """The driver that `make` makes of what `library` imports. Raises `DriverUnavailable` if the package, the vendor's
    driver or a device is missing."""
    try:
        api = library()
    except ImportError as error:
        raise DriverUnavailable(
            f"The package {vendor.package}, which speaks to {vendor.name}'s driver, is not installed.",
            hint=f"Install tessera[{vendor.extra}], or serve with --target cpu.",
        ) from error
    try:
        return make(api)
    except TesseraError:
        raise
    except RuntimeError as error:
        # These packages look for the driver's library when the first call is made.
        raise DriverUnavailable(
            f"There is no {vendor.name} driver on this machine: {str(error).rstrip('.')}.",
            hint=f"{vendor.remedy}, or serve with --target cpu.",
        ) from error
