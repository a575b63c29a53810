"""Lowers groups of kind `attention` for a device: tokens of one sequence by the query heads that share a KV head, over
the context, with a softmax that is corrected as it goes.

The context is cut into chunks, counted from position 0. Each chunk's sums are made on their own, a block of the cache
at a time, and then folded into those of the chunks before. Three kernels do this by the same steps: one for tiles of
several tokens, one for single tokens, and, where there are few of these, one that leaves each chunk's sums in a buffer,
with a fourth that folds them. A row's result therefore does not depend on which of them computed it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.ir import BlockArgument, SSAValue

from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.views import View
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.context import resolve_view
from tessera_compiler.tile.lowering.device_context import (
    BLOCK_TOKENS,
    PARTIAL_CHUNKS,
    DeviceArguments,
)

TILES, SINGLES, PARTIALS = "input:tiles", "input:singles", "partials"
ROWS = 64
"""Rows of a product: pairs of a token and a head."""

MOST_HEADS = 32
"""Query heads computed by one instance."""

LOWEST = -1e30
"""Where the largest score starts: finite, so that it may be subtracted from itself."""

State = list[SSAValue]
"""The largest score of each row, the sum of its weights, and the weighted sum of values."""


@dataclass(frozen=True)
class AttentionShape:
    """What of an `attend` decides how its kernels are cut."""

    heads: int
    key_heads: int
    key_dim: int
    value_dim: int

    @staticmethod
    def of(op: schedule.AttendOp) -> AttentionShape:
        _, heads, key_dim = type_of(op.query).get_shape()
        return AttentionShape(heads, op.values["key_heads"], key_dim, op.values["value_dim"])

    @property
    def shared(self) -> int:
        return self.heads // self.key_heads

    @property
    def together(self) -> int:
        """Query heads of one instance."""
        return next(n for n in range(min(self.shared, MOST_HEADS), 0, -1) if self.shared % n == 0)

    @property
    def tile_tokens(self) -> int:
        """The most tokens of a tile."""
        return 1 << ((ROWS // self.together).bit_length() - 1)

    @property
    def partial_width(self) -> int:
        """Numbers that one token's chunk leaves: for each head its sums, the largest score and the sum of weights."""
        return self.heads * (self.value_dim + 2)


def attend_of(group: schedule.GroupOp) -> schedule.AttendOp:
    return next(op for op in group.body.block.ops if isinstance(op, schedule.AttendOp))


def lower_device_attention(
    group: schedule.GroupOp, arguments: DeviceArguments, symbol: str, *, chunks_apart: bool = False
) -> tile.KernelOp:
    """The kernel of tiles or of singles, whichever `arguments` have; of singles, perhaps one chunk to an instance."""
    return _AttentionLowering(group, arguments, symbol, chunks_apart).run()


