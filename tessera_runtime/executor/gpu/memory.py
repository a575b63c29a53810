"""The device memory of one program: weights, arena, cache, seats. Each is one allocation."""

from __future__ import annotations

from dataclasses import dataclass

from tessera_runtime.errors import DeviceMemoryTooSmall
from tessera_runtime.executor.gpu.driver import Driver

SPARE_SHARE = 0.92
"""Of the free memory, what the cache may take: graphs and late modules need some."""


@dataclass
class Region:
    """An allocation that may be made anew, larger; nothing may be running on it then."""

    driver: Driver
    purpose: str
    """What it holds, and `take` or `takes`: how the sentence begins if memory does not suffice."""
    address: int = 0
    size: int = 0

    def grow(self, size: int) -> bool:
        """Makes room for `size` bytes at least; whether the memory moved and lost what it held."""
        if size <= self.size:
            return False
        self.release()
        try:
            self.address = self.driver.allocate(size)
        except DeviceMemoryTooSmall as error:
            device = self.driver.device
            raise DeviceMemoryTooSmall(
                f"{self.purpose} {size} bytes, and {device.name} has {self.driver.free_memory()} of its "
                f"{device.memory_bytes} bytes left.",
                hint="Free memory of the device, ask for less, or serve with --target cpu.",
            ) from error
        self.size = size
        return True

    def release(self) -> None:
        if self.size:
            address, self.address, self.size = self.address, 0, 0
            self.driver.free(address)
