"""Lowers groups of kind `attention`: a tile of tokens of one sequence and some of the query heads that share a KV head,
over the context, with a softmax that is corrected as it goes.

The context is taken 64 positions at a time, counted from position 0; what lies past a token, or before its window, has
no weight. A row of a product is one token and one head: sixteen tokens of one head where a tile is full, else the heads
of one token. Both compute every row by the same steps in the same order, so a token's result depends neither on its
tile nor on how its context came to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.ir import BlockArgument, SSAValue

from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.physical import BLOCK_TOKENS
from tessera_compiler.schedule.views import View
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.context import GroupArguments, resolve_view

MOST_HEADS = 8
"""Query heads computed by one instance."""

TILE_TOKENS = 16
"""Tokens of a full tile."""

BLOCKS = 4
POSITIONS = BLOCKS * BLOCK_TOKENS
"""Positions taken at a time."""

VALUE_COLUMNS = 64
"""Columns of the values summed at a time: as many as there are registers for."""

LOWEST = -1e30
"""Where the largest score starts: finite, so that it may be subtracted from itself."""


def lower_attention(group: schedule.GroupOp, arguments: GroupArguments, symbol: str) -> tile.KernelOp:
    return _AttentionLowering(group, arguments, symbol).run()


@dataclass(frozen=True)
class _Rows:
    """What one product computes: `count` rows of queries, from token `token` at `position` and head `head` on."""

    count: int
    token: SSAValue
    head: SSAValue
    position: SSAValue
    of_tokens: bool
    """Whether rows are tokens, else heads."""


class _AttentionLowering:
    def __init__(self, group: schedule.GroupOp, arguments: GroupArguments, symbol: str):
        self._op = op = next(op for op in group.body.block.ops if isinstance(op, schedule.AttendOp))
        self._attributes = attributes = op.values
        _, self._heads, self._key_dim = type_of(op.query).get_shape()
        self._value_dim = attributes["value_dim"]
        self._shared = self._heads // attributes["key_heads"]
        self._together = next(n for n in range(min(self._shared, MOST_HEADS), 0, -1) if self._shared % n == 0)
        self._layer = arguments.cache_layer(attributes["cache"])
        self._builder = b = KernelBuilder(symbol, [self._heads // self._together, "Q"], arguments.buffers)
        self._keys, self._values = (
            b.buffers[arguments.cache_parameter(part, attributes["cache"])] for part in ("key", "value")
        )
        self._tiles = b.buffers[arguments.tiles_parameter]
        self._result = b.buffers[arguments.result_parameter(0)]

    def run(self) -> tile.KernelOp:
        b = self._builder
        first_head = b.index("mul", b.program_id(0), self._together)
        key_head = b.index("div", first_head, self._shared)
        self._key_start = b.index("mul", key_head, self._layer.key_elements)
        self._value_start = b.index("mul", key_head, self._layer.value_elements)
        entry = b.index("mul", b.program_id(1), 2)
        first = b.load_index(self._tiles, entry)
        count = b.load_index(self._tiles, b.index("add", entry, 1))
        self._table = b.index("mul", b.load_index(self._input(self._op.sequences), first), b.table_width)
        self._origin = b.index("sub", b.load_index(self._input(self._op.positions), first), first)
        whole = b.index("add", first, b.index("mul", b.index("div", count, TILE_TOKENS), TILE_TOKENS))

        def full_tile(token: SSAValue, carried: list[SSAValue]) -> Sequence[SSAValue]:
            def one_head(head: SSAValue, carried: list[SSAValue]) -> Sequence[SSAValue]:
                self._attend(TILE_TOKENS, token, head, of_tokens=True)
                return carried

            last_head = b.index("add", first_head, self._together)
            b.loop(first_head, last_head, 1, [], one_head)
            return carried

        def one_token(token: SSAValue, carried: list[SSAValue]) -> Sequence[SSAValue]:
            self._attend(self._together, token, first_head, of_tokens=False)
            return carried

        b.loop(first, whole, TILE_TOKENS, [], full_tile)
        b.loop(whole, b.index("add", first, count), 1, [], one_token)
        return b.finish()

    def _input(self, value: SSAValue) -> SSAValue:
        assert isinstance(value, BlockArgument)
        return self._builder.buffers[value.index]

    def _attend(self, count: int, token: SSAValue, head: SSAValue, *, of_tokens: bool) -> None:
        b = self._builder
        rows = _Rows(count, token, head, b.index("add", self._origin, token), of_tokens)
        query = self._query(rows)
        last = b.index("add", rows.position, count - 1) if of_tokens else rows.position
        # Up to here, every row sees all positions of a step.
        whole = b.index("div", b.index("add", rows.position, 1), POSITIONS)
        end = b.index("add", b.index("div", last, POSITIONS), 1)
        start = b.constant(0)
        if self._attributes["window"]:
            oldest = b.index("sub", rows.position, self._attributes["window"] - 1)
            start = b.index("div", b.index("max", oldest, b.constant(0)), POSITIONS)
        pieces = [
            (column, min(VALUE_COLUMNS, self._value_dim - column))
            for column in range(0, self._value_dim, VALUE_COLUMNS)
        ]
        state = [b.full(LOWEST, (count, 1)), b.full(0.0, (count, 1))]
        state += [b.full(0.0, (count, width)) for _, width in pieces]
        state = b.loop(start, whole, 1, state, lambda step, state: self._step(rows, query, step, state, None))
        first_ragged = b.index("max", start, whole)
        state = b.loop(first_ragged, end, 1, state, lambda step, state: self._step(rows, query, step, state, last))
        _, total, *sums = state
        width = View.contiguous((self._heads, self._value_dim)).strides[0]
        column = b.index("mul", head, width)
        for (offset, _), piece in zip(pieces, sums, strict=True):
            b.store(
                b.binary("div", piece, total),
                self._result,
                token,
                b.index("add", column, offset),
                row_step=1 if of_tokens else 0,
                column_step=0 if of_tokens else width,
            )

    def _query(self, rows: _Rows) -> SSAValue:
        """Scaled so that scores come as powers of two, and rounded to what the cache holds."""
        b = self._builder
        base, view = resolve_view(self._op.query)
        query = b.load(
            b.buffers[base.index],
            rows.token,
            b.index("add", b.index("mul", rows.head, view.strides[0]), view.offset),
            (rows.count, self._key_dim),
            row_step=1 if rows.of_tokens else 0,
            column_step=0 if rows.of_tokens else view.strides[0],
            lane_step=view.strides[1],
        )
        scale = self._attributes["scale"] * (1.0 if self._attributes["softcap"] else math.log2(math.e))
        return b.cast(b.binary("mul", query, scale), self._layer.element)

    def _step(
        self, rows: _Rows, query: SSAValue, step: SSAValue, state: list[SSAValue], last: SSAValue | None
    ) -> Sequence[SSAValue]:
        """64 positions; `last` is the last position of all rows if these may reach past it."""
        b = self._builder
        largest, total, *sums = state
        last_block = b.index("div", rows.position if last is None else last, BLOCK_TOKENS)
        first_block = b.index("mul", step, BLOCKS)
        blocks = self._blocks(first_block, None if last is None else last_block)
        # Sixteen tokens find everything in the processor's caches that the first of them has read.
        ahead = () if rows.of_tokens else self._blocks(b.index("add", first_block, BLOCKS), last_block)
        start = b.index("mul", step, POSITIONS)
        packed, element = self._layer.packed, self._layer.element
        key = b.load_panels(self._keys, blocks, self._key_start, (self._key_dim, POSITIONS), packed, "n", None, ahead)
        scores = b.dot(query, key)
        if self._attributes["softcap"]:
            cap = self._attributes["softcap"]
            capped = b.unary("tanh", b.binary("mul", scores, 1 / cap))
            scores = b.binary("mul", capped, cap * math.log2(math.e))
        scores = self._visible(rows, start, scores, ragged=last is not None)
        new_largest = b.binary("largest", largest, b.reduce("largest", scores))
        weights = b.cast(b.unary("exp2", b.binary("sub", scores, new_largest)), element)
        shrink = b.unary("exp2", b.binary("sub", largest, new_largest))
        new_total = b.binary("add", b.binary("mul", total, shrink), b.reduce("sum", b.cast(weights, "f32")))
        # What lies past the sequence's end belongs to nobody, and 0 times infinity would not be 0.
        limit = None if last is None else b.index("add", b.index("sub", last, start), 1)
        new_sums = []
        for number, piece in enumerate(sums):
            column = b.index("add", self._value_start, number * VALUE_COLUMNS * BLOCK_TOKENS)
            shape = (POSITIONS, min(VALUE_COLUMNS, self._value_dim - number * VALUE_COLUMNS))
            value = b.load_panels(self._values, blocks, column, shape, packed, "k", limit, ahead)
            new_sums.append(b.dot(weights, value, b.binary("mul", piece, shrink)))
        return [new_largest, new_total, *new_sums]

    def _blocks(self, first: SSAValue, last: SSAValue | None) -> list[SSAValue]:
        """The physical blocks of a step from block `first` on; `last` again for those past it."""
        b = self._builder
        found = []
        for number in range(BLOCKS):
            block = b.index("add", first, number)
            if last is not None:
                block = b.index("min", block, last)
            found.append(b.load_index(self._input(self._op.block_tables), b.index("add", self._table, block)))
        return found

    def _visible(self, rows: _Rows, start: SSAValue, scores: SSAValue, *, ragged: bool) -> SSAValue:
        b, window = self._builder, self._attributes["window"]
        if not ragged and not window:
            return scores
        places = b.iota(start, POSITIONS)
        here = b.iota(rows.position, rows.count, 0) if rows.of_tokens else b.iota(rows.position, 1)
        lowest = b.full(-math.inf)
        if ragged:
            scores = b.select(b.compare("less_equal", places, here), scores, lowest)
        if window:
            oldest = b.binary("sub", here, window - 1)
            scores = b.select(b.compare("greater_equal", places, oldest), scores, lowest)
        return scores
