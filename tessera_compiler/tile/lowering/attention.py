"""Lowers groups of kind `attention`: a tile of tokens of one sequence and some of the query heads that share a KV head,
over the context, with a softmax that is corrected as it goes.

The context is taken some positions at a time, counted from position 0, and in chunks of these, each of which is summed
on its own; what lies past a token, or before its window, has no weight. A row of a product is one token and one head:
sixteen tokens of one head where a tile is full, else the heads of one token. Both compute every row by the same steps
in the same order, so a token's result depends neither on its tile nor on how its context came to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xdsl.ir import BlockArgument, SSAValue

from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.physical import BLOCK_TOKENS
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.attention_chunks import Partials, fold, pieces_of
from tessera_compiler.tile.lowering.attention_products import LOWEST, Products, Step, positions_of, products_of
from tessera_compiler.tile.lowering.attention_results import Results
from tessera_compiler.tile.lowering.chunk_sizes import CHUNK_POSITIONS
from tessera_compiler.tile.lowering.context import GroupArguments, resolve_view
from tessera_compiler.tile.types import shape_of

MOST_HEADS = 8
"""Query heads computed by one instance."""

TILE_TOKENS = 16
"""Tokens of a full tile."""


@dataclass(frozen=True)
class AttentionKernels:
    """`whole` does everything. So do `parts` and then `fold`, to the same bits: chunks of the context on their own, and
    what they come to together, where there are too few tokens to keep all threads busy otherwise."""

    whole: tile.KernelOp
    parts: tile.KernelOp
    fold: tile.KernelOp


def lower_attention(group: schedule.GroupOp, arguments: GroupArguments, symbol: str) -> AttentionKernels:
    def kernel(suffix: str, grid: Sequence[str]) -> _AttentionLowering:
        return _AttentionLowering(group, arguments, symbol + suffix, grid)

    return AttentionKernels(
        kernel("", ["Q"]).whole(), kernel("_parts", ["C", "Q"]).parts(), kernel("_fold", ["T"]).fold()
    )


@dataclass(frozen=True)
class _Rows:
    """What one product computes: `count` rows of queries, from token `token` at `position` and head `head` on."""

    count: int
    token: SSAValue
    head: SSAValue
    position: SSAValue
    of_tokens: bool
    """Whether rows are tokens, else heads."""


@dataclass(frozen=True)
class _Span:
    """The context of some rows, in steps."""

    start: SSAValue
    whole: SSAValue
    """Up to here, every row sees all positions of a step, or all in its window."""
    end: SSAValue
    last: SSAValue
    """The last position of all rows."""
    steps: int
    """Of a chunk."""
    first_chunk: SSAValue
    end_chunk: SSAValue


class _AttentionLowering:
    """Writes one kernel. Its grid is groups of heads, then `grid`."""

    def __init__(self, group: schedule.GroupOp, arguments: GroupArguments, symbol: str, grid: Sequence[str]):
        self._op = op = next(op for op in group.body.block.ops if isinstance(op, schedule.AttendOp))
        self._attributes = attributes = op.values
        _, self._heads, self._key_dim = type_of(op.query).get_shape()
        self._value_dim = attributes["value_dim"]
        self._shared = self._heads // attributes["key_heads"]
        self._together = next(n for n in range(min(self._shared, MOST_HEADS), 0, -1) if self._shared % n == 0)
        self._arguments = arguments
        self._builder = b = KernelBuilder(symbol, [self._heads // self._together, *grid], arguments.buffers)
        self._tiles = b.buffers[arguments.tiles_parameter]
        self._results = Results(b, group, arguments, self._value_dim)
        self._partials = Partials(b, b.buffers[arguments.partials_parameter], self._heads, self._value_dim)
        self._first_head = b.index("mul", b.program_id(0), self._together)
        self._key_head = b.index("div", self._first_head, self._shared)

    def whole(self) -> tile.KernelOp:
        b = self._builder

        def attend(rows: _Rows) -> None:
            products, span = self._products(rows), self._span(rows)

            def add_chunk(chunk: SSAValue, state: list[SSAValue]) -> Sequence[SSAValue]:
                return fold(b, state, self._chunk(rows, products, span, chunk))

            nothing = self._nothing(rows.count)
            self._finish(rows, b.loop(span.first_chunk, span.end_chunk, 1, nothing, add_chunk))

        self._each(b.program_id(1), attend)
        return b.finish()

    def parts(self) -> tile.KernelOp:
        b = self._builder
        own = b.program_id(1)

        def attend(rows: _Rows) -> None:
            products, span = self._products(rows), self._span(rows)

            def one_chunk(chunk: SSAValue, carried: list[SSAValue]) -> Sequence[SSAValue]:
                state = self._chunk(rows, products, span, chunk)
                self._partials.store(state, chunk, rows.token, rows.head, of_tokens=rows.of_tokens)
                return carried

            first = b.index("max", own, span.first_chunk)
            end = b.index("min", b.index("add", own, 1), span.end_chunk)
            b.loop(first, end, 1, [], one_chunk, once=True)

        self._each(b.program_id(2), attend)
        return b.finish()

    def fold(self) -> tile.KernelOp:
        b = self._builder
        token = b.program_id(1)
        position = b.load_index(self._input(self._op.positions), token)
        rows = _Rows(self._together, token, self._first_head, position, of_tokens=False)
        span = self._span(rows)

        def add_chunk(chunk: SSAValue, state: list[SSAValue]) -> Sequence[SSAValue]:
            return fold(b, state, self._partials.load(chunk, token, self._first_head, self._together))

        nothing = self._nothing(rows.count)
        self._finish(rows, b.loop(span.first_chunk, span.end_chunk, 1, nothing, add_chunk))
        return b.finish()

    def _each(self, number: SSAValue, attend: Callable[[_Rows], None]) -> None:
        """Full tiles head by head, and what is left of them token by token."""
        b = self._builder
        entry = b.index("mul", number, 2)
        first = b.load_index(self._tiles, entry)
        count = b.load_index(self._tiles, b.index("add", entry, 1))
        self._table = b.index("mul", b.load_index(self._input(self._op.sequences), first), b.table_width)
        origin = b.index("sub", b.load_index(self._input(self._op.positions), first), first)
        whole = b.index("add", first, b.index("mul", b.index("div", count, TILE_TOKENS), TILE_TOKENS))

        def full_tile(token: SSAValue, carried: list[SSAValue]) -> Sequence[SSAValue]:
            def one_head(head: SSAValue, carried: list[SSAValue]) -> Sequence[SSAValue]:
                attend(_Rows(TILE_TOKENS, token, head, b.index("add", origin, token), of_tokens=True))
                return carried

            last_head = b.index("add", self._first_head, self._together)
            b.loop(self._first_head, last_head, 1, [], one_head)
            return carried

        def one_token(token: SSAValue, carried: list[SSAValue]) -> Sequence[SSAValue]:
            attend(_Rows(self._together, token, self._first_head, b.index("add", origin, token), of_tokens=False))
            return carried

        b.loop(first, whole, TILE_TOKENS, [], full_tile)
        b.loop(whole, b.index("add", first, count), 1, [], one_token)

    def _input(self, value: SSAValue) -> SSAValue:
        assert isinstance(value, BlockArgument)
        return self._builder.buffers[value.index]

    def _products(self, rows: _Rows) -> Products:
        cache = self._attributes["cache"]
        return products_of(self._builder, self._arguments, cache, self._key_head, self._query(rows))

    def _span(self, rows: _Rows) -> _Span:
        b = self._builder
        positions = positions_of(self._arguments, self._attributes["cache"])
        last = b.index("add", rows.position, rows.count - 1) if rows.of_tokens else rows.position
        end = b.index("add", b.index("div", last, positions), 1)
        start = b.constant(0)
        if self._attributes["window"]:
            oldest = b.index("sub", rows.position, self._attributes["window"] - 1)
            start = b.index("div", b.index("max", oldest, b.constant(0)), positions)
        steps = CHUNK_POSITIONS // positions
        return _Span(
            start=start,
            whole=b.index("div", b.index("add", rows.position, 1), positions),
            end=end,
            last=last,
            steps=steps,
            first_chunk=b.index("div", start, steps),
            end_chunk=b.index("add", b.index("div", b.index("sub", end, 1), steps), 1),
        )

    def _nothing(self, count: int) -> list[SSAValue]:
        """The state before the first position."""
        b = self._builder
        sums = [b.full(0.0, (count, width)) for _, width in pieces_of(self._value_dim)]
        return [b.full(LOWEST, (count, 1)), b.full(0.0, (count, 1)), *sums]

    def _chunk(self, rows: _Rows, products: Products, span: _Span, chunk: SSAValue) -> list[SSAValue]:
        """The state after the positions of one chunk alone."""
        b = self._builder
        first = b.index("mul", chunk, span.steps)
        end = b.index("add", first, span.steps)
        start = b.index("max", first, span.start)
        whole = b.index("min", end, span.whole)
        state = self._nothing(rows.count)
        state = b.loop(start, whole, 1, state, lambda step, state: self._step(rows, products, step, state, None))
        ragged, end = b.index("max", start, whole), b.index("min", end, span.end)
        return b.loop(ragged, end, 1, state, lambda step, state: self._step(rows, products, step, state, span.last))

    def _finish(self, rows: _Rows, state: list[SSAValue]) -> None:
        b = self._builder
        _, total, *sums = state
        for (first, _), piece in zip(pieces_of(self._value_dim), sums, strict=True):
            self._results.store(b.binary("div", piece, total), rows.token, rows.head, first, of_tokens=rows.of_tokens)

    def _query(self, rows: _Rows) -> SSAValue:
        """Scaled so that scores come as powers of two."""
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
        return b.binary("mul", query, scale)

    def _step(
        self, rows: _Rows, products: Products, step: SSAValue, state: list[SSAValue], last: SSAValue | None
    ) -> Sequence[SSAValue]:
        """Some positions; `last` is the last position of all rows if these may reach past it."""
        b = self._builder
        last_block = b.index("div", rows.position if last is None else last, BLOCK_TOKENS)
        size = products.POSITIONS // BLOCK_TOKENS
        first_block = b.index("mul", step, size)
        blocks = self._blocks(size, first_block, None if last is None else last_block)
        # Sixteen tokens find everything in the processor's caches that the first of them has read.
        ahead = () if rows.of_tokens else self._blocks(size, b.index("add", first_block, size), last_block)
        here = Step(blocks, ahead, b.index("mul", step, products.POSITIONS), last)
        scores = products.scores(here)
        if self._attributes["softcap"]:
            cap = self._attributes["softcap"]
            capped = b.unary("tanh", b.binary("mul", scores, 1 / cap))
            scores = b.binary("mul", capped, cap * math.log2(math.e))
        scores = self._visible(rows, here.first, scores, ragged=last is not None)
        return products.accumulate(here, scores, state)

    def _blocks(self, count: int, first: SSAValue, last: SSAValue | None) -> list[SSAValue]:
        """The physical blocks of a step, `count` of them, from block `first` on; `last` again for those past it."""
        b = self._builder
        found = []
        for number in range(count):
            block = b.index("add", first, number)
            if last is not None:
                block = b.index("min", block, last)
            found.append(b.load_index(self._input(self._op.block_tables), b.index("add", self._table, block)))
        return found

    def _visible(self, rows: _Rows, start: SSAValue, scores: SSAValue, *, ragged: bool) -> SSAValue:
        b, window = self._builder, self._attributes["window"]
        if not ragged and not window:
            return scores
        places = b.iota(start, shape_of(scores.type)[1])
        here = b.iota(rows.position, rows.count, 0) if rows.of_tokens else b.iota(rows.position, 1)
        lowest = b.full(-math.inf)
        if ragged:
            scores = b.select(b.compare("less_equal", places, here), scores, lowest)
        if window:
            oldest = b.binary("sub", here, window - 1)
            scores = b.select(b.compare("greater_equal", places, oldest), scores, lowest)
        return scores
