"""Lowers groups of kind `rows` for a device: as everywhere, but for where it keeps its cache, its weights and the ids
that it has drawn itself; and an instance computes several heads of a token, for one has too little to do."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation, SSAValue

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.views import VIEW_OPERATIONS, row_shape
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.float8 import LARGEST
from tessera_compiler.tile.lowering.columns import Columns, Segment
from tessera_compiler.tile.lowering.device_context import BLOCK_TOKENS, DeviceArguments
from tessera_compiler.tile.lowering.elementwise import is_elementwise
from tessera_compiler.tile.lowering.row_functions import RowFunctions, rope_pieces
from tessera_compiler.tile.lowering.rows import RowsLowering, space_of
from tessera_compiler.tile.types import element_name, shape_of

FEEDBACK = "seat:feedback"
FEEDBACK_WORDS = 16
"""int32 from one seat's drawn id to the next one's."""


ASKING = (tile.ProgramIdOp, tile.ConstantIndexOp, tile.IndexOp, tile.LoadIndexOp, tile.LoadOp)
MOST_TOGETHER = 8
MOST_NUMBERS = 1024
"""Rows, and numbers in them, that an instance computes together: what four warps load with two instructions each."""


def lower_device_rows(group: schedule.GroupOp, arguments: DeviceArguments, symbol: str) -> tile.KernelOp:
    kernel = _DeviceRowsLowering(group, arguments, symbol, together_of(group)).run()
    _loads_first(kernel)
    return kernel


def _loads_first(kernel: tile.KernelOp) -> None:
    """A row is so little work that what counts is how often it waits for memory: all that is loaded is asked for at the
    start. (Divisions and roots are branches to a device's compiler, past which it moves no load.)"""
    block = kernel.body.block
    if any(isinstance(op, tile.ForOp) for op in block.ops):
        return
    ready: set[SSAValue] = set(block.args)
    first = []
    for op in block.ops:
        if isinstance(op, ASKING) and all(operand in ready for operand in op.operands):
            first.append(op)
            ready.update(op.results)
    for op in first:
        op.detach()
    assert block.first_op is not None, "a kernel ends by returning"
    block.insert_ops_before(first, block.first_op)


def together_of(group: schedule.GroupOp) -> int:
    """How many heads of a token an instance computes: whatever the step, so that no token has its bits of the others.

    A power of two that divides them, so that no part of a tile is empty.
    """
    prefix = space_of(group)[1]
    if not prefix:
        return 1
    together, most = 1, prefix[-1]
    for op in group.body.block.ops:
        if isinstance(op, (graph.ConstantOp, schedule.YieldOp, *VIEW_OPERATIONS)):
            continue
        value = op.operands[0] if isinstance(op, schedule.CacheWriteOp) else op.results[0]
        *between, width = row_shape(type_of(value).get_shape()) or (1,)
        plain = isinstance(op, schedule.CacheWriteOp | graph.RmsNormOp | graph.RopeOp) or is_elementwise(op)
        if not plain or rows_of(type_of(value)) is None or tuple(between) != prefix:
            return 1
        most = min(most, MOST_TOGETHER, MOST_NUMBERS // width)
    while 2 * together <= most and prefix[-1] % (2 * together) == 0:
        together *= 2
    return together


@dataclass(frozen=True)
class _DeviceRowFunctions(RowFunctions):
    def reduce(self, function: str, x: Columns) -> SSAValue:
        """Pieces of equal width are taken together column by column, and reduced as one."""
        if len({(piece.count, piece.step) for piece in x.segments}) > 1:
            return super().reduce(function, x)
        combine = {"sum": "add", "max": "maximum", "min": "minimum"}[function]
        first, *others = (x.take(piece) for piece in x.segments)
        for other in others:
            first = self.builder.binary(combine, first, other)
        return self.builder.reduce(function, first)


class _DeviceRowsLowering(RowsLowering):
    def __init__(self, group: schedule.GroupOp, arguments: DeviceArguments, symbol: str, together: int) -> None:
        super().__init__(group, arguments, symbol, together)
        self._functions = _DeviceRowFunctions(self._builder)
        self._pieces: dict[int, tuple[Segment, ...]] = {}
        for op in group.body.block.ops:
            if isinstance(op, graph.RopeOp):
                width, half = (type_of(each).get_shape()[-1] for each in (op.x, op.cos))
                pairs, rest = rope_pieces(op, width, half)
                self._pieces[width] = (*pairs, *rest)

    def _outside(self, value: SSAValue, row: SSAValue) -> Columns:
        """What a rotary embedding takes in two pieces is loaded so, once, whatever else is computed of it."""
        columns = super()._outside(value, row)
        pieces = self._pieces.get(columns.width)
        return columns if pieces is None else Columns(columns.width, columns.take_, pieces)

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
                signed = element_name(buffer.type) == "i8"
                numbers = values if signed else builder.binary("sub", values, schedule.ZERO_POINT)
                values = builder.binary("mul", numbers, scale)
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
        step = columns.width * BLOCK_TOKENS if self._together > 1 else 0
        for segment in columns.segments:
            start = builder.index("add", place, segment.first)
            heads = columns.take(segment)
            assert shape_of(heads.type)[0] == self._together, "each head that is stored is a row of its own"
            builder.store(heads, buffer, block, start, column_step=step, lane_step=segment.step)
