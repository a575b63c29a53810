"""Lowers groups of kind `rows`: one instance computes one row of the last axis, for each token and each index
between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from xdsl.ir import BlockArgument, Operation, SSAValue

from tessera_compiler.errors import UnsupportedOperation
from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.physical import is_input, row_elements
from tessera_compiler.schedule.views import VIEW_OPERATIONS, View, row_shape
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.cache_writing import Piece, places_of, write_head
from tessera_compiler.tile.lowering.columns import Columns, Segment
from tessera_compiler.tile.lowering.context import GroupArguments, resolve_static, resolve_view
from tessera_compiler.tile.lowering.elementwise import emit_elementwise, is_elementwise, scalar
from tessera_compiler.tile.lowering.quantizing import quantize_group
from tessera_compiler.tile.lowering.row_functions import RowFunctions
from tessera_compiler.tile.types import element_name, shape_of

_REDUCTIONS: dict[type[Operation], str] = {
    graph.ReduceSumOp: "sum",
    graph.ReduceMeanOp: "sum",
    graph.ReduceMaxOp: "max",
}


def lower_rows(group: schedule.GroupOp, arguments: GroupArguments, symbol: str) -> tile.KernelOp:
    return RowsLowering(group, arguments, symbol).run()


class RowsLowering:
    """With `together`, an instance computes as many neighbours along the last axis between, one in each row of its
    tiles."""

    def __init__(self, group: schedule.GroupOp, arguments: GroupArguments, symbol: str, together: int = 1):
        self._group = group
        self._arguments = arguments
        self._together = together
        rows, self._prefix = space_of(group)
        between = [*self._prefix[:-1], self._prefix[-1] // together] if self._prefix else []
        self._builder = KernelBuilder(symbol, [rows, *between], arguments.buffers, arguments.given)
        self._functions = RowFunctions(self._builder)
        self._row = self._builder.program_id(0)
        self._indices = [self._builder.program_id(axis + 1) for axis in range(len(self._prefix))]
        if self._indices:
            self._indices[-1] = self._builder.index("mul", self._indices[-1], together)
        self._values: dict[SSAValue, Columns] = {}
        self._stored: set[SSAValue] = set()

    def run(self) -> tile.KernelOp:
        for op in self._group.body.block.ops:
            if isinstance(op, schedule.YieldOp):
                break
            self._operation(op)
        for index, value in enumerate(self._group.yielded):
            self._store_result(index, value)
        return self._builder.finish()

    # Values

    def _columns(self, value: SSAValue) -> Columns:
        """A value of the body that this row needs."""
        if value not in self._values:
            if isinstance(value, BlockArgument) or isinstance(value.owner, VIEW_OPERATIONS):
                self._values[value] = self._outside(value, self._row)
            else:
                raise UnsupportedOperation(
                    f"{value.owner} stands in a row kernel, which cannot compute it. Report the model."
                )
        return self._values[value]

    def _outside(self, value: SSAValue, row: SSAValue) -> Columns:
        """An input of the group, or a view of one, at a row of its own."""
        type_ = type_of(value)
        if rows_of(type_) is None:
            return self._static(value)
        base, view = resolve_view(value)
        buffer = self._builder.buffers[base.index]
        if is_input(type_of(base)):
            return Columns(1, lambda _: self._builder.iota(self._builder.load_index(buffer, row), 1))
        start = self._place(view)
        lane = view.strides[-1] if view.strides else 1
        rows = self._rows_of(view.shape)
        step = view.strides[-2] if rows > 1 else 0

        def take(segment: Segment) -> SSAValue:
            column, lane_step = self._shifted(start, segment, lane), max(1, lane * segment.step)
            return self._builder.load(buffer, row, column, (rows, segment.count), column_step=step, lane_step=lane_step)

        return Columns(view.shape[-1] if view.shape else 1, take)

    def _rows_of(self, shape: Sequence[int]) -> int:
        """Of a tile of a value whose axes but that of the rows are these."""
        return self._together if len(shape) > 1 and shape[-2] != 1 else 1

    def _place(self, view: View) -> SSAValue:
        """Where this instance's first row of the last axis starts in the buffer's row."""
        lead = len(self._prefix) - (len(view.shape) - 1)
        place = self._builder.constant(view.offset)
        for axis, (size, stride) in enumerate(zip(view.shape[:-1], view.strides[:-1], strict=True)):
            if size != 1 and stride:
                place = self._builder.index(
                    "add", self._builder.index("mul", self._indices[lead + axis], stride), place
                )
        return place

    def _static(self, value: SSAValue) -> Columns:
        """A weight or a table of constants, broadcast as NumPy does."""
        shape = type_of(value).get_shape()
        buffer = self._builder.buffers[resolve_static(value).index]
        row = self._builder.constant(0)
        lead = len(self._prefix) - (len(shape) - 1)
        for axis, size in enumerate(shape[:-1]):
            row = self._builder.index("mul", row, size)
            if size != 1:
                row = self._builder.index("add", row, self._indices[lead + axis])

        rows = self._rows_of(shape)

        def take(segment: Segment) -> SSAValue:
            start = self._shifted(self._builder.constant(0), segment)
            return self._builder.load(
                buffer, row, start, (rows, segment.count), row_step=int(rows > 1), lane_step=segment.step
            )

        return Columns(shape[-1] if shape else 1, take)

    def _shifted(self, place: SSAValue, segment: Segment, lane: int = 1) -> SSAValue:
        """Where the first column of a segment lies, for a row that starts at `place`."""
        if isinstance(segment.start, int):
            return self._builder.index("add", place, segment.start * lane)
        return self._builder.index("add", self._builder.index("mul", segment.start, lane), place)

    # Operations

    def _operation(self, op: Operation) -> None:
        if isinstance(op, VIEW_OPERATIONS):
            return
        if isinstance(op, graph.ConstantOp):
            number = scalar(op)
            element = "i32" if "i32" in str(type_of(op.result).get_element_type()) else "f32"
            self._values[op.result] = Columns(1, lambda _: self._builder.full(number, (1, 1), element))
        elif is_elementwise(op):
            self._values[op.results[0]] = self._functions.map(
                [self._columns(operand) for operand in op.operands],
                lambda *tiles: emit_elementwise(self._builder, op, tiles),
            )
        elif isinstance(op, schedule.CacheWriteOp):
            self._cache_write(op)
        elif isinstance(op, graph.SelectRowsOp):
            rows = self._group_input(op.rows)
            self._values[op.result] = self._outside(op.x, self._builder.load_index(rows, self._row))
        elif isinstance(op, schedule.LookupOp):
            self._values[op.result] = self._lookup(op)
        elif isinstance(op, schedule.QuantizeOp):
            self._quantize(op)
        elif isinstance(op, schedule.PeaksOp):
            self._peaks(op)
        elif isinstance(op, graph.RopeTableOp):
            self._rope_table(op)
        elif isinstance(op, graph.ConcatOp):
            self._values[op.result] = self._concat(op)
        else:
            self._values[op.results[0]] = self._row_function(op)

    def _row_function(self, op: Operation) -> Columns:
        x = self._columns(op.operands[0])
        if type(op) in _REDUCTIONS:
            total = self._functions.reduce(_REDUCTIONS[type(op)], x)
            if isinstance(op, graph.ReduceMeanOp):
                total = self._builder.binary("mul", total, 1 / x.width)
            return Columns(1, lambda _: total)
        if isinstance(op, graph.RmsNormOp):
            return self._functions.rms_norm(op, x, None if op.weight is None else self._columns(op.weight))
        if isinstance(op, graph.LayerNormOp):
            return self._functions.layer_norm(op, x, [self._columns(parameter) for parameter in op.parameters])
        if isinstance(op, graph.SoftmaxOp):
            return self._functions.softmax(x)
        if isinstance(op, graph.RopeOp):
            return self._functions.rope(op, x, self._columns(op.cos), self._columns(op.sin))
        raise UnsupportedOperation(f"{op.name} has no lowering to rows. Report the model.")

    def _group_input(self, value: SSAValue) -> SSAValue:
        assert isinstance(value, BlockArgument)
        return self._builder.buffers[value.index]

    def _rope_table(self, op: graph.RopeTableOp) -> None:
        positions = self._columns(op.positions)
        frequencies = self._columns(op.inverse_frequencies)
        scale = op.values["scale"]
        builder = self._builder

        def angle(position: SSAValue, frequency: SSAValue) -> SSAValue:
            return builder.binary("mul", builder.cast(position, "f32"), frequency)

        angles = self._functions.map([positions, frequencies], angle)
        for function, result in (("cos", op.cos), ("sin", op.sin)):
            table = self._functions.unary(function, angles)
            if scale != 1:
                factor = builder.full(scale)
                table = self._functions.binary("mul", table, Columns(1, lambda _, factor=factor: factor))  # type: ignore[misc]
            self._values[result] = table

    def _concat(self, op: graph.ConcatOp) -> Columns:
        if op.values["axis"] != len(type_of(op.result).get_shape()) - 1:
            raise UnsupportedOperation(
                "concatenation along another axis than the last is not lowered. Report the model."
            )
        parts = [self._columns(part) for part in op.parts]
        starts = [sum(part.width for part in parts[:index]) for index in range(len(parts))]
        segments = tuple(
            Segment(start + piece.first, piece.count, piece.step)
            for start, part in zip(starts, parts, strict=True)
            for piece in part.segments
        )

        def take(segment: Segment) -> SSAValue:
            index = max(i for i, start in enumerate(starts) if start <= segment.first)
            return parts[index].take(Segment(segment.first - starts[index], segment.count, segment.step))

        return Columns(sum(part.width for part in parts), take, segments)

    def _lookup(self, op: schedule.LookupOp) -> Columns:
        builder = self._builder
        ids, table = op.arguments[:2]
        buffer = self._group_input(table)
        width = type_of(table).get_shape()[1]
        row = builder.load_index(self._group_input(ids), self._row)
        row = builder.index("add", row, op.values["offset"])
        packed = len(buffer.type.get_shape()) == 4  # type: ignore[attr-defined]

        def take(segment: Segment) -> SSAValue:
            start = self._shifted(builder.constant(0), segment)
            if not packed:
                return builder.cast(builder.load(buffer, row, start, (1, segment.count)), "f32")
            values = builder.cast(builder.load_packed_row(buffer, row, start, segment.count), "f32")
            if len(op.arguments) == 3:
                scale = builder.load(self._group_input(op.arguments[2]), builder.constant(0), row, (1, 1))
                values = builder.binary("mul", builder.binary("sub", values, schedule.ZERO_POINT), scale)
            return values

        return Columns(width, take)

    def _quantize(self, op: schedule.QuantizeOp) -> None:
        """Group by group, in a loop: its results are stored as they are made, for another kernel to multiply."""
        builder = self._builder
        x = self._columns(op.x)
        quantized, scale, total = (self._result_buffer(result) for result in op.results)
        group = op.group.value.data

        def quantize(number: SSAValue, segment: Segment) -> None:
            rounded, scales, totals = quantize_group(builder, x.take(segment))
            column = self._shifted(builder.constant(0), segment)
            builder.store(builder.cast(rounded, "i8"), quantized, self._row, column)
            builder.store(scales, scale, self._row, number)
            builder.store(totals, total, self._row, number)

        self._each_group(x, group, quantize)

    def _peaks(self, op: schedule.PeaksOp) -> None:
        builder = self._builder
        x, peaks = self._columns(op.x), self._result_buffer(op.result)

        def find(number: SSAValue, segment: Segment) -> None:
            builder.store(builder.reduce("max", x.take(segment)), peaks, self._row, number)

        self._each_group(x, op.group.value.data, find)

    def _each_group(self, x: Columns, group: int, visit: Callable[[SSAValue, Segment], None]) -> None:
        """Visits the groups of columns of a row in turn, by their number."""
        builder = self._builder
        whole = x.width // group
        if len(x.segments) > 1 or whole <= 1:
            for number in range(-(-x.width // group)):
                count = min(group, x.width - number * group)
                visit(builder.constant(number), Segment(number * group, count))
            return

        def body(number: SSAValue, carried: list[SSAValue]) -> list[SSAValue]:
            visit(number, Segment(builder.index("mul", number, group), group))
            return carried

        builder.loop(builder.constant(0), builder.constant(whole), 1, [], body)
        if x.width % group:
            visit(builder.constant(whole), Segment(whole * group, x.width % group))

    def _result_buffer(self, value: SSAValue) -> SSAValue:
        """Where a result is stored that the operation computing it stores itself."""
        self._stored.add(value)
        return self._builder.buffers[self._arguments.result_parameter(self._group.yielded.index(value))]

    # Stores

    def _store_result(self, index: int, value: SSAValue) -> None:
        builder = self._builder
        type_ = type_of(value)
        buffer = builder.buffers[self._arguments.result_parameter(index)]
        self._pad_with_zeros(value, buffer)
        if value in self._stored:
            return
        columns = self._columns(value)
        start = self._place(
            View.contiguous(row_shape(type_.get_shape())) if len(type_.get_shape()) > 1 else View((1,), (1,))
        )
        for segment in columns.segments:
            column = self._shifted(start, segment)
            step = columns.width if self._together > 1 else 0
            tile_ = columns.take(segment)
            assert shape_of(tile_.type)[0] == self._together, "each row that is stored is a row of its own"
            builder.store(tile_, buffer, self._row, column, column_step=step, lane_step=segment.step)

    def _pad_with_zeros(self, value: SSAValue, buffer: SSAValue) -> None:
        """What multiplies a row reads whole groups of k: those past the end must be zero."""
        builder, type_ = self._builder, type_of(value)
        element = element_name(buffer.type)
        packed = {"i8": 8, "bf16": 2}.get(element, 1)
        count = math.prod(row_shape(type_.get_shape()))
        if count % packed and not self._prefix:
            zeros = builder.full(0, (1, min(packed - count % packed, row_elements(type_) - count)), element)
            builder.store(zeros, buffer, self._row, builder.constant(count))

    def _cache_write(self, op: schedule.CacheWriteOp) -> None:
        columns = self._columns(op.x)
        places = places_of(self._builder, op, self._row)
        pieces = [Piece(columns.take(segment), segment.first, segment.step) for segment in columns.segments]
        write_head(self._builder, self._arguments, op, places, self._indices[0], pieces)


def space_of(group: schedule.GroupOp) -> tuple[str, tuple[int, ...]]:
    """The rows and the axes before the last of what the group computes."""
    for op in group.body.block.ops:
        if isinstance(op, (graph.ConstantOp, schedule.YieldOp, *VIEW_OPERATIONS)):
            continue
        value = op.operands[0] if isinstance(op, schedule.CacheWriteOp) else op.results[0]
        rows = rows_of(type_of(value))
        if rows is not None:
            return rows, row_shape(type_of(value).get_shape())[:-1]
    raise UnsupportedOperation("a group without rows was formed. Report the model.")
