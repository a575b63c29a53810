"""Lowers groups of kind `attention` for a device: tokens of one sequence by the query heads that share a KV head, over
the context, with a softmax that is corrected as it goes.

The context is taken a block of the cache at a time. Weights are powers of two relative to a whole number that is at
least the largest score so far, so what was summed relative to another one is corrected by a power of two, exactly: it
makes no difference to a result which largest score was known when. Each block's sums start from nothing and are then
added to those before. Three kernels do this by the same steps: one for tiles of several tokens, one for single tokens,
and, where there are few of these, one that leaves each block's sums in a buffer, with a fourth that adds them up. A
row's result therefore does not depend on which of them computed it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from xdsl.ir import BlockArgument, SSAValue

from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.views import View
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.context import resolve_view
from tessera_compiler.tile.lowering.device_context import BLOCK_TOKENS, DeviceArguments

TILES, SINGLES, PARTIALS = "input:tiles", "input:singles", "partials"
TILE_ROWS = 64
"""Rows of a tile: pairs of a token and a head; a device may have use for twice as many."""
LEAST_ROWS = 16
"""Of a product of the matrix units."""

MOST_HEADS = 32
"""Query heads computed by one instance."""

SUMS = 16
"""Columns of the sums of weights, all equal: the matrix units make them, in their own order, as they do all others."""

FOLDED_TOGETHER = 8
"""Blocks whose sums are asked for at a time when they are added up."""

LOWEST = -1e30
"""Where the largest score starts: finite, so that it may be subtracted from itself."""

State = list[SSAValue]
"""The bound of the scores of each row, the sum of its weights, and the weighted sum of values."""


@dataclass(frozen=True)
class AttentionShape:
    """What of an `attend` decides how its kernels are cut."""

    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    element: str
    """Of what the cache holds."""

    @staticmethod
    def of(op: schedule.AttendOp) -> AttentionShape:
        _, heads, key_dim = type_of(op.query).get_shape()
        return AttentionShape(heads, op.values["key_heads"], key_dim, op.values["value_dim"], op.values["element"])

    @property
    def widest(self) -> int:
        return max(self.key_dim, self.value_dim)

    @property
    def shared(self) -> int:
        return self.heads // self.key_heads

    @property
    def together(self) -> int:
        """Query heads of one instance."""
        return next(n for n in range(min(self.shared, MOST_HEADS), 0, -1) if self.shared % n == 0)

    def tile_tokens(self, rows: int) -> int:
        """The most tokens of a tile of so many rows."""
        return rows // self.together

    @property
    def single_rows(self) -> int:
        """Rows of a single token's products, at least."""
        return max(LEAST_ROWS, 1 << (self.together - 1).bit_length())

    @property
    def partial_width(self) -> int:
        """Numbers that one token's block leaves: for each head its sums, the bound and the sum of weights."""
        return self.heads * (self.value_dim + 2)


def attend_of(group: schedule.GroupOp) -> schedule.AttendOp:
    return next(op for op in group.body.block.ops if isinstance(op, schedule.AttendOp))


def lower_device_attention(
    group: schedule.GroupOp, arguments: DeviceArguments, symbol: str, *, rows: int = TILE_ROWS, apart: bool = False
) -> tile.KernelOp:
    """The kernel of tiles or of singles, whichever `arguments` have; of singles, perhaps one block to an instance."""
    return _AttentionLowering(group, arguments, symbol, rows, apart).run()