def lower_fold(group: schedule.GroupOp, arguments: DeviceArguments, symbol: str) -> tile.KernelOp:
    """Folds what the chunks of single tokens left in the partials."""
    op, shape = attend_of(group), AttentionShape.of(attend_of(group))
    b = KernelBuilder(symbol, [shape.heads // shape.together, "D"], arguments.buffers)
    first_head = b.index("mul", b.program_id(0), shape.together)
    number = b.program_id(1)
    partials = b.buffers[arguments.extra_parameter(PARTIALS)]
    token, valid = _single(b, b.buffers[arguments.extra_parameter(SINGLES)], number)
    positions = op.positions
    assert isinstance(positions, BlockArgument)
    position = b.load_index(b.buffers[positions.index], token)
    first, end = _blocks_seen(b, op, position, position, valid)
    start_row = b.index("mul", number, PARTIAL_CHUNKS)

    def fold(chunk: SSAValue, state: State) -> Sequence[SSAValue]:
        row = b.index("add", start_row, chunk)
        return _fold(b, state, [_partial(b, partials, row, first_head, shape, part) for part in range(3)])

    state = b.loop(
        b.index("div", first, arguments.chunk_blocks),
        _chunks(b, end, arguments.chunk_blocks),
        1,
        _empty(b, shape.together, shape.value_dim),
        fold,
    )
    result = b.buffers[arguments.result_parameter(0)]
    _store_rows(b, b.binary("div", state[2], state[1]), result, token, first_head, shape, valid)
    return b.finish()


class _AttentionLowering:
    def __init__(self, group: schedule.GroupOp, arguments: DeviceArguments, symbol: str, chunks_apart: bool) -> None:
        self._op = attend_of(group)
        self._attributes = self._op.values
        self._shape = shape = AttentionShape.of(self._op)
        self._of_tiles = TILES in arguments.extras
        self._chunks_apart = chunks_apart
        self._arguments = arguments
        grid: list[str | int] = [shape.heads // shape.together, "Q" if self._of_tiles else "D"]
        self._builder = b = KernelBuilder(symbol, [*grid, "C"] if chunks_apart else grid, arguments.buffers)
        cache = self._attributes["cache"]
        self._layer = arguments.cache_layer(cache)
        self._keys, self._values = (b.buffers[arguments.cache_parameter(part, cache)] for part in ("key", "value"))

    def run(self) -> tile.KernelOp:
        b, shape = self._builder, self._shape
        first_head = b.index("mul", b.program_id(0), shape.together)
        number = b.program_id(1)
        token, count = self._tokens(number)
        self._position = b.load_index(self._input(self._op.positions), token)
        self._last = b.index("max", b.index("sub", b.index("add", self._position, count), 1), self._position)
        sequence = b.load_index(self._input(self._op.sequences), token)
        self._table = b.index("mul", sequence, b.table_width)
        key_head = b.index("div", first_head, shape.shared)
        self._key_start = b.index("mul", key_head, self._layer.key_elements)
        self._value_start = b.index("mul", key_head, self._layer.value_elements)
        self._query = self._load_query(token, first_head, count)
        self._here = b.iota(self._position, ROWS, 0, shape.together)
        first, end = _blocks_seen(b, self._op, self._position, self._last, b.index("min", count, 1))
        if self._chunks_apart:
            self._one_chunk(number, first_head, count, first, end)
        else:

            def fold(chunk: SSAValue, state: State) -> Sequence[SSAValue]:
                return _fold(b, state, self._chunk(chunk, first, end))

            each = self._arguments.chunk_blocks
            start = b.index("div", first, each)
            state = b.loop(start, _chunks(b, end, each), 1, _empty(b, ROWS, shape.value_dim), fold)
            result = b.buffers[self._arguments.result_parameter(0)]
            _store_rows(b, b.binary("div", state[2], state[1]), result, token, first_head, shape, count)
        return b.finish()

    def _input(self, value: SSAValue) -> SSAValue:
        assert isinstance(value, BlockArgument)
        return self._builder.buffers[value.index]

    def _tokens(self, number: SSAValue) -> tuple[SSAValue, SSAValue]:
        """The first row of the tile, and how many tokens it has."""
        b = self._builder
        if not self._of_tiles:
            return _single(b, b.buffers[self._arguments.extra_parameter(SINGLES)], number)
        tiles = b.buffers[self._arguments.extra_parameter(TILES)]
        entry = b.index("mul", number, 2)
        return b.load_index(tiles, entry), b.load_index(tiles, b.index("add", entry, 1))

    def _load_query(self, token: SSAValue, head: SSAValue, count: SSAValue) -> SSAValue:
        """Scaled so that scores come as powers of two, and rounded to what the cache holds."""
        b = self._builder
        base, view = resolve_view(self._op.query)
        query = b.load_block(
            b.buffers[base.index],
            token,
            b.index("add", b.index("mul", head, view.strides[0]), view.offset),
            (ROWS, self._shape.key_dim),
            count=b.index("mul", count, self._shape.together),
            period=self._shape.together,
            row_step=1,
            column_step=view.strides[0],
            lane_step=view.strides[1],
        )
        scale = self._attributes["scale"] * (1.0 if self._attributes["softcap"] else math.log2(math.e))
        return b.cast(b.binary("mul", query, scale), self._layer.element)

    def _one_chunk(self, number: SSAValue, head: SSAValue, count: SSAValue, first: SSAValue, end: SSAValue) -> None:
        b, shape = self._builder, self._shape
        chunk = b.program_id(2)
        partials = b.buffers[self._arguments.extra_parameter(PARTIALS)]
        row = b.index("add", b.index("mul", number, PARTIAL_CHUNKS), chunk)
        for part, value in enumerate(self._chunk(chunk, first, end)):
            column, width = _partial_place(b, head, shape, part)
            rows = b.index("mul", count, shape.together)
            b.store_block(value, partials, row, column, count=rows, column_step=width, lane_step=1)

    def _chunk(self, chunk: SSAValue, first: SSAValue, end: SSAValue) -> State:
        """The state of one chunk alone."""
        b = self._builder
        start = b.index("mul", chunk, self._arguments.chunk_blocks)
        stop = b.index("min", b.index("add", start, self._arguments.chunk_blocks), end)
        return b.loop(b.index("max", start, first), stop, 1, _empty(b, ROWS, self._shape.value_dim), self._block)

    def _block(self, block: SSAValue, state: State) -> Sequence[SSAValue]:
        b, shape = self._builder, self._shape
        largest, total, sums = state
        physical = b.load_index(self._input(self._op.block_tables), b.index("add", self._table, block))
        start = b.index("mul", block, BLOCK_TOKENS)
        key = b.load_block(
            self._keys, physical, self._key_start, (shape.key_dim, BLOCK_TOKENS), column_step=1, lane_step=shape.key_dim
        )
        scores = b.dot(self._query, key)
        if self._attributes["softcap"]:
            cap = self._attributes["softcap"]
            capped = b.unary("tanh", b.binary("mul", scores, 1 / cap))
            scores = b.binary("mul", capped, cap * math.log2(math.e))
        scores = b.select(self._visible(start), scores, b.full(-math.inf))
        new_largest = b.binary("maximum", largest, b.reduce("max", scores))
        weights = b.cast(b.unary("exp2", b.binary("sub", scores, new_largest)), self._layer.element)
        shrink = b.unary("exp2", b.binary("sub", largest, new_largest))
        new_total = b.binary("add", b.binary("mul", total, shrink), b.reduce("sum", b.cast(weights, "f32")))
        # What lies past the sequence's end belongs to nobody, and 0 times infinity would not be 0.
        value = b.load_block(
            self._values,
            physical,
            self._value_start,
            (BLOCK_TOKENS, shape.value_dim),
            count=b.index("add", b.index("sub", self._last, start), 1),
            column_step=shape.value_dim,
            lane_step=1,
        )
        return [new_largest, new_total, b.dot(weights, value, b.binary("mul", sums, shrink))]

    def _visible(self, start: SSAValue) -> SSAValue:
        b, window = self._builder, self._attributes["window"]
        places = b.iota(start, BLOCK_TOKENS)
        seen = b.compare("less_equal", places, self._here)
        if window:
            oldest = b.iota(b.index("sub", self._position, window - 1), ROWS, 0, self._shape.together)
            seen = b.binary("and", seen, b.compare("greater_equal", places, oldest))
        return seen


def _single(b: KernelBuilder, singles: SSAValue, number: SSAValue) -> tuple[SSAValue, SSAValue]:
    """The row of a single token, and 1; or 0 and 0 for none."""
    row, zero = b.load_index(singles, number), b.constant(0)
    return b.index("max", row, zero), b.index("min", b.index("add", row, 1), 1)


def _blocks_seen(
    b: KernelBuilder, op: schedule.AttendOp, position: SSAValue, last: SSAValue, valid: SSAValue
) -> tuple[SSAValue, SSAValue]:
    """The blocks of the context that any of the tokens from `position` to `last` sees; none unless `valid` is 1."""
    first, window = b.constant(0), op.values["window"]
    if window:
        first = b.index("div", b.index("max", b.index("sub", position, window - 1), first), BLOCK_TOKENS)
    return first, b.index("mul", b.index("add", b.index("div", last, BLOCK_TOKENS), 1), valid)


def _chunks(b: KernelBuilder, blocks: SSAValue, each: int) -> SSAValue:
    return b.index("div", b.index("add", blocks, each - 1), each)


def _empty(b: KernelBuilder, rows: int, columns: int) -> State:
    return [b.full(LOWEST, (rows, 1)), b.full(0.0, (rows, 1)), b.full(0.0, (rows, columns))]


def _fold(b: KernelBuilder, before: State, chunk: State) -> State:
    largest = b.binary("maximum", before[0], chunk[0])
    old, new = (b.unary("exp2", b.binary("sub", each[0], largest)) for each in (before, chunk))
    sums = [b.binary("add", b.binary("mul", before[i], old), b.binary("mul", chunk[i], new)) for i in (1, 2)]
    return [largest, *sums]


def _partial_place(b: KernelBuilder, head: SSAValue, shape: AttentionShape, part: int) -> tuple[SSAValue, int]:
    """Where the largest scores (0), the sums of weights (1) or of values (2) of a head start, and how wide they are."""
    if part == 2:
        return b.index("mul", head, shape.value_dim), shape.value_dim
    return b.index("add", head, shape.heads * (shape.value_dim + part)), 1


def _partial(
    b: KernelBuilder, partials: SSAValue, row: SSAValue, head: SSAValue, shape: AttentionShape, part: int
) -> SSAValue:
    column, width = _partial_place(b, head, shape, part)
    return b.load_block(partials, row, column, (shape.together, width), column_step=width, lane_step=1)


def _store_rows(
    b: KernelBuilder,
    value: SSAValue,
    buffer: SSAValue,
    token: SSAValue,
    head: SSAValue,
    shape: AttentionShape,
    count: SSAValue,
) -> None:
    width = View.contiguous((shape.heads, shape.value_dim)).strides[0]
    b.store_block(
        value,
        buffer,
        token,
        b.index("mul", head, width),
        count=b.index("mul", count, shape.together),
        period=shape.together,
        row_step=1,
        column_step=width,
        lane_step=1,
    )
