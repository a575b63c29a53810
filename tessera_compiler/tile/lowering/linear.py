"""Lowers groups of kind `linear`: a block of tokens by a block of outputs, all of k, then what follows element by
element or head by head."""

from __future__ import annotations

import math
from collections.abc import Callable

from xdsl.ir import BlockArgument, SSAValue

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.base import GraphOp
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.heads import heads_in
from tessera_compiler.schedule.linear_maps import matmul_in
from tessera_compiler.schedule.passes.plan_tiles import Blocking, output_panels
from tessera_compiler.schedule.physical import PACKED, PANEL
from tessera_compiler.schedule.views import VIEW_OPERATIONS
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.context import GroupArguments, resolve_static, resolve_view
from tessera_compiler.tile.lowering.elementwise import emit_elementwise, is_elementwise, scalar
from tessera_compiler.tile.lowering.heads import TokenRows, store_heads
from tessera_compiler.tile.lowering.quantizing import quantize_group


def lower_linear(group: schedule.GroupOp, arguments: GroupArguments, symbol: str, blocking: Blocking) -> tile.KernelOp:
    return _LinearLowering(group, arguments, symbol, blocking).run()


class _LinearLowering:
    """A block of outputs is computed piece by piece: all of it, or one group of columns that share a scale or a peak.
    If it is heads, it is computed at once, and what follows is done for one of them after the other.

    Values are asked for, with their place relative to the block's first output: the two sides of a gate are parts of
    one product, at different places.
    """

    def __init__(self, group: schedule.GroupOp, arguments: GroupArguments, symbol: str, blocking: Blocking):
        self._group = group
        self._arguments = arguments
        self._product = matmul_in(group)
        self._quantize = next((op for op in group.body.block.ops if isinstance(op, schedule.QuantizeOp)), None)
        self._peaks = next((op for op in group.body.block.ops if isinstance(op, schedule.PeaksOp)), None)
        weight = self._product.arguments[1]
        assert isinstance(weight, BlockArgument)
        _, groups, _, packed = arguments.buffers[weight.index].get_shape()
        assert packed in PACKED.values()
        rows = rows_of(type_of(self._product.result)) or "T"
        self._shape = (blocking.rows, blocking.panels * PANEL)
        self._depth = groups * packed
        self._ahead = bool(blocking.ahead)
        self._part_width = output_panels(group) * PANEL
        self._width = self._shape[1]
        grid: list[str | int] = [
            rows if blocking.rows == 1 else f"{rows}/{blocking.rows}",
            output_panels(group) // blocking.panels,
        ]
        builder = self._builder = KernelBuilder(symbol, grid, arguments.buffers)
        self._weight = builder.buffers[weight.index]
        self._limit = None
        if blocking.rows > 1:
            self._limit = builder.tokens if rows == "T" else builder.logit_rows
        self._first_row = builder.index("mul", builder.program_id(0), blocking.rows)
        self._first_output = builder.index("mul", builder.program_id(1), self._shape[1])
        self._zero = builder.constant(0)
        self._values: dict[tuple[SSAValue, int], SSAValue] = {}

    def run(self) -> tile.KernelOp:
        width = self._shape[1]
        heads = heads_in(self._group)
        if heads:
            block = self._value(heads[0].row, 0)
            first = self._builder.index("mul", self._builder.program_id(1), width // heads[0].width)
            rows = TokenRows(self._first_row, self._shape[0], self._limit)
            store_heads(self._group, self._arguments, self._builder, rows, block, first)
            return self._builder.finish()
        grouping = self._quantize or self._peaks
        piece = width if grouping is None else grouping.group.value.data
        self._shape = (self._shape[0], piece)
        for place in range(0, width, piece):
            self._values.clear()
            for index, value in enumerate(self._group.yielded):
                if grouping is None or value not in grouping.results:
                    self._store(self._value(value, place), index, self._column(place))
            if self._quantize is not None:
                self._store_quantized(self._quantize, place)
            if self._peaks is not None:
                self._store_peaks(self._peaks, place)
        return self._builder.finish()

    def _column(self, place: int) -> SSAValue:
        return self._builder.index("add", self._first_output, place)

    def _store(self, value: SSAValue, result: int, column: SSAValue) -> None:
        buffer = self._builder.buffers[self._arguments.result_parameter(result)]
        self._builder.store(value, buffer, self._first_row, column, limit=self._limit, row_step=1)

    def _store_quantized(self, op: schedule.QuantizeOp, place: int) -> None:
        builder = self._builder
        rounded, scale, total = quantize_group(builder, self._value(op.x, place))
        column = self._column(place)
        number = builder.index("div", column, op.group.value.data)
        for result, value, at in zip(
            op.results, (builder.cast(rounded, "i8"), scale, total), (column, number, number), strict=True
        ):
            if result in self._group.yielded:
                self._store(value, self._group.yielded.index(result), at)

    def _store_peaks(self, op: schedule.PeaksOp, place: int) -> None:
        builder = self._builder
        value, column = self._value(op.x, place), self._column(place)
        columns = type_of(op.x).get_shape()[-1]
        if columns % self._shape[1]:
            inside = builder.compare("less", builder.iota(column, self._shape[1]), builder.full(columns, element="i32"))
            value = builder.select(inside, value, builder.full(-math.inf))
        number = builder.index("div", column, self._shape[1])
        self._store(builder.reduce("max", value), self._group.yielded.index(op.result), number)

    def _value(self, value: SSAValue, place: int) -> SSAValue:
        """The tile of a value of the body, from the column `place` past the block's first output on."""
        key = (value, place)
        if key not in self._values:
            self._values[key] = self._compute(value, place)
        return self._values[key]

    def _compute(self, value: SSAValue, place: int) -> SSAValue:
        op = value.owner
        if isinstance(op, graph.ConstantOp):
            return self._builder.full(scalar(op))
        if rows_of(type_of(value)) is None and not (isinstance(op, GraphOp) and is_elementwise(op)):
            return self._load_outputs(value, place)
        if op is self._product:
            return self._multiply(place)
        if isinstance(op, VIEW_OPERATIONS) and self._is_made_here(op.operands[0]):
            return self._value(op.operands[0], place + op.values["start"])
        if not isinstance(op, GraphOp) or isinstance(op, VIEW_OPERATIONS):
            return self._load_rows(value, self._column(place), self._shape[1])
        return emit_elementwise(self._builder, op, [self._value(operand, place) for operand in op.operands])

    def _is_made_here(self, value: SSAValue) -> bool:
        return isinstance(value.owner, GraphOp) and not isinstance(value.owner, VIEW_OPERATIONS)

    def _load_rows(self, value: SSAValue, column: SSAValue, columns: int) -> SSAValue:
        base, view = resolve_view(value)
        start = self._builder.index("add", column, view.offset)
        buffer = self._builder.buffers[base.index]
        shape = (self._shape[0], columns)
        return self._builder.load(buffer, self._first_row, start, shape, limit=self._limit, row_step=1)

    def _load_outputs(self, value: SSAValue, place: int) -> SSAValue:
        shape = type_of(value).get_shape()
        buffer = self._builder.buffers[resolve_static(value).index]
        if not shape or shape[-1] == 1:
            return self._builder.load(buffer, self._zero, self._zero, (1, 1))
        return self._builder.load(buffer, self._zero, self._column(place), (1, self._shape[1]))

    def _multiply(self, place: int) -> SSAValue:
        builder, op = self._builder, self._product
        first_output = self._column(place)
        ahead = self._width - place % self._part_width - self._shape[1] if self._ahead else None
        if len(op.arguments) == 2:
            left = self._load_rows(op.arguments[0], self._zero, self._depth)
            right = builder.load_packed(
                self._weight, first_output, self._zero, (self._depth, self._shape[1]), ahead=ahead
            )
            return builder.dot(left, right)
        if len(op.arguments) == 7:
            parts = [builder.buffers[resolve_static(part).index] for part in op.arguments[5:]]
            weight = [self._weight, *parts]
            sums = _int4_product(builder, op, self._depth, self._shape, self._load_rows, weight, first_output, ahead)
        else:
            sums = _quantized_product(
                builder, op, self._depth, self._shape, self._load_rows, self._weight, first_output, ahead
            )
        return builder.binary("mul", sums, self._load_outputs(op.arguments[4], place))


def _quantized_product(
    builder: KernelBuilder,
    op: schedule.MatmulOp,
    depth: int,
    shape: tuple[int, int],
    load_rows: Callable[[SSAValue, SSAValue, int], SSAValue],
    weight: SSAValue,
    first_output: SSAValue,
    ahead: int | None,
) -> SSAValue:
    """The sum over groups of columns of exact products times the group's scale."""
    x, _, scale, total, _ = op.arguments
    assert op.group is not None
    group = op.group.value.data

    def add_group(number: SSAValue, start: SSAValue, count: int, sums: SSAValue) -> SSAValue:
        # Weights are stored from 0 to 255: what that adds to the product is known from the row alone, and is where it
        # starts.
        offset = builder.binary("mul", load_rows(total, number, 1), -schedule.ZERO_POINT)
        start_value = builder.binary("add", builder.full(0, shape, "i32"), offset)
        right = builder.load_packed(weight, first_output, start, (count, shape[1]), ahead=ahead)
        exact = builder.dot(load_rows(x, start, count), right, start_value)
        return builder.binary(
            "add", sums, builder.binary("mul", builder.cast(exact, "f32"), load_rows(scale, number, 1))
        )

    def body(number: SSAValue, carried: list[SSAValue]) -> list[SSAValue]:
        return [add_group(number, builder.index("mul", number, group), group, carried[0])]

    whole = depth // group
    sums = builder.full(0.0, shape)
    if whole:
        (sums,) = builder.loop(builder.constant(0), builder.constant(whole), 1, [sums], body)
    if depth % group:
        sums = add_group(builder.constant(whole), builder.constant(whole * group), depth % group, sums)
    return sums


def _int4_product(
    builder: KernelBuilder,
    op: schedule.MatmulOp,
    depth: int,
    shape: tuple[int, int],
    load_rows: Callable[[SSAValue, SSAValue, int], SSAValue],
    weight: list[SSAValue],
    first_output: SSAValue,
    ahead: int | None,
) -> SSAValue:
    """The sum over groups of columns of exact products times the two scales of the group. `weight` is the numbers, and
    the scales and zeros of their groups."""
    x, _, scale, total = op.arguments[:4]
    numbers, scales, zeros = weight
    assert op.group is not None
    group = op.group.value.data

    def add_group(number: SSAValue, start: SSAValue, count: int, sums: SSAValue) -> SSAValue:
        def of_group(buffer: SSAValue) -> SSAValue:
            return builder.cast(builder.load_packed(buffer, first_output, number, (1, shape[1]), ahead=ahead), "f32")

        exact = builder.dot(
            load_rows(x, start, count),
            builder.load_packed(numbers, first_output, start, (count, shape[1]), ahead=ahead),
        )
        # In sixteenths of a whole number, and few enough of them that float32 holds each step of this exactly.
        parts = builder.binary("mul", builder.cast(load_rows(total, number, 1), "f32"), 1 / schedule.ZERO_PARTS)
        centred = builder.binary("sub", builder.cast(exact, "f32"), builder.binary("mul", of_group(zeros), parts))
        scaled = builder.binary("mul", centred, load_rows(scale, number, 1))
        return builder.binary("add", sums, builder.binary("mul", scaled, of_group(scales)))

    def body(number: SSAValue, carried: list[SSAValue]) -> list[SSAValue]:
        return [add_group(number, builder.index("mul", number, group), group, carried[0])]

    whole = depth // group
    sums = builder.full(0.0, shape)
    if whole:
        (sums,) = builder.loop(builder.constant(0), builder.constant(whole), 1, [sums], body)
    if depth % group:
        sums = add_group(builder.constant(whole), builder.constant(whole * group), depth % group, sums)
    return sums
