"""Lowers the ops of Tile IR that read and write buffers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from llvmlite import ir
from xdsl.dialects.builtin import MemRefType
from xdsl.ir import SSAValue

from tessera_compiler.targets.cpu.emission import LANES, POINTER, SIZES, i64, vector
from tessera_compiler.tile import dialect
from tessera_compiler.tile.types import element_name, shape_of

if TYPE_CHECKING:
    from tessera_compiler.targets.cpu.kernel_lowering import KernelEmitter

Position: TypeAlias = int | ir.Value


class MemoryLowering:
    def __init__(self, kernel: KernelEmitter):
        self._kernel = kernel
        self._emission = kernel.emission

    def address(self, operation: dialect.LoadOp | dialect.StoreOp, row: Position, column: Position) -> ir.Value:
        """The address of one element of the tile of a load or store."""
        builder = self._emission.builder
        buffer = operation.buffer
        assert isinstance(buffer.type, MemRefType)
        buffer_row = self._kernel.scalars[operation.row]
        row_step, column_step, lane_step = (
            attribute.value.data for attribute in (operation.row_step, operation.column_step, operation.lane_step)
        )
        row_value = i64(row) if isinstance(row, int) else row
        column_value = i64(column) if isinstance(column, int) else column
        if row_step and row != 0:
            buffer_row = builder.add(buffer_row, builder.mul(row_value, i64(row_step)))
        if operation.limit is not None and isinstance(operation, dialect.LoadOp):
            last = builder.sub(self._kernel.scalars[operation.limit], i64(1))
            buffer_row = builder.select(builder.icmp_signed("<", buffer_row, last), buffer_row, last)
        flat = builder.mul(buffer_row, i64(buffer.type.get_shape()[1]))
        flat = builder.add(flat, self._kernel.scalars[operation.column])
        if column_step and row != 0:
            flat = builder.add(flat, builder.mul(row_value, i64(column_step)))
        if column != 0:
            flat = builder.add(flat, builder.mul(column_value, i64(lane_step)))
        return self._emission.offset(self._kernel.scalars[buffer], flat, element_name(buffer.type))

    def load(self, operation: dialect.LoadOp, row: Position, column: Position, lanes: int) -> ir.Value:
        element = element_name(operation.result.type)
        lane_step = operation.lane_step.value.data
        pointer = self.address(operation, row, column)
        if shape_of(operation.result.type)[1] == 1:
            return self._emission.splat(self._emission.load(pointer, vector(element).element, 1))
        if lane_step == 1:
            return self._emission.load_lanes(pointer, element, lanes)
        return self._gather(element, lanes, lambda lane: self._emission.offset(pointer, lane * lane_step, element))

    def _gather(self, element: str, lanes: int, address: Callable[[int], ir.Value]) -> ir.Value:
        builder = self._emission.builder
        result: ir.Value = ir.Constant(vector(element), None)
        for lane in range(lanes):
            scalar = self._emission.load(address(lane), vector(element).element, 1)
            result = builder.insert_element(result, scalar, ir.Constant(ir.IntType(32), lane))
        return result

    def prepare_panels(self, operation: dialect.LoadPanelsOp) -> None:
        """Panels are read where they are used. A dot fetches those ahead as it goes; a row of them is a line each."""
        if shape_of(operation.result.type)[0] == 1:
            for row in operation.ahead:
                self._emission.prefetch(self.panels_start(operation, row))

    def load_panels(self, operation: dialect.LoadPanelsOp, column: Position) -> ir.Value:
        """Sixteen columns of one row of panels, from the row of the buffer that holds them."""
        assert isinstance(column, int), "so many panels are not read but by a dot"
        start = self.panels_start(operation, operation.rows[column // LANES])
        return self._emission.load_lanes(start, element_name(operation.result.type), LANES)

    def panels_start(self, operation: dialect.LoadPanelsOp, row: SSAValue) -> ir.Value:
        """Where the panels begin that lie in one row of the buffer."""
        builder = self._emission.builder
        assert isinstance(operation.buffer.type, MemRefType)
        flat = builder.mul(self._kernel.scalars[row], i64(operation.buffer.type.get_shape()[1]))
        flat = builder.add(flat, self._kernel.scalars[operation.column])
        element = element_name(operation.result.type)
        return self._emission.offset(self._kernel.scalars[operation.buffer], flat, element)

    def load_packed(self, operation: dialect.LoadPackedOp, row: Position, column: Position) -> ir.Value:
        """Sixteen outputs of one k: neighbours where panels are one deep, else `packed` elements apart."""
        builder = self._emission.builder
        assert isinstance(operation.buffer.type, MemRefType)
        _, groups, _, packed = operation.buffer.type.get_shape()
        element = element_name(operation.result.type)
        n = builder.add(self._kernel.scalars[operation.n0], i64(column) if isinstance(column, int) else column)
        k = builder.add(self._kernel.scalars[operation.k0], i64(row) if isinstance(row, int) else row)
        panel = builder.mul(builder.udiv(n, i64(LANES)), i64(groups))
        flat = builder.mul(builder.add(panel, builder.udiv(k, i64(packed))), i64(LANES * packed))
        pointer = self._emission.offset(
            self._kernel.scalars[operation.buffer], builder.add(flat, builder.urem(k, i64(packed))), element
        )
        if packed == 1:
            return self._emission.load_lanes(pointer, element, LANES)
        return self._gather(element, LANES, lambda lane: self._emission.offset(pointer, lane * packed, element))

    def load_packed_row(self, operation: dialect.LoadPackedRowOp, column: Position, lanes: int) -> ir.Value:
        builder = self._emission.builder
        assert isinstance(operation.buffer.type, MemRefType)
        _, groups, _, packed = operation.buffer.type.get_shape()
        element = element_name(operation.result.type)
        n = self._kernel.scalars[operation.n]
        panel = builder.mul(builder.udiv(n, i64(LANES)), i64(groups * LANES * packed))
        inside = builder.mul(builder.urem(n, i64(LANES)), i64(packed))
        first = builder.add(self._kernel.scalars[operation.k0], i64(column) if isinstance(column, int) else column)
        start = builder.add(panel, inside)

        def address(lane: int) -> ir.Value:
            k = builder.add(first, i64(lane))
            group = builder.mul(builder.udiv(k, i64(packed)), i64(LANES * packed))
            flat = builder.add(builder.add(start, group), builder.urem(k, i64(packed)))
            return self._emission.offset(self._kernel.scalars[operation.buffer], flat, element)

        return self._gather(element, lanes, address)

    def store(self, operation: dialect.StoreOp) -> None:
        builder = self._emission.builder
        element = element_name(operation.value.type)
        lane_step = operation.lane_step.value.data

        def put(row: Position, column: Position, lanes: int) -> None:
            value = self._kernel.chunk(operation.value, row, column, lanes)
            pointer = self.address(operation, row, column)
            if lane_step == 1:
                self._emission.store_lanes(value, pointer, element, lanes)
                return
            for lane in range(lanes):
                target = self._emission.offset(pointer, lane * lane_step, element)
                builder.store(self._emission.extract(value, lane), target, align=1)

        rows, columns = shape_of(operation.value.type)
        if operation.limit is None:
            self._kernel.each_chunk((rows, columns), put)
            return
        for row in range(rows):
            buffer_row = builder.add(self._kernel.scalars[operation.row], i64(row * operation.row_step.value.data))
            inside = builder.icmp_signed("<", buffer_row, self._kernel.scalars[operation.limit])
            with builder.if_then(inside):
                self._kernel.each_column(columns, partial(self._kernel.fresh, put, row))
            self._kernel.forget()

    def store_panel(self, operation: dialect.StorePanelOp) -> None:
        """Several rows are gone through in a loop, so that their number does not multiply the code."""
        kernel, builder = self._kernel, self._emission.builder
        rows = len(operation.rows)
        if rows == 1 and operation.count is None:
            self._store_panel_row(operation, self._panel_start(operation, 0), 0)
            return
        kernel.kept(operation.value)
        starts = self._emission.allocate(POINTER, rows)
        for row in range(rows):
            start = self._panel_start(operation, row)
            builder.store(start, self._emission.element(starts, POINTER, row), align=8)
        stop: ir.Value = i64(rows)
        if operation.count is not None:
            count = kernel.scalars[operation.count]
            stop = builder.select(builder.icmp_signed("<", count, stop), count, stop)

        def put(row: ir.Value) -> None:
            start = self._emission.load(self._emission.element(starts, POINTER, row), POINTER, 8)
            self._store_panel_row(operation, start, row)

        self._emission.loop(i64(0), stop, 1, put)

    def _panel_start(self, operation: dialect.StorePanelOp, row: int) -> ir.Value:
        """Where the first element of a row of the tile would go if `first` were 0."""
        builder = self._emission.builder
        assert isinstance(operation.buffer.type, MemRefType)
        packed = operation.packed.value.data
        at, depth = self._kernel.scalars[operation.at[row]], i64(packed)
        flat = builder.mul(self._kernel.scalars[operation.rows[row]], i64(operation.buffer.type.get_shape()[1]))
        flat = builder.add(flat, self._kernel.scalars[operation.column])
        if operation.along.data == "k":
            group = builder.mul(builder.udiv(at, depth), i64(LANES * packed))
            flat = builder.add(flat, builder.add(group, builder.urem(at, depth)))
        else:
            flat = builder.add(flat, builder.mul(at, depth))
        return self._emission.offset(self._kernel.scalars[operation.buffer], flat, element_name(operation.value.type))

    def _store_panel_row(self, operation: dialect.StorePanelOp, start: ir.Value, row: Position) -> None:
        """Neighbours of k are stored together where a panel keeps them together."""
        builder = self._emission.builder
        element = element_name(operation.value.type)
        packed, first, step = (each.value.data for each in (operation.packed, operation.first, operation.step))
        along_k = operation.along.data == "k"
        together = 1 if along_k or step != 1 or first % packed else packed
        columns = shape_of(operation.value.type)[1]
        for chunk in range(0, columns, LANES):
            self._kernel.forget()
            value = self._kernel.chunk(operation.value, row, chunk, min(LANES, columns - chunk))
            if together > 1:
                wide = ir.IntType(8 * SIZES[element] * together)
                groups = builder.bitcast(value, ir.VectorType(wide, LANES // together))
            for lane in range(0, min(LANES, columns - chunk), together):
                place = first + (chunk + lane) * step
                offset = place // LANES * LANES * LANES + place % LANES * packed
                if not along_k:
                    offset = place // packed * LANES * packed + place % packed
                target = self._emission.offset(start, offset, element)
                whole = together > 1 and chunk + lane + together <= columns
                for part in range(1 if whole else min(together, columns - chunk - lane)):
                    item = (
                        self._emission.extract(groups, lane // together)
                        if whole
                        else self._emission.extract(value, lane + part)
                    )
                    builder.store(item, self._emission.offset(target, part, element), align=1)
        self._kernel.forget()
