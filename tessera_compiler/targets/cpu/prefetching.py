"""Asks for weights before they are wanted: those behind a tile's, or, at the end of a thread's share, those that the
thread reads first in a launch to come. So the weights of a step are one stream for each thread, which memory delivers
while instances compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llvmlite import ir
from xdsl.dialects.builtin import MemRefType
from xdsl.ir import SSAValue

from tessera_compiler.targets.cpu.emission import CACHE_LINE, I1, I8, I64, LANES, SIZES, i64
from tessera_compiler.tile import dialect
from tessera_compiler.tile.types import element_name, shape_of

if TYPE_CHECKING:
    from tessera_compiler.targets.cpu.kernel_lowering import KernelEmitter


class Prefetching:
    """Of one kernel. Its instances up to before `turn` are the thread's share, and `following` is what comes then."""

    def __init__(self, kernel: KernelEmitter, turn: ir.Value, following: ir.Value):
        self._kernel = kernel
        self._turn, self._following = turn, following
        self._is_last: ir.Value = ir.Constant(I1, 0)
        self._streams: dict[SSAValue, int] = {}
        """How far behind `following` lies what takes the place of this stream; by its first output."""
        self._length = 0

    def begin_instance(self, index: ir.Value) -> None:
        builder = self._kernel.emission.builder
        self._is_last = builder.icmp_signed("==", builder.add(index, i64(1)), self._turn)

    def distance(self, load: dialect.LoadPackedOp) -> ir.Value | None:
        """From panels that a dot reads to those to be asked for, in bytes."""
        if load.ahead is None:
            return None
        size = self._tile_bytes(load)
        if load.ahead.value.data:
            return i64(size)
        if load.n0 not in self._streams:
            self._streams[load.n0] = self._length
            self._length += size
        builder = self._kernel.emission.builder
        here = builder.ptrtoint(self._start(load), I64)
        there = builder.add(builder.ptrtoint(self._following, I64), i64(self._streams[load.n0]))
        return builder.select(self._is_last, builder.sub(there, here), i64(size))

    def ask_for_row(self, load: dialect.LoadPackedOp) -> None:
        """Of a row of panels that no dot reads, once for each step of k: a step's share of the next tile's lines."""
        if load.ahead is None or shape_of(load.result.type)[0] != 1:
            return
        builder = self._kernel.emission.builder
        lines = -(-shape_of(load.result.type)[1] * SIZES[element_name(load.result.type)] // CACHE_LINE)
        place = builder.mul(self._kernel.scalars[load.k0], i64(lines * CACHE_LINE))
        place = builder.add(place, i64(self._tile_bytes(load)))
        for line in range(lines):
            at = builder.add(place, i64(line * CACHE_LINE))
            self._kernel.emission.prefetch(builder.gep(self._start(load), [at], source_etype=I8))

    def _start(self, load: dialect.LoadPackedOp) -> ir.Value:
        """Where the tile's panels would begin if it began at k = 0."""
        builder = self._kernel.emission.builder
        panel = builder.udiv(self._kernel.scalars[load.n0], i64(LANES))
        place = builder.mul(panel, i64(panel_bytes(load)))
        return builder.gep(self._kernel.scalars[load.buffer], [place], source_etype=I8)

    @staticmethod
    def _tile_bytes(load: dialect.LoadPackedOp) -> int:
        return shape_of(load.result.type)[1] // LANES * panel_bytes(load)


def panel_bytes(load: dialect.LoadPackedOp) -> int:
    """Of all of k."""
    assert isinstance(load.buffer.type, MemRefType)
    _, groups, _, packed = load.buffer.type.get_shape()
    element = element_name(load.result.type)
    elements: int = groups * LANES * packed
    return elements // 2 if element == "u4" else elements * SIZES[element]
