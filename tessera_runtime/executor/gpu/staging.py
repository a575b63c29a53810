"""Copies that the caller waits for, through one piece of pinned memory."""

from __future__ import annotations

import numpy as np

from tessera_runtime.executor.gpu.driver import Bytes, Driver

PIECE = 8 << 20


class Staging:
    """Reads and writes device memory in the order of a stream."""

    def __init__(self, driver: Driver, stream: int) -> None:
        self._driver = driver
        self._stream = stream
        self._memory = driver.allocate_pinned(PIECE)

    def read(self, address: int, size: int) -> Bytes:
        """The bytes at an address after everything that is queued."""
        result = np.empty(size, np.uint8)
        for start in range(0, size, PIECE):
            piece = self._memory[: min(PIECE, size - start)]
            self._driver.copy_out(piece, address + start, self._stream)
            self._driver.synchronize(self._stream)
            result[start : start + len(piece)] = piece
        return result

    def write(self, address: int, values: Bytes) -> None:
        """Writes after everything that is queued; returns when it is done."""
        for start in range(0, len(values), PIECE):
            piece = self._memory[: min(PIECE, len(values) - start)]
            piece[:] = values[start : start + len(piece)]
            self._driver.copy_in(address + start, piece, self._stream)
            self._driver.synchronize(self._stream)

    def close(self) -> None:
        self._driver.free_pinned(self._memory)
