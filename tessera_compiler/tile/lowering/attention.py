"""Lowers groups of kind `attention`: one token and some of the query heads that share a KV head, over the blocks of
its context.

Blocks are counted from position 0 (or from the first that the window reaches), whatever else is in the step; so a
token's result does not depend on how its context came to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def lower_attention(group: schedule.GroupOp, arguments: GroupArguments, symbol: str) -> tile.KernelOp:
    op = next(op for op in group.body.block.ops if isinstance(op, schedule.AttendOp))
    attributes = op.values
    _, heads, key_dim = type_of(op.query).get_shape()
    value_dim, key_heads, cache = attributes["value_dim"], attributes["key_heads"], attributes["cache"]
    shared = heads // key_heads
    together = next(count for count in range(min(shared, MOST_HEADS), 0, -1) if shared % count == 0)
    b = KernelBuilder(symbol, ["T", heads // together], arguments.buffers)
    token = b.program_id(0)
    first_head = b.index("mul", b.program_id(1), together)
    key_head = b.index("div", first_head, shared)
    keys, values = (b.buffers[arguments.cache_parameter(part, cache)] for part in ("key", "value"))

    def input_buffer(value: SSAValue) -> SSAValue:
        assert isinstance(value, BlockArgument)
        return b.buffers[value.index]

    position = b.load_index(input_buffer(op.positions), token)
    table = b.index("mul", b.load_index(input_buffer(op.sequences), token), b.table_width)
    base, view = resolve_view(op.query)
    start = b.index("add", b.index("mul", first_head, view.strides[0]), view.offset)
    query = b.load(
        b.buffers[base.index],
        token,
        start,
        (together, key_dim),
        column_step=view.strides[0],
        lane_step=view.strides[1],
    )
    window = attributes["window"]
    first = b.constant(0)
    oldest = None
    if window:
        oldest = b.index("max", b.index("sub", position, window - 1), first)
        first = b.index("div", oldest, BLOCK_TOKENS)
    here = b.iota(position, 1)
    key_start = b.index("mul", key_head, key_dim * BLOCK_TOKENS)
    value_start = b.index("mul", key_head, value_dim * BLOCK_TOKENS)

    def visible(block: SSAValue, axis: int) -> SSAValue:
        places = b.iota(b.index("mul", block, BLOCK_TOKENS), BLOCK_TOKENS, axis)
        seen = b.compare("less_equal", places, here)
        if oldest is not None:
            seen = b.binary("and", seen, b.compare("greater_equal", places, b.iota(oldest, 1)))
        return seen

    def one_block(block: SSAValue, carried: list[SSAValue]) -> Sequence[SSAValue]:
        largest, total, sums = carried
        physical = b.load_index(input_buffer(op.block_tables), b.index("add", table, block))
        key = b.load(keys, physical, key_start, (key_dim, BLOCK_TOKENS), column_step=BLOCK_TOKENS)
        scores = b.binary("mul", b.dot(query, key), attributes["scale"])
        if attributes["softcap"]:
            cap = attributes["softcap"]
            scores = b.binary("mul", b.unary("tanh", b.binary("div", scores, cap)), cap)
        scores = b.select(visible(block, 1), scores, b.full(-math.inf))
        new_largest = b.binary("maximum", largest, b.reduce("max", scores))
        weights = b.unary("exp", b.binary("sub", scores, new_largest))
        shrink = b.unary("exp", b.binary("sub", largest, new_largest))
        new_total = b.binary("add", b.binary("mul", total, shrink), b.reduce("sum", weights))
        value = b.cast(b.load(values, physical, value_start, (BLOCK_TOKENS, value_dim), column_step=value_dim), "f32")
        # What lies past the sequence's end belongs to nobody, and 0 times infinity would not be 0.
        value = b.select(visible(block, 0), value, b.full(0.0))
        new_sums = b.dot(weights, value, b.binary("mul", sums, shrink))
        return [new_largest, new_total, new_sums]

    after = b.index("add", b.index("div", position, BLOCK_TOKENS), 1)
    initial = [
        b.full(-math.inf, (together, 1)),
        b.full(0.0, (together, 1)),
        b.full(0.0, (together, value_dim)),
    ]
    _, total, sums = b.loop(first, after, 1, initial, one_block)
    result = b.binary("div", sums, total)
    out = View.contiguous((heads, value_dim))
    column = b.index("mul", first_head, out.strides[0])
    b.store(result, b.buffers[arguments.result_parameter(0)], token, column, column_step=value_dim)
    return b.finish()
