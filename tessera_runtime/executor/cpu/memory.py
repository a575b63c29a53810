"""Large zeroed memory, on huge pages where the system offers them."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
_HUGE_PAGE = 2 << 20


def zeroed_memory(size: int) -> NDArray[np.uint8]:
    """`size` bytes, all zero, aligned to 64 bytes at least. Pages become real when they are first touched."""
    if size < _HUGE_PAGE:
        raw = np.zeros(size + ALIGNMENT, np.uint8)
        return raw[-raw.ctypes.data % ALIGNMENT :][:size]
    # Not shared, as it would be by default: most systems back shared memory with small pages only.
    region = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages serves small ones
            region.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(region, np.uint8)
    return whole[-whole.ctypes.data % _HUGE_PAGE :][:size]


def address_of(array: NDArray[np.generic]) -> int:
    return int(array.__array_interface__["data"][0])
