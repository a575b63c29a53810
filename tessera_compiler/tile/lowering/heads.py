"""Lowers what a linear map goes on with head by head: norms of heads, rotary embeddings, writes to the KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation, SSAValue

from tessera_compiler.errors import UnsupportedOperation
from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.heads import Heads, heads_in
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.cache_writing import Piece, places_of, write_head
from tessera_compiler.tile.lowering.columns import Columns, Segment
from tessera_compiler.tile.lowering.context import GroupArguments, resolve_static, resolve_view
from tessera_compiler.tile.lowering.row_functions import RowFunctions
from tessera_compiler.tile.types import shape_of


@dataclass(frozen=True)
class TokenRows:
    """Rows of a tile: tokens `first`, `first + 1`, … (`count` of them), those from `limit` on not wanted."""

    first: SSAValue
    count: int
    limit: SSAValue | None


def store_heads(
    group: schedule.GroupOp,
    arguments: GroupArguments,
    builder: KernelBuilder,
    rows: TokenRows,
    block: SSAValue,
    first: SSAValue,
) -> None:
    """Does what follows a map with the heads in `block`, neighbouring columns of all rows; `first` is the number of the
    first, counted from the start of the map's row."""
    _HeadsLowering(group, arguments, builder, rows).run(block, first)


class _HeadsLowering:
    """Which heads a block holds, queries, keys or values, is known where it runs: each kind stands in a loop of one
    round, or none."""

    def __init__(
        self, group: schedule.GroupOp, arguments: GroupArguments, builder: KernelBuilder, rows: TokenRows
    ) -> None:
        self._group = group
        self._arguments = arguments
        self._builder = builder
        self._rows = rows
        self._functions = RowFunctions(builder)
        self._kinds = heads_in(group)

    def run(self, block: SSAValue, first: SSAValue) -> None:
        width = self._kinds[0].width
        for place in range(0, shape_of(block.type)[1], width):
            number = self._builder.index("add", first, place // width)
            for kind in self._kinds:
                self._where_it_is(kind, number, self._head(block, place, width))

    def _where_it_is(self, kind: Heads, number: SSAValue, columns: Columns) -> None:
        """Follows head `number` of the row if it is of this kind."""
        builder = self._builder
        start = kind.first // kind.width

        def follow(index: SSAValue, carried: list[SSAValue]) -> list[SSAValue]:
            self._follow(kind, builder.index("sub", index, start), columns)
            return carried

        lower = builder.index("max", number, builder.constant(start))
        upper = builder.index("min", builder.index("add", number, 1), builder.constant(start + kind.count))
        builder.loop(lower, upper, 1, [], follow, once=True)

    def _head(self, block: SSAValue, place: int, width: int) -> Columns:
        def take(segment: Segment) -> SSAValue:
            return self._builder.columns(block, place + segment.first, segment.count, segment.step)

        return Columns(width, take)

    def _follow(self, kind: Heads, head: SSAValue, columns: Columns) -> None:
        """All that uses a head of one kind, in the order of the body."""
        values: dict[SSAValue, Columns] = {kind.value: columns}
        for op in self._group.body.block.ops:
            if isinstance(op, schedule.YieldOp) or not op.operands or op.operands[0] not in values:
                continue
            x = values[op.operands[0]]
            if isinstance(op, schedule.CacheWriteOp):
                self._write(op, head, x)
            else:
                values[op.results[0]] = self._function(op, x)
        for index, value in enumerate(self._group.yielded):
            if value in values:
                self._store(index, head, values[value])

    def _function(self, op: Operation, x: Columns) -> Columns:
        if isinstance(op, graph.RmsNormOp):
            return self._functions.rms_norm(op, x, None if op.weight is None else self._weight(op.weight))
        if isinstance(op, graph.RopeOp):
            return self._functions.rope(op, x, self._table(op.cos), self._table(op.sin))
        if isinstance(op, schedule.CopyOp):
            return x
        raise UnsupportedOperation(f"{op.name} does not follow a product head by head. Report the model.")

    def _weight(self, value: SSAValue) -> Columns:
        builder, buffer = self._builder, self._builder.buffers[resolve_static(value).index]

        def take(segment: Segment) -> SSAValue:
            zero, column = builder.constant(0), builder.constant(segment.first)
            return builder.load(buffer, zero, column, (1, segment.count), lane_step=segment.step)

        return Columns(type_of(value).get_shape()[0], take)

    def _table(self, value: SSAValue) -> Columns:
        """A value with a row for each token."""
        builder, rows = self._builder, self._rows
        base, view = resolve_view(value)
        (lane,) = view.strides

        def take(segment: Segment) -> SSAValue:
            return builder.load(
                builder.buffers[base.index],
                rows.first,
                builder.constant(view.offset + segment.first * lane),
                (rows.count, segment.count),
                limit=rows.limit,
                row_step=1,
                lane_step=segment.step * lane,
            )

        return Columns(view.shape[0], take)

    def _write(self, op: schedule.CacheWriteOp, head: SSAValue, x: Columns) -> None:
        places = places_of(self._builder, op, self._rows.first, self._rows.count, self._rows.limit)
        pieces = [Piece(x.take(segment), segment.first, segment.step) for segment in x.segments]
        write_head(self._builder, self._arguments, op, places, head, pieces)

    def _store(self, index: int, head: SSAValue, x: Columns) -> None:
        builder, rows = self._builder, self._rows
        buffer = builder.buffers[self._arguments.result_parameter(index)]
        start = builder.index("mul", head, x.width)
        for segment in x.segments:
            column = builder.index("add", start, segment.first)
            builder.store(
                x.take(segment), buffer, rows.first, column, limit=rows.limit, row_step=1, lane_step=segment.step
            )
