"""Lowers groups of kind `rows` for a device: as everywhere, but for where it keeps its cache, its weights and the ids
that it has drawn itself."""

from __future__ import annotations

from xdsl.ir import Operation, SSAValue

from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.float8 import LARGEST
from tessera_compiler.tile.lowering.columns import Columns, Segment
from tessera_compiler.tile.lowering.device_context import BLOCK_TOKENS, DeviceArguments
from tessera_compiler.tile.lowering.rows import RowsLowering

FEEDBACK = "seat:feedback"
FEEDBACK_WORDS = 16
"""int32 from one seat's drawn id to the next one's."""


def lower_device_rows(group: schedule.GroupOp, arguments: DeviceArguments, symbol: str) -> tile.KernelOp:
    return _DeviceRowsLowering(group, arguments, symbol).run()


class _DeviceRowsLowering(RowsLowering):
    def _lookup(self, op: schedule.LookupOp) -> Columns:
        builder = self._builder
        ids, table = op.arguments[:2]
        buffer = self._group_input(table)
        row = self._token_id(builder.load_index(self._group_input(ids), self._row))
        row = builder.index("add", row, op.values["offset"])

        def take(segment: Segment) -> SSAValue:
            start = self._shifted(builder.constant(0), segment)
            values = builder.cast(builder.load(buffer, row, start, (1, segment.count)), "f32")
            if len(op.arguments) == 3:
                scale = builder.load(self._group_input(op.arguments[2]), builder.constant(0), row, (1, 1))
                values = builder.binary("mul", builder.binary("sub", values, schedule.ZERO_POINT), scale)
            return values

        return Columns(type_of(table).get_shape()[1], take)

    def _operation(self, op: Operation) -> None:
        if not isinstance(op, schedule.QuantizeFloatOp):
            super()._operation(op)
            return
        builder, functions, x = self._builder, self._functions, self._columns(op.x)
        largest = functions.reduce("max", functions.map([x], lambda tile: builder.unary("abs", tile)))
        zero = builder.full(0.0)
        some = builder.compare("not_equal", largest, zero)
        inverse = builder.select(some, builder.binary("div", builder.full(LARGEST), largest), zero)
        scale = builder.binary("mul", largest, 1 / LARGEST)
        self._values[op.quantized] = functions.map(
            [x], lambda tile: builder.cast(builder.binary("mul", tile, inverse), "f8_e4m3")
        )
        self._values[op.scale] = Columns(1, lambda _: scale)

    def _token_id(self, given: SSAValue) -> SSAValue:
        """The id itself, or that which was drawn last in the seat that a negative one names."""
        builder, arguments = self._builder, self._arguments
        assert isinstance(arguments, DeviceArguments)
        feedback = builder.buffers[arguments.extra_parameter(FEEDBACK)]
        zero = builder.constant(0)
        below = builder.index("max", builder.index("sub", zero, given), zero)
        named = builder.index("min", below, 1)
        seat = builder.index("sub", below, named)
        drawn = builder.index("max", builder.load_index(feedback, builder.index("mul", seat, FEEDBACK_WORDS)), zero)
        return builder.index("add", builder.index("max", given, zero), builder.index("mul", drawn, named))

    def _pad_with_zeros(self, value: SSAValue, buffer: SSAValue) -> None:
        """A device's products read no column past the last."""

    def _cache_write(self, op: schedule.CacheWriteOp) -> None:
        builder = self._builder
        part, cache = op.part.data, op.cache.value.data
        buffer = builder.buffers[self._arguments.cache_parameter(part, cache)]
        position = builder.load_index(self._group_input(op.positions), self._row)
        sequence = builder.load_index(self._group_input(op.sequences), self._row)
        entry = builder.index(
            "add", builder.index("mul", sequence, builder.table_width), builder.index("div", position, BLOCK_TOKENS)
        )
        block = builder.load_index(self._group_input(op.block_tables), entry)
        columns = self._columns(op.x)
        slot = builder.index("mul", builder.index("rem", position, BLOCK_TOKENS), columns.width)
        head = builder.index("mul", self._indices[0], columns.width * BLOCK_TOKENS)
        place = builder.index("add", head, slot)
        for segment in columns.segments:
            start = builder.index("add", place, segment.first)
            builder.store(columns.take(segment), buffer, block, start, lane_step=segment.step)
