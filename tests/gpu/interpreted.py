"""A device whose kernels are Tile IR, run by the interpreter: whole programs, numbers and all, on any machine.

What the executor does (addresses, tables, tiles, padding, graphs, the loading of weights) is done for real; only the
arithmetic of the kernels is not a GPU's.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_driver import FakeDriver, FakeMemory
from numpy.typing import NDArray
from test_compiled_programs import stand_ins

from benchmarks import gpu_models
from tessera_compiler.targets.reference.interpreter import run_kernel
from tessera_compiler.targets.triton import target as triton_target
from tessera_compiler.targets.triton.emission import Source
from tessera_compiler.tile import dialect
from tessera_compiler.tile.types import BYTES, element_name, numpy_dtype

Array = NDArray[Any]
SYMBOLS = {"Q": "tiles", "D": "singles", "C": "chunks"}


def prepared(
    name: str,
    target: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_hand: Callable[[Source], Callable[..., None]] | None = None,
) -> tuple[gpu_models.GpuModel, Callable[[], FakeDriver]]:
    """A model compiled without Triton, and what makes a device that runs it: all kernels that are lowered from Tile IR,
    and those that were written by hand if it is said how."""
    kernels: dict[str, triton_target._Kernel] = {}

    def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
        def record(given: Any, architecture: Any) -> Any:
            found = original(given, architecture)
            kernels.update(found)
            return found

        return record

    for maker in ("_kernels", "_kernels_that_draw"):
        monkeypatch.setattr(triton_target, maker, recorded(getattr(triton_target, maker)))
    monkeypatch.setattr(triton_target, "compile_all", stand_ins)
    gpu_models.prepare(name, target, folder)
    # The stand-ins' code is what the fake driver reads: the names of its entries.
    model = gpu_models.GpuModel.read(folder / name)
    entries = {kernel.entry: kernels[each] for each, kernel in model.program.kernels.items()}
    parameters = {kernel.entry: kernel.function_parameters for kernel in model.program.kernels.values()}
    actions = {}
    for entry, kernel in entries.items():
        if kernel.lowered is not None:
            actions[entry] = _action(kernel.lowered, kernel.job.source)
        elif by_hand is not None:
            actions[entry] = by_hand(kernel.job.source)

    class Interpreted(FakeDriver):
        def load_module(self, code: Any) -> int:
            handle = self._handle()
            self._modules[handle] = list(entries)
            return handle

    return model, lambda: Interpreted(parameters, actions)


def _action(kernel: dialect.KernelOp, source: Source) -> Callable[..., None]:
    types = [argument.type for argument in list(kernel.body.block.args)[:-3]]
    # A map is there by its address, and followed by two extents and two strides.
    kinds = [kind for _, kind in source.signature]
    places = list(accumulate((5 if kind.startswith("tensordesc") else 1 for kind in kinds), initial=0))[:-1]

    def run(memory: FakeMemory, values: list[int], grid: tuple[int, int, int]) -> None:
        values = [values[place] for place in places]
        # Behind the buffers come T, L and W, and two pointers to scratch.
        pointers, (tokens, rows, width) = values[: len(types)], values[len(types) : len(types) + 3]
        views = [_view(memory, address, type_) for address, type_ in zip(pointers, types, strict=True)]
        arrays = [_widened(view, type_) for view, type_ in zip(views, types, strict=True)]
        before = [array.copy() for array in arrays]
        sizes = {"tiles": 0, "singles": 0, "chunks": 1}
        for entry, extent in zip(kernel.grid_entries, grid, strict=False):
            if entry in SYMBOLS:
                sizes[SYMBOLS[str(entry)]] = extent
        run_kernel(kernel, arrays, tokens=tokens, logit_rows=rows, table_width=width, **sizes)
        for view, array, old in zip(views, arrays, before, strict=True):
            _write_back(view, array, old)

    return run


def _view(memory: FakeMemory, address: int, type_: Any) -> Array:
    """All memory that the kernel may think it has: rows without a number reach to the end of the allocation."""
    shape = type_.get_shape()
    element = element_name(type_)
    size = memory.room(address) if shape[0] < 0 else BYTES[element] * int(np.prod(shape))
    storage = np.dtype(np.uint16) if element == "bf16" else np.dtype(numpy_dtype(element))
    return memory.view(address, size // storage.itemsize * storage.itemsize, "a kernel").view(storage)


def _widened(view: Array, type_: Any) -> Array:
    """A copy in the buffer's shape. The last row may begin inside of the allocation and end outside; zeros stand
    there."""
    values = view
    if element_name(type_) == "bf16":
        values = (view.astype(np.uint32) << np.uint32(16)).view(np.float32)
    shape = list(type_.get_shape())
    row = int(np.prod(shape[1:], dtype=np.int64))
    rows = -(-len(values) // row)
    padded = np.zeros(rows * row, values.dtype)
    padded[: len(values)] = values
    return padded.reshape(rows, *shape[1:])


def _write_back(view: Array, array: Array, old: Array) -> None:
    """Only what the kernel changed: the rest of the allocation belongs to others."""
    bits = np.dtype(f"u{array.itemsize}")
    flat = array.reshape(-1)[: len(view)]
    changed = flat.view(bits) != old.reshape(-1)[: len(view)].view(bits)
    values = flat[changed]
    view[changed] = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16) if view.dtype == np.uint16 else values
