"""Lowers `tile.dot` whose right operand `tile.load_panels` reads: panels that do not lie side by side, and a left
operand in stack memory.

Rows are taken a few at a time, as many as registers hold the sums of; every element adds over `k` ascending whichever
way its row is grouped with others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llvmlite import ir

from tessera_compiler.targets.cpu.emission import I8, I32, LANES, POINTER, SIZES, i64, vector
from tessera_compiler.tile import dialect
from tessera_compiler.tile.types import shape_of

if TYPE_CHECKING:
    from tessera_compiler.targets.cpu.dots import Multiplier
    from tessera_compiler.targets.cpu.kernel_lowering import KernelEmitter, Stored

LINE = ir.VectorType(I8, 64)
STEPS_TOGETHER = 8
"""Steps of k that are written out before the loop goes round."""


def emit_panels(
    kernel: KernelEmitter, operation: dialect.DotOp, load: dialect.LoadPanelsOp, multiply: Multiplier
) -> Stored:
    return _PanelDot(kernel, operation, load, multiply).emit()


def _rows_together(rows: int, most: int) -> int:
    """As even a cut as there is, into blocks that are all alike if these are not much smaller."""
    even = next(size for size in range(min(most, rows), 0, -1) if rows % size == 0)
    return even if 3 * even >= 2 * most else -(-rows // -(-rows // most))


class _PanelDot:
    def __init__(
        self, kernel: KernelEmitter, operation: dialect.DotOp, load: dialect.LoadPanelsOp, multiply: Multiplier
    ):
        self._kernel = kernel
        self._emission = kernel.emission
        self._operation = operation
        self._load = load
        self._multiply = multiply
        self._packed = load.packed.value.data
        self._depth, columns = shape_of(load.result.type)
        self._columns = columns
        self._panels = -(-columns // LANES)
        self._left = kernel.kept(operation.left)
        self._bases = [kernel.memory.panels_start(load, row) for row in load.rows]
        self._ahead = [kernel.memory.panels_start(load, row) for row in load.ahead]

    def emit(self) -> Stored:
        kernel = self._kernel
        rows = shape_of(self._operation.left.type)[0]
        result = kernel.reserve_result(self._operation.result)
        size = _rows_together(rows, max(1, kernel.sums_in_registers // (self._panels * self._multiply.parts)))
        whole, rest = divmod(rows, size)
        memory = [
            [self._emission.allocate(self._multiply.kind, self._multiply.parts) for _ in range(self._panels)]
            for _ in range(size)
        ]
        kernel.forget()
        if whole == 1:
            self._block(result, memory, i64(0))
        else:
            self._emission.loop(i64(0), i64(whole * size), size, lambda row: self._block(result, memory, row))
        if rest:
            self._block(result, memory[:rest], i64(whole * size))
        kernel.forget()
        return result

    def _block(self, result: Stored, memory: list[list[ir.Value]], row: ir.Value) -> None:
        """All of k for a few rows, from `row` on."""
        kernel, builder = self._kernel, self._emission.builder
        rows = [builder.add(row, i64(each)) if each else row for each in range(len(memory))]
        for place, sums in zip(rows, memory, strict=True):
            for panel in range(self._panels):
                column = panel * LANES
                kernel.forget()
                start = kernel.chunk(self._operation.accumulator, place, column, min(LANES, self._columns - column))
                self._multiply.begin(sums[panel], start)
        kernel.forget()
        stride = self._left.chunks * LANES * SIZES[self._left.element]
        lefts = [self._at(self._left.memory, builder.mul(place, i64(stride))) for place in rows]
        if self._load.along.data == "n":
            self._along_outputs(memory, lefts)
        else:
            self._along_depth(memory, lefts)
        for place, sums in zip(rows, memory, strict=True):
            for panel in range(self._panels):
                builder.store(self._multiply.end(sums[panel]), kernel.slot(result, place, panel * LANES), align=4)

    def _along_outputs(self, memory: list[list[ir.Value]], lefts: list[ir.Value]) -> None:
        """Each panel holds all of k."""
        builder = self._emission.builder
        whole, ragged = divmod(self._depth, self._packed)

        def step(k: ir.Value) -> None:
            place = builder.mul(k, i64(64))
            for base in self._ahead:
                self._emission.prefetch(self._at(base, place))
            self._add(memory, lefts, [self._line(base, place) for base in self._bases], k, None)

        self._steps(whole, step)
        if ragged:
            place = i64(whole * 64)
            keep = (1 << (8 * SIZES[self._left.element] * ragged)) - 1
            self._add(memory, lefts, [self._line(base, place) for base in self._bases], i64(whole), keep)

    def _along_depth(self, memory: list[list[ir.Value]], lefts: list[ir.Value]) -> None:
        """Each row of the buffer holds sixteen of k, of all panels."""
        builder = self._emission.builder
        each = LANES // self._packed
        table, ahead = self._table(self._bases), self._table(self._ahead)

        def sixteen(index: ir.Value) -> None:
            base = self._emission.load(self._emission.element(table, POINTER, index), POINTER, 8)
            soon = self._emission.load(self._emission.element(ahead, POINTER, index), POINTER, 8) if ahead else None
            first = builder.mul(index, i64(each))

            def step(inner: ir.Value) -> None:
                k = builder.add(first, inner)
                places = [builder.mul(builder.add(inner, i64(p * each)), i64(64)) for p in range(self._panels)]
                lines = [self._line(base, place) for place in places]
                if soon is not None:
                    for place in places:
                        self._emission.prefetch(self._at(soon, place))
                if self._load.limit is not None:
                    mask = self._mask(builder.mul(k, i64(self._packed)), self._kernel.scalars[self._load.limit])
                    lines = [self._masked(line, mask) for line in lines]
                self._add(memory, lefts, lines, k, None)

            self._steps(each, step)

        count: ir.Value = i64(len(self._bases))
        if self._load.limit is not None:
            # Rows of the buffer that are past the limit add nothing.
            needed = builder.sdiv(builder.add(self._kernel.scalars[self._load.limit], i64(LANES - 1)), i64(LANES))
            count = builder.select(builder.icmp_signed("<", needed, count), needed, count)
        self._emission.loop(i64(0), count, 1, sixteen)

    def _table(self, pointers: list[ir.Value]) -> ir.Value | None:
        if not pointers:
            return None
        table = self._emission.allocate(POINTER, len(pointers))
        for index, pointer in enumerate(pointers):
            self._emission.builder.store(pointer, self._emission.element(table, POINTER, index), align=8)
        return table

    def _steps(self, count: int, step: Callable[[ir.Value], None]) -> None:
        together = count if count <= STEPS_TOGETHER else next(n for n in (4, 3, 2, 1) if count % n == 0)
        builder = self._emission.builder

        def body(k: ir.Value) -> None:
            for extra in range(together):
                step(builder.add(k, i64(extra)) if extra else k)

        if together == count:
            body(i64(0))
        else:
            self._emission.loop(i64(0), i64(count), together, body)

    def _add(
        self,
        memory: list[list[ir.Value]],
        lefts: list[ir.Value],
        lines: list[ir.Value],
        k: ir.Value,
        keep: int | None,
    ) -> None:
        builder = self._emission.builder
        for sums, left in zip(memory, lefts, strict=True):
            four_bytes = self._emission.load(self._at(left, builder.mul(k, i64(4))), I32, 4)
            if keep is not None:
                four_bytes = builder.and_(four_bytes, ir.Constant(I32, keep))
            for panel, line in enumerate(lines):
                self._multiply.add(sums[panel], line, four_bytes)

    def _mask(self, k: ir.Value, limit: ir.Value) -> ir.Value:
        """Ones where the elements of a line, from `k` on, come before the limit."""
        builder = self._emission.builder
        bits = 32 // self._packed
        word: ir.Value = ir.Constant(I32, 0)
        for part in range(self._packed):
            ones = ir.Constant(I32, ((1 << bits) - 1) << (part * bits))
            inside = builder.icmp_signed("<", builder.add(k, i64(part)), limit)
            word = builder.or_(word, builder.select(inside, ones, ir.Constant(I32, 0)))
        return self._emission.splat(word)

    def _masked(self, line: ir.Value, mask: ir.Value) -> ir.Value:
        builder = self._emission.builder
        return builder.bitcast(builder.and_(builder.bitcast(line, vector("i32")), mask), LINE)

    def _line(self, base: ir.Value, offset: ir.Value) -> ir.Value:
        return self._emission.load(self._at(base, offset), LINE, 64)

    def _at(self, pointer: ir.Value, offset: ir.Value) -> ir.Value:
        return self._emission.builder.gep(pointer, [offset], True, source_etype=I8)
