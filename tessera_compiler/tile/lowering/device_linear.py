"""Lowers groups of kind `linear` for a device: a block of tokens by a block of outputs, in rounds over the columns,
then what follows element by element."""

from __future__ import annotations

from xdsl.ir import BlockArgument, Operation, SSAValue

from tessera_compiler.errors import UnsupportedOperation
from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.passes.plan_device_tiles import DeviceBlocking
from tessera_compiler.schedule.passes.plan_tiles import output_panels
from tessera_compiler.schedule.physical import PANEL
from tessera_compiler.schedule.views import VIEW_OPERATIONS
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.context import resolve_static, resolve_view
from tessera_compiler.tile.lowering.device_context import DeviceArguments
from tessera_compiler.tile.lowering.elementwise import emit_elementwise, scalar
from tessera_compiler.tile.lowering.quantizing import quantize_group


def lower_device_linear(
    group: schedule.GroupOp, arguments: DeviceArguments, symbol: str, blocking: DeviceBlocking
) -> tile.KernelOp:
    return _DeviceLinearLowering(group, arguments, symbol, blocking).run()


class _DeviceLinearLowering:
    """The two sides of a gate are parts of one product: their sums are made in the same rounds, side by side."""

    def __init__(
        self, group: schedule.GroupOp, arguments: DeviceArguments, symbol: str, blocking: DeviceBlocking
    ) -> None:
        self._group, self._arguments, self._blocking = group, arguments, blocking
        self._product = next(op for op in group.body.block.ops if isinstance(op, schedule.MatmulOp))
        self._parts = [op for op in group.body.block.ops if _is_part(op, self._product)]
        rows = rows_of(type_of(self._product.result)) or "T"
        self._depth = type_of(self._product.arguments[1]).get_shape()[1]
        grid: list[str | int] = [f"{rows}/{blocking.rows}", output_panels(group) * PANEL // blocking.outputs]
        self._builder = builder = KernelBuilder(symbol, grid, arguments.buffers)
        self._first_row = builder.index("mul", builder.program_id(0), blocking.rows)
        self._first_output = builder.index("mul", builder.program_id(1), blocking.outputs)
        limit = builder.tokens if rows == "T" else builder.logit_rows
        self._count = builder.index("sub", limit, self._first_row)
        self._zero = builder.constant(0)
        self._values: dict[SSAValue, SSAValue] = {}

    def run(self) -> tile.KernelOp:
        columns: dict[SSAValue, SSAValue] = {}
        for op in self._group.body.block.ops:
            if isinstance(op, schedule.YieldOp):
                break
            if isinstance(op, graph.ConstantOp):
                self._values[op.result] = self._builder.full(scalar(op))
            elif op is self._product:
                self._multiply()
            elif isinstance(op, schedule.QuantizeOp):
                columns.update(self._quantize(op))
            elif not isinstance(op, VIEW_OPERATIONS):
                tiles = [self._operand(operand) for operand in op.operands]
                self._values[op.results[0]] = emit_elementwise(self._builder, op, tiles)
        for index, value in enumerate(self._group.yielded):
            self._builder.store_block(
                self._values[value],
                self._builder.buffers[self._arguments.result_parameter(index)],
                self._first_row,
                columns.get(value, self._first_output),
                count=self._count,
                row_step=1,
                lane_step=1,
            )
        return self._builder.finish()

    def _multiply(self) -> None:
        starts = [part.values["start"] for part in self._parts] or [0]
        multiply = self._plain if len(self._product.arguments) == 2 else self._quantized
        results = [part.results[0] for part in self._parts] or [self._product.result]
        firsts = [self._builder.index("add", self._first_output, start) for start in starts]
        self._values.update(zip(results, multiply(firsts), strict=True))

    def _quantize(self, op: schedule.QuantizeOp) -> dict[SSAValue, SSAValue]:
        """Where the scales and sums go, which are one for each group of columns; a block is one group."""
        rounded, scale, total = quantize_group(self._builder, self._operand(op.x))
        self._values.update(zip(op.results, (rounded, scale, total), strict=True))
        number = self._builder.index("div", self._first_output, op.group.value.data)
        return {op.scale: number, op.sum: number}

    def _operand(self, value: SSAValue) -> SSAValue:
        if value not in self._values:
            static = rows_of(type_of(value)) is None
            self._values[value] = (
                self._static(value, self._first_output)
                if static
                else self._rows(value, self._first_output, self._blocking.outputs)
            )
        return self._values[value]

    def _static(self, value: SSAValue, first: SSAValue) -> SSAValue:
        """Of a vector what belongs to the outputs from `first` on; of a number that."""
        shape = type_of(value).get_shape()
        buffer = self._builder.buffers[resolve_static(value).index]
        if not shape or shape[-1] == 1:
            return self._builder.load(buffer, self._zero, self._zero, (1, 1))
        return self._builder.load(buffer, self._zero, first, (1, self._blocking.outputs))

    def _rows(self, value: SSAValue, column: SSAValue, columns: int) -> SSAValue:
        base, view = resolve_view(value)
        return self._builder.load_block(
            self._builder.buffers[base.index],
            self._first_row,
            self._builder.index("add", column, view.offset),
            (self._blocking.rows, columns),
            count=self._count,
            row_step=1,
            lane_step=1,
        )

    def _weights(self, value: SSAValue, first: SSAValue, column: SSAValue, depth: int) -> SSAValue:
        """`[depth, outputs]` of a matrix that lies as `[outputs, columns]`."""
        assert isinstance(value, BlockArgument)
        shape = (depth, self._blocking.outputs)
        return self._builder.load_block(
            self._builder.buffers[value.index], first, column, shape, column_step=1, lane_row_step=1
        )

    def _plain(self, firsts: list[SSAValue]) -> list[SSAValue]:
        builder = self._builder
        x, weight = self._product.arguments

        def add(column: SSAValue, depth: int, sums: list[SSAValue]) -> list[SSAValue]:
            left = self._rows(x, column, depth)
            rights = [self._weights(weight, first, column, depth) for first in firsts]
            return [builder.dot(left, right, each) for right, each in zip(rights, sums, strict=True)]

        step = self._blocking.depth
        whole = self._depth // step * step
        sums = [builder.full(0.0, (self._blocking.rows, self._blocking.outputs)) for _ in firsts]
        if whole:
            end = builder.constant(whole)
            sums = builder.loop(self._zero, end, step, sums, lambda column, carried: add(column, step, carried))
        if self._depth % step:
            sums = add(builder.constant(whole), self._depth % step, sums)
        return sums

    def _quantized(self, firsts: list[SSAValue]) -> list[SSAValue]:
        """The sum over groups of columns of exact products times the group's scale, times the outputs' scales."""
        builder = self._builder
        x, weight, scale, _, scales, *parts = self._product.arguments
        if parts:
            raise UnsupportedOperation("weights of four bits are not lowered for devices; pack with int8 or bf16")
        assert self._product.group is not None
        group = self._product.group.value.data
        shape = (self._blocking.rows, self._blocking.outputs)

        def add(number: SSAValue, column: SSAValue, depth: int, sums: list[SSAValue]) -> list[SSAValue]:
            left, factor = self._rows(x, column, depth), self._rows(scale, number, 1)
            result = []
            for first, each in zip(firsts, sums, strict=True):
                right = builder.cast(self._weights(weight, first, column, depth), "i8")
                exact = builder.dot(left, right, builder.full(0, shape, "i32"))
                result.append(builder.binary("add", each, builder.binary("mul", builder.cast(exact, "f32"), factor)))
            return result

        whole = self._depth // group
        sums = [builder.full(0.0, shape) for _ in firsts]
        if whole:
            sums = builder.loop(
                self._zero,
                builder.constant(whole),
                1,
                sums,
                lambda number, carried: add(number, builder.index("mul", number, group), group, carried),
            )
        if self._depth % group:
            sums = add(builder.constant(whole), builder.constant(whole * group), self._depth % group, sums)
        return [
            builder.binary("mul", each, self._static(scales, first)) for first, each in zip(firsts, sums, strict=True)
        ]


def _is_part(op: Operation, product: schedule.MatmulOp) -> bool:
    return isinstance(op, graph.SliceOp) and op.operands[0] is product.result
