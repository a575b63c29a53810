"""Runs trials of the tuner with the runtime's executor (`tessera_compiler.autotune.trial.Runner`)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.executor.cpu.executor import CpuExecutor
from tessera_runtime.executor.cpu.memory import ALIGNMENT, zeroed_memory
from tessera_runtime.executor.cpu.weight_table import physical_shape
from tessera_runtime.executor.interface import StepBatch

if TYPE_CHECKING:
    from tessera_compiler.autotune.trial import Operand, Runner, Trial

_STORAGE: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(np.uint16),
    "u8": np.dtype(np.uint8),
    "u4": np.dtype(np.uint8),
}
_PATTERN_ELEMENTS = 1 << 18
BLOCK_TOKENS = 16
"""Positions in a block of the cache, as the trials' programs have them."""


class NativeBench:
    """Operands in memory. Executors live for one measurement each, so that none's idle threads disturb the next."""

    def __init__(self, operands: Sequence[Operand], threads: int | None) -> None:
        self._threads = threads
        self._arrays: dict[str, NDArray[Any]] = {}
        # One after the other in one piece of memory, as the tensors of a package lie.
        sizes = [-(-_bytes_of(operand) // ALIGNMENT) * ALIGNMENT for operand in operands]
        memory, start = zeroed_memory(sum(sizes)), 0
        masters: dict[str, NDArray[Any]] = {}
        for operand, size in zip(operands, sizes, strict=True):
            shape = physical_shape(operand.shape, operand.layout)
            array = memory[start : start + _bytes_of(operand)].view(_STORAGE[operand.dtype]).reshape(shape)
            start += size
            master = masters.setdefault(operand.name.rpartition(".")[0], array)
            if master is array:
                _fill(array, operand.holds)
            else:
                array[...] = master
            self._arrays[operand.name] = array

    def seconds(self, trial: Trial, tokens: int, launches: int, steps: int) -> NDArray[np.float64]:
        with tempfile.TemporaryDirectory() as folder, self._open(trial, Path(folder)) as executor:
            executor.allocate_cache(_blocks(tokens))
            return executor.profile(_batch(tokens), steps, launches)

    def output(self, trial: Trial, tokens: int) -> bytes:
        with tempfile.TemporaryDirectory() as folder, self._open(trial, Path(folder)) as executor:
            executor.allocate_cache(_blocks(tokens))
            found = executor.raw_buffers(_batch(tokens), 1)
            if trial.target.program["cache"]["layers"]:
                found.append(executor.raw_cache())
            return b"".join(values.tobytes() for values in found)

    def _open(self, trial: Trial, folder: Path) -> CpuExecutor:
        ((name, data),) = trial.target.files.items()
        path = folder / name
        path.write_bytes(data)
        return CpuExecutor(trial.target.program, path, self._arrays, self._threads)


def native_runner(threads: int | None) -> Runner:
    """A runner whose steps have so many threads; as many as there are cores by default."""
    return lambda operands: NativeBench(operands, threads)


def _bytes_of(operand: Operand) -> int:
    return math.prod(physical_shape(operand.shape, operand.layout)) * int(_STORAGE[operand.dtype].itemsize)


def _fill(array: NDArray[Any], holds: str) -> None:
    """Numbers such as a model has; what they are does not matter, as long as none is infinite."""
    random = np.random.default_rng(0)
    count = min(array.size, _PATTERN_ELEMENTS)
    pattern: NDArray[Any]
    if holds == "i32":
        pattern = random.integers(-4096, 4096, count, dtype=np.int32).view(np.float32)
    elif holds in ("f32", "bf16"):
        values = random.standard_normal(count, dtype=np.float32)
        pattern = values if holds == "f32" else (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    else:
        pattern = random.integers(0, 256, count, dtype=np.uint8)
    flat = array.reshape(-1)
    for start in range(0, flat.size, count):
        part = flat[start : start + count]
        part[...] = pattern[: part.size]


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def _batch(tokens: int) -> StepBatch:
    """As many sequences as tokens, so that rows of tokens and rows of logits are as many. Each token has a place in the
    cache, next to that of the token before as in a prompt."""
    rows = np.arange(tokens, dtype=np.int32)
    tables = (rows // BLOCK_TOKENS)[:, None]
    return StepBatch(np.zeros(tokens, np.int32), rows % BLOCK_TOKENS, rows, tables, rows)