def lower_fold(group: schedule.GroupOp, arguments: DeviceArguments, symbol: str) -> tile.KernelOp:
    """Adds up what the blocks of single tokens left in the partials, a head to an instance."""
    op, shape = attend_of(group), AttentionShape.of(attend_of(group))
    b = KernelBuilder(symbol, [shape.heads, "D"], arguments.buffers, arguments.given)
    head, number = b.program_id(0), b.program_id(1)
    partials = b.buffers[arguments.extra_parameter(PARTIALS)]
    token, valid = _single(b, b.buffers[arguments.extra_parameter(SINGLES)], number)
    positions = op.positions
    assert isinstance(positions, BlockArgument)
    position = b.load_index(b.buffers[positions.index], token)
    first, end = _blocks_seen(b, op, position, position, valid)
    start_row = b.index("mul", number, b.table_width)
    last_row = b.index("sub", b.index("add", start_row, b.table_width), 1)

    def fold(start: SSAValue, state: State) -> Sequence[SSAValue]:
        # All are asked for before the first is needed.
        parts = []
        for each in range(FOLDED_TOGETHER):
            block = b.index("add", start, each)
            row = b.index("min", b.index("add", start_row, block), last_row)
            bound, total, sums = (_partial(b, partials, row, head, shape, part) for part in range(3))
            there = b.compare("less", b.iota(block, 1), b.iota(end, 1))
            parts.append([b.select(there, bound, b.full(LOWEST)), total, sums])
        return _fold(b, state, parts)

    state = b.loop(first, end, FOLDED_TOGETHER, _empty(b, 1, shape.value_dim, 1), fold)
    result = b.buffers[arguments.result_parameter(0)]
    width = View.contiguous((shape.heads, shape.value_dim)).strides[0]
    value = b.binary("div", state[2], state[1])
    b.store_block(value, result, token, b.index("mul", head, width), count=valid, row_step=1, lane_step=1)
    return b.finish()


class _AttentionLowering:
    def __init__(
        self, group: schedule.GroupOp, arguments: DeviceArguments, symbol: str, rows: int, apart: bool
    ) -> None:
        self._op = attend_of(group)
        self._attributes = self._op.values
        self._shape = shape = AttentionShape.of(self._op)
        self._of_tiles = TILES in arguments.extras
        self._rows, self._apart = rows, apart
        self._physical: SSAValue | None = None
        self._arguments = arguments
        grid: list[str | int] = [shape.heads // shape.together, "Q" if self._of_tiles else "D"]
        grid += ["C"] if apart else []
        self._builder = b = KernelBuilder(symbol, grid, arguments.buffers, arguments.given)
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
        first, end = _blocks_seen(b, self._op, self._position, self._last, b.index("min", count, 1))
        self._query = self._load_query(token, first_head, count)
        self._here = b.iota(self._position, self._rows, 0, shape.together)
        self._ones = b.full(1.0, (BLOCK_TOKENS, SUMS), self._layer.element)
        state = _empty(b, self._rows, shape.value_dim, SUMS)
        if self._apart:
            block = b.program_id(2)
            here = b.index("max", block, first), b.index("min", b.index("add", block, 1), end)
            # Known before the wait for the launch before; of a block past the end, some block's.
            known = b.index("max", b.index("min", block, b.index("sub", end, 1)), b.constant(0))
            self._physical = self._look_up(known)
            self._leave(number, block, first_head, count, b.loop(*here, 1, state, self._block(masked=True)))
        else:
            start = first
            if self._of_tiles and not self._attributes["window"]:
                # Of all but the last blocks, all positions are seen by all tokens.
                start = b.index("min", b.index("div", b.index("add", self._position, 1), BLOCK_TOKENS), end)
                state = b.loop(first, start, 1, state, self._block(masked=False))
            state = b.loop(start, end, 1, state, self._block(masked=True))
            result = b.buffers[self._arguments.result_parameter(0)]
            value = b.binary("div", state[2], b.reduce("max", state[1]))
            _store_rows(b, value, result, token, first_head, shape, count)
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
            (self._rows, self._shape.key_dim),
            count=b.index("mul", count, self._shape.together),
            period=self._shape.together,
            row_step=1,
            column_step=view.strides[0],
            lane_step=view.strides[1],
        )
        scale = self._attributes["scale"] * (1.0 if self._attributes["softcap"] else math.log2(math.e))
        return b.cast(b.binary("mul", query, scale), self._layer.element)

    def _leave(self, number: SSAValue, block: SSAValue, head: SSAValue, count: SSAValue, state: State) -> None:
        """Writes what one block comes to: of one that the token does not see, nothing seen."""
        b, shape = self._builder, self._shape
        partials = b.buffers[self._arguments.extra_parameter(PARTIALS)]
        row = b.index("add", b.index("mul", number, b.table_width), block)
        bound, total, sums = state
        for part, value in enumerate((bound, b.reduce("max", total), sums)):
            column, width = _partial_place(b, head, shape, part)
            rows = b.index("mul", count, shape.together)
            b.store_block(value, partials, row, column, count=rows, column_step=width, lane_step=1)

    def _block(self, *, masked: bool) -> Callable[[SSAValue, State], Sequence[SSAValue]]:
        """How a block of the context is added; `masked`, if some token may not see some of its positions."""
        return partial(self._add_block, masked)

    def _add_block(self, masked: bool, block: SSAValue, state: State) -> Sequence[SSAValue]:
        b, shape = self._builder, self._shape
        bound, total, sums = state
        physical = self._look_up(block) if self._physical is None else self._physical
        start = b.index("mul", block, BLOCK_TOKENS)
        key = b.load_block(
            self._keys, physical, self._key_start, (shape.key_dim, BLOCK_TOKENS), column_step=1, lane_step=shape.key_dim
        )
        scores = b.dot(self._query, key)
        if self._attributes["softcap"]:
            cap = self._attributes["softcap"]
            capped = b.unary("tanh", b.binary("mul", scores, 1 / cap))
            scores = b.binary("mul", capped, cap * math.log2(math.e))
        if masked:
            scores = b.select(self._visible(start), scores, b.full(-math.inf))
        new_bound = b.binary("maximum", bound, _up(b, b.reduce("max", scores)))
        weights = b.cast(b.unary("exp2", b.binary("sub", scores, new_bound)), self._layer.element)
        shrink = b.unary("exp2", b.binary("sub", bound, new_bound))
        # What lies past the sequence's end belongs to nobody, and 0 times infinity would not be 0.
        value = b.load_block(
            self._values,
            physical,
            self._value_start,
            (BLOCK_TOKENS, shape.value_dim),
            count=b.index("add", b.index("sub", self._last, start), 1) if masked else None,
            column_step=shape.value_dim,
            lane_step=1,
        )
        added = [b.dot(weights, each) for each in (self._ones, value)]
        # What is shrunk is so exactly, and rounded once.
        before = (total, sums)
        return [new_bound, *(b.multiply_add(old, shrink, new) for old, new in zip(before, added, strict=True))]

    def _look_up(self, block: SSAValue) -> SSAValue:
        """Where a block of the sequence lies."""
        b = self._builder
        return b.load_index(self._input(self._op.block_tables), b.index("add", self._table, block))

    def _visible(self, start: SSAValue) -> SSAValue:
        b, window = self._builder, self._attributes["window"]
        places = b.iota(start, BLOCK_TOKENS)
        seen = b.compare("less_equal", places, self._here)
        if window:
            oldest = b.iota(b.index("sub", self._position, window - 1), self._rows, 0, self._shape.together)
            seen = b.binary("and", seen, b.compare("greater_equal", places, oldest))
        return seen


