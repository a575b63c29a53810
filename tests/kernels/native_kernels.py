"""Runs single Tile IR kernels on this machine's processor, from the same shared objects that packages hold."""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from tessera_compiler.targets.cpu.kernel_lowering import KernelLowering
from tessera_compiler.targets.cpu.object_code import CPU_CLASSES, CpuClass, compile_ir
from tessera_compiler.targets.cpu.vector_math import VectorMath
from tessera_compiler.targets.reference.interpreter import grid_size
from tessera_compiler.tile.dialect import KernelOp
from tessera_compiler.tile.types import element_name
from tessera_runtime.executor.cpu.processor import missing_features, read_processor

Array = NDArray[Any]

NATIVE_CLASSES = tuple(
    name
    for name, entry in CPU_CLASSES.items()
    if not missing_features(name, {"features": entry.required_flags}, read_processor())
)
"""The CPU classes whose code this machine can run, best first."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_NUMBER = itertools.count()


def object_of(kernels: Iterable[KernelOp], cpu_class: CpuClass) -> bytes:
    """The shared object that holds these kernels and exports each of them."""
    module = ir.Module()
    lowering = KernelLowering(module, VectorMath(module), cpu_class)
    symbols = []
    for kernel in kernels:
        lowering.lower(kernel).linkage = "external"
        symbols.append(kernel.symbol)
    return compile_ir(str(module), cpu_class, symbols)


class NativeKernels:
    """Kernels compiled for one CPU class and loaded."""

    def __init__(self, kernels: Sequence[KernelOp], cpu_class: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{cpu_class}-{next(_NUMBER)}.so"
            path.write_bytes(object_of(kernels, CPU_CLASSES[cpu_class]))
            self._library = ctypes.CDLL(str(path))

    def run(
        self,
        kernel: KernelOp,
        buffers: Sequence[Array],
        *,
        tokens: int,
        logit_rows: int = 0,
        table_width: int = 0,
        tiles: int = 0,
    ) -> list[Array]:
        """What the buffers hold after all instances have run, in the form that the interpreter works on.

        Each buffer ends where its memory ends, so that reading past it is fatal. Instances run in two portions, the
        later one first, as threads might.
        """
        elements = [element_name(buffer.type) for buffer in kernel.buffers]
        memories = [guarded(to_native(values, element)) for values, element in zip(buffers, elements, strict=True)]
        instances = math.prod(grid_size(entry, tokens, logit_rows, tiles) for entry in kernel.grid_entries)
        function = getattr(self._library, kernel.symbol)
        function.argtypes = [ctypes.c_void_p] * len(memories) + [ctypes.c_int64] * 6 + [ctypes.c_void_p]
        function.restype = None
        pointers = [memory.ctypes.data for memory in memories]
        for first, last in ((instances // 2, instances), (0, instances // 2)):
            # What comes behind a portion is fetched ahead: memory that may not be read must do no harm there.
            function(*pointers, tokens, logit_rows, table_width, first, last, last, None)
        return [from_native(memory, element) for memory, element in zip(memories, elements, strict=True)]


def guarded(values: Array) -> Array:
    """A copy whose last byte is the last that may be read."""
    size = -(-max(1, values.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    region = mmap.mmap(-1, size + mmap.PAGESIZE)
    whole = np.frombuffer(region, np.uint8)
    if _LIBC.mprotect(ctypes.c_void_p(whole.ctypes.data + size), ctypes.c_size_t(mmap.PAGESIZE), 0):
        raise OSError(ctypes.get_errno(), "mprotect failed")
    copy = whole[size - values.nbytes : size].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def to_native(values: Array, element: str) -> Array:
    """bfloat16 as its sixteen bits; everything else as it is."""
    values = np.ascontiguousarray(values)
    return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16) if element == "bf16" else values


def from_native(values: Array, element: str) -> Array:
    if element == "bf16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.array(values)
