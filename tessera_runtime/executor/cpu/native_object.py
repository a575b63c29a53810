"""A checked shared object in memory, and its functions.

The file is mapped as it lies and never handed to the system's loader: what was checked is what runs, and no rule of a
loader (search paths, preloads, constructors, relocation) applies. Code is mapped from the file, never written, so this
works where writable code is forbidden.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from tessera_runtime.errors import AbiMismatch, NativeLoadFailed, TargetUnavailable
from tessera_runtime.executor.cpu.object_check import check_object

EXPORTS = ("tessera_abi", "tessera_begin", "tessera_step", "tessera_worker")
PROBE, WEIGH, DRAW = "tessera_probe", "tessera_weigh", "tessera_draw"
"""Exports that objects of earlier versions do not have."""

_FIXED = 0x10  # MAP_FIXED
_FAILED = ctypes.c_void_p(-1).value

# Functions that wait give up the interpreter's lock; the others are over before another thread could use it.
_ABI = ctypes.PYFUNCTYPE(ctypes.c_int64)
_BEGIN = ctypes.PYFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)
_STEP = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_WORKER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_PROBE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
_WEIGH = ctypes.PYFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_float, ctypes.c_void_p, ctypes.c_void_p
)
_DRAW = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)


class NativeObject:
    """The functions of a shared object. They must not be called after `close`."""

    def __init__(self, path: Path, machine: str, exports: Iterable[str] = EXPORTS) -> None:
        """Checks and maps the file at `path`, made for `machine`; raises ObjectRejected or NativeLoadFailed."""
        if platform.system() != "Linux":
            raise TargetUnavailable(
                f"The cpu target runs on Linux, and this is {platform.system()}.",
                hint="Use `--target reference` on this machine.",
            )
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        number = ctypes.c_int
        self._libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, number, number, number, ctypes.c_long)
        self._libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._base = self._bytes = 0
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NativeLoadFailed(f"The shared object {path.name!r} cannot be opened: {error.strerror}.") from None
        try:
            size = os.fstat(descriptor).st_size
            self._base = self._map(path, 0, size, mmap.PROT_READ, mmap.MAP_PRIVATE, descriptor, 0) if size else 0
            self._bytes = size
            found = check_object(ctypes.string_at(self._base, size), machine, exports, page_bytes=mmap.PAGESIZE)
            self._map(
                path,
                self._base + found.code_offset,
                found.code_bytes,
                mmap.PROT_READ | mmap.PROT_EXEC,
                mmap.MAP_PRIVATE | _FIXED,
                descriptor,
                found.code_offset,
            )
        except BaseException:
            self.close()
            raise
        finally:
            os.close(descriptor)
        addresses = {name: self._base + found.symbols[name] for name in EXPORTS}
        self.abi = int(_ABI(addresses["tessera_abi"])())
        self.begin = _BEGIN(addresses["tessera_begin"])
        self.step = _STEP(addresses["tessera_step"])
        self.worker = _WORKER(addresses["tessera_worker"])
        self.probe = _PROBE(self._base + found.symbols[PROBE]) if PROBE in found.symbols else None
        self.weigh = _WEIGH(self._base + found.symbols[WEIGH]) if WEIGH in found.symbols else None
        self.draw = _DRAW(self._base + found.symbols[DRAW]) if DRAW in found.symbols else None
        self.yield_address = int(ctypes.cast(self._libc.sched_yield, ctypes.c_void_p).value or 0)

    def require_abi(self, abi: int) -> None:
        if self.abi != abi:
            raise AbiMismatch(
                f"The program is of ABI {abi}, but its shared object is of ABI {self.abi}.",
                hint="Pack the model again.",
            )

    def close(self) -> None:
        """Takes the object out of memory. No thread may be inside it."""
        if self._base:
            self._libc.munmap(self._base, self._bytes)
            self._base = 0

    def _map(
        self, path: Path, address: int, size: int, protection: int, flags: int, descriptor: int, offset: int
    ) -> int:
        result = self._libc.mmap(address or None, size, protection, flags, descriptor, offset)
        if result is None or result == _FAILED:
            reason = os.strerror(ctypes.get_errno())
            raise NativeLoadFailed(
                f"The system refused to map the shared object {path.name!r}: {reason}.",
                hint="Keep packages on a file system that is not mounted noexec.",
            )
        return int(result)