def _up(b: KernelBuilder, value: SSAValue) -> SSAValue:
    """The next whole number."""
    return b.unary("neg", b.unary("floor", b.unary("neg", value)))


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


def _empty(b: KernelBuilder, rows: int, columns: int, sums: int) -> State:
    return [b.full(LOWEST, (rows, 1)), b.full(0.0, (rows, sums)), b.full(0.0, (rows, columns))]


def _fold(b: KernelBuilder, before: State, blocks: Sequence[State]) -> State:
    """The sums of the blocks added to those before, one after the other; relative to which bound is all the same, so
    it is the one that holds for all of them."""
    bound = before[0]
    for block in blocks:
        bound = b.binary("maximum", bound, block[0])
    shrink = b.unary("exp2", b.binary("sub", before[0], bound))
    sums = [b.binary("mul", each, shrink) for each in before[1:]]
    for block in blocks:
        shrink = b.unary("exp2", b.binary("sub", block[0], bound))
        sums = [b.multiply_add(new, shrink, old) for new, old in zip(block[1:], sums, strict=True)]
    return [bound, *sums]


def _partial_place(b: KernelBuilder, head: SSAValue, shape: AttentionShape, part: int) -> tuple[SSAValue, int]:
    """Where the bounds (0), the sums of weights (1) or of values (2) of a head start, and how wide they are."""
    if part == 2:
        return b.index("mul", head, shape.value_dim), shape.value_dim
    return b.index("add", head, shape.heads * (shape.value_dim + part)), 1


def _partial(
    b: KernelBuilder, partials: SSAValue, row: SSAValue, head: SSAValue, shape: AttentionShape, part: int
) -> SSAValue:
    column, width = _partial_place(b, head, shape, part)
    return b.load_block(partials, row, column, (1, width), column_step=width, lane_step=1)


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
