"""What a kernel asks memory for ahead of time is exactly what its thread reads next.

Prefetches change no result, so none can tell whether they are right: here they are written down instead.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from llvmlite import ir
from native_kernels import NATIVE_CLASSES, object_of

from tessera_compiler.targets.cpu import emission
from tessera_compiler.targets.cpu.object_code import CPU_CLASSES
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.dialect import KernelOp
from tessera_compiler.tile.types import buffer_type
from tessera_runtime.executor.cpu.memory import address_of, zeroed_memory

LINE, DEPTH, INSTANCES, PANELS = 64, 32, 6, 2
TILE_BYTES = PANELS * 16 * DEPTH * 4
LOG = 3
FOLLOWING = 1 << 40


def kernel_of_parts(parts: int, pieces: int = 1) -> KernelOp:
    """Instances of so many parts of a weight side by side, as a gate is, each in so many pieces."""
    columns = PANELS * 16
    outputs = INSTANCES * columns
    weight = buffer_type([parts * outputs // 16, DEPTH, 16, 1], "f32")
    buffers = [buffer_type([None, DEPTH], "f32"), weight, buffer_type([None, outputs], "f32")]
    b = KernelBuilder("product", ["T", INSTANCES], [*buffers, buffer_type([None, 16], "f32")])
    zero = b.constant(0)
    row, first = b.program_id(0), b.index("mul", b.program_id(1), columns)
    left = b.load(b.buffers[0], row, zero, (1, DEPTH), row_step=1)
    width = columns // pieces
    for piece in range(pieces):
        column = b.index("add", first, piece * width)
        results = []
        for part in range(parts):
            n0 = b.index("add", column, part * outputs)
            right = b.load_packed(b.buffers[1], n0, zero, (DEPTH, width), ahead=columns - (piece + 1) * width)
            results.append(b.dot(left, right))
        total = results[0] if parts == 1 else b.binary("add", *results)
        b.store(total, b.buffers[2], row, column, row_step=1)
    return b.finish()


def kernel_of_rows() -> KernelOp:
    """Instances that read a row of panels at each step of k, as scales of groups are."""
    columns = PANELS * 16
    outputs = INSTANCES * columns
    buffers = [buffer_type([None, 16], "f32"), buffer_type([outputs // 16, DEPTH, 16, 1], "f32")]
    b = KernelBuilder("rows", ["T", INSTANCES], [*buffers, buffer_type([None, outputs], "f32"), buffers[0]])
    row, first = b.program_id(0), b.index("mul", b.program_id(1), columns)

    def add(k: object, carried: list[object]) -> list[object]:
        return [b.binary("add", carried[0], b.load_packed(b.buffers[1], first, k, (1, columns), ahead=0))]  # type: ignore[arg-type]

    (total,) = b.loop(b.constant(0), b.constant(DEPTH), 1, [b.full(0.0, (1, columns))], add)  # type: ignore[arg-type]
    b.store(total, b.buffers[2], row, first, row_step=1)
    return b.finish()


class Logged:
    """A kernel that writes down what it would prefetch."""

    def __init__(self, kernel: KernelOp, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def note(builder: ir.IRBuilder, pointer: ir.Value, nearness: int) -> None:
            log = builder.function.args[LOG]
            count = builder.load(log, align=8, typ=emission.I64)
            builder.store(builder.add(count, emission.i64(1)), log, align=8)
            place = builder.gep(log, [builder.add(count, emission.i64(1))], source_etype=emission.I64)
            builder.store(builder.ptrtoint(pointer, emission.I64), place, align=8)

        monkeypatch.setattr(emission, "emit_prefetch", note)
        path = folder / "object.so"
        path.write_bytes(object_of([kernel], CPU_CLASSES[NATIVE_CLASSES[0]]))
        self._function = getattr(ctypes.CDLL(str(path)), kernel.symbol)
        self.weight = zeroed_memory(8 * INSTANCES * TILE_BYTES)
        self._others = [zeroed_memory(1 << 16) for _ in range(2)]

    def run(self, first: int, last: int, turn: int) -> list[int]:
        """The lines, in order, as distances from the start of the weight."""
        log = zeroed_memory(1 << 20).view(np.int64)
        pointers = [self._others[0], self.weight, self._others[1], log]
        sizes = [1, 1, 1, first, last, turn]
        self._function(
            *(ctypes.c_void_p(address_of(memory)) for memory in pointers),
            *(ctypes.c_int64(size) for size in sizes),
            ctypes.c_void_p(address_of(self.weight) + FOLLOWING),
        )
        lines = log[1 : 1 + int(log[0])] - address_of(self.weight)
        assert not (lines % LINE).any()
        return [int(line) for line in lines]


def tile(start: int) -> set[int]:
    return set(range(start, start + TILE_BYTES, LINE))


@pytest.mark.parametrize("pieces", [1, 2])
def test_the_next_instance_s_panels_are_asked_for(pieces: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = Logged(kernel_of_parts(1, pieces), tmp_path, monkeypatch)
    lines = logged.run(1, 3, 5)
    size = TILE_BYTES // pieces
    assert len(lines) == len(set(lines)) == 2 * len(tile(0))
    # A piece ahead: what the first piece of the first instance asks for is its own second piece.
    assert set(lines) == set(range(TILE_BYTES + size, 3 * TILE_BYTES + size, LINE))


@pytest.mark.parametrize(("parts", "pieces"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_the_last_instance_of_a_share_asks_for_what_follows(
    parts: int, pieces: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = Logged(kernel_of_parts(parts, pieces), tmp_path, monkeypatch)
    part_bytes, size = INSTANCES * TILE_BYTES, TILE_BYTES // pieces
    inside = {
        line for part in range(parts) for line in tile(part * part_bytes + 2 * TILE_BYTES) if line % TILE_BYTES >= size
    }
    assert set(logged.run(2, 3, 3)) == inside | set(range(FOLLOWING, FOLLOWING + parts * size, LINE))


def test_what_another_thread_left_is_read_on_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = Logged(kernel_of_parts(1), tmp_path, monkeypatch)
    assert set(logged.run(4, 5, 3)) == tile(5 * TILE_BYTES)


def test_rows_of_panels_are_asked_for_a_step_s_share_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = Logged(kernel_of_rows(), tmp_path, monkeypatch)
    lines = logged.run(1, 2, 5)
    assert lines == sorted(tile(2 * TILE_BYTES))
