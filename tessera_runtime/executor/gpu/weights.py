"""Brings weights to the device: several threads read pieces into pinned memory, from where they are copied while the
next are read."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from tessera_runtime.errors import ExecutionError, FileTruncated, WeightsInvalid
from tessera_runtime.executor.gpu.driver import Bytes, Driver
from tessera_runtime.executor.gpu.program import Weight
from tessera_runtime.package.safetensors_reader import SafetensorsFile

ALIGNMENT = 256
PIECE = 16 << 20
READERS = 8
BUFFERS = 16


class WeightSource(Protocol):
    """Where the bytes of tensors come from. Called from several threads at once."""

    def size(self, name: str) -> int:
        """Of a tensor, in bytes; raises `WeightsInvalid` if there is none of this name."""
        ...

    def read_into(self, target: Bytes, name: str, start: int) -> None:
        """Fills `target` with the tensor's bytes from `start` on."""
        ...


class FileSource:
    """The tensors of a package's file, read past the mapping: page faults would cost more than reading."""

    def __init__(self, file: SafetensorsFile) -> None:
        self._file = file
        self._descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)

    def size(self, name: str) -> int:
        return self._file.entry(name).size

    def read_into(self, target: Bytes, name: str, start: int) -> None:
        place = self._file.entry(name).offset + start
        view, done = target.data, 0
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done:]], place + done)
            if count == 0:
                raise FileTruncated(f"{self._file.path.name!r} ended while the tensor {name!r} was read.")
            done += count

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True)
class _Piece:
    name: str
    start: int
    size: int
    address: int


def weight_offsets(weights: Sequence[Weight]) -> tuple[list[int], int]:
    """Where each weight lies in one allocation, and how large that is."""
    offsets, end = [], 0
    for weight in weights:
        offsets.append(end)
        end += -(-weight.size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def load_weights(driver: Driver, weights: Sequence[Weight], source: WeightSource, base: int) -> list[int]:
    """Copies all weights to the memory at `base`, which holds what `weight_offsets` says; returns their addresses."""
    for weight in weights:
        size = source.size(weight.name)
        if size != weight.size:
            raise WeightsInvalid(
                f"The program needs {weight.size} bytes of the tensor {weight.name!r}, and the package has {size}.",
                hint="Pack the model again.",
            )
    offsets, _ = weight_offsets(weights)
    pieces = [
        _Piece(weight.name, start, min(PIECE, weight.size - start), base + offset + start)
        for weight, offset in zip(weights, offsets, strict=True)
        for start in range(0, weight.size, PIECE)
    ]
    _copy(driver, pieces, source)
    return [base + offset for offset in offsets]


def _copy(driver: Driver, pieces: Sequence[_Piece], source: WeightSource) -> None:
    count = min(BUFFERS, len(pieces))
    stream = driver.create_stream()
    memory = driver.allocate_pinned(max(1, count) * PIECE)
    events = [driver.create_event() for _ in range(count)]
    free = list(range(count))
    reading: deque[tuple[_Piece, int, Future[None]]] = deque()
    copying: deque[int] = deque()

    def queue_copy() -> None:
        piece, buffer, done = reading.popleft()
        done.result()
        driver.copy_in(piece.address, memory[buffer * PIECE :][: piece.size], stream)
        driver.record_event(events[buffer], stream)
        copying.append(buffer)

    try:
        with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as readers:
            for piece in pieces:
                while not free:
                    if copying and len(reading) < READERS:
                        buffer = copying.popleft()
                        driver.synchronize_event(events[buffer])
                        free.append(buffer)
                    else:
                        queue_copy()
                buffer = free.pop()
                target = memory[buffer * PIECE :][: piece.size]
                reading.append((piece, buffer, readers.submit(source.read_into, target, piece.name, piece.start)))
            while reading:
                queue_copy()
            driver.synchronize(stream)
    finally:
        # After a failure, copies may still be under way; a device that is gone has none.
        with contextlib.suppress(ExecutionError):
            driver.synchronize(stream)
        for event in events:
            driver.destroy_event(event)
        driver.free_pinned(memory)
        driver.destroy_stream(stream)
