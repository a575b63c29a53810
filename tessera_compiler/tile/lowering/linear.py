"""Lowers groups of kind `linear`: a block of tokens by a block of outputs, all of k, then what follows element by
element."""

from __future__ import annotations

from collections.abc import Callable

from xdsl.ir import BlockArgument, SSAValue

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.passes.plan_tiles import Blocking
from tessera_compiler.schedule.physical import PACKED
from tessera_compiler.schedule.views import VIEW_OPERATIONS
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.context import GroupArguments, resolve_static, resolve_view
from tessera_compiler.tile.lowering.elementwise import emit_elementwise, scalar


def lower_linear(group: schedule.GroupOp, arguments: GroupArguments, symbol: str, blocking: Blocking) -> tile.KernelOp:
    product = next(op for op in group.body.block.ops if isinstance(op, schedule.MatmulOp))
    rows = rows_of(type_of(product.result)) or "T"
    weight = product.arguments[1]
    assert isinstance(weight, BlockArgument)
    panels, groups, _, packed = arguments.buffers[weight.index].get_shape()
    assert packed in PACKED.values()
    grid: list[str | int] = [rows if blocking.rows == 1 else f"{rows}/{blocking.rows}", panels // blocking.panels]
    builder = KernelBuilder(symbol, grid, arguments.buffers)
    block_rows, width, depth = blocking.rows, blocking.panels * 16, groups * packed
    limit = None
    if block_rows > 1:
        limit = builder.tokens if rows == "T" else builder.logit_rows
    first_row = builder.index("mul", builder.program_id(0), block_rows)
    first_output = builder.index("mul", builder.program_id(1), width)
    zero = builder.constant(0)

    def load_rows(value: SSAValue, column: SSAValue, columns: int) -> SSAValue:
        base, view = resolve_view(value)
        start = builder.index("add", column, view.offset)
        buffer = builder.buffers[base.index]
        return builder.load(buffer, first_row, start, (block_rows, columns), limit=limit, row_step=1)

    def load_outputs(value: SSAValue) -> SSAValue:
        shape = type_of(value).get_shape()
        columns = 1 if not shape or shape[-1] == 1 else width
        return builder.load(
            builder.buffers[resolve_static(value).index], zero, zero if columns == 1 else first_output, (1, columns)
        )

    values: dict[SSAValue, SSAValue] = {}
    for op in group.body.block.ops:
        if isinstance(op, schedule.YieldOp):
            break
        if isinstance(op, VIEW_OPERATIONS):
            continue
        if isinstance(op, graph.ConstantOp):
            values[op.result] = builder.full(scalar(op))
        elif op is product:
            packed_weight = builder.buffers[weight.index]
            if len(op.arguments) == 2:
                left = load_rows(op.arguments[0], zero, depth)
                values[op.result] = builder.dot(
                    left, builder.load_packed(packed_weight, first_output, zero, (depth, width))
                )
            else:
                sums = _quantized_product(
                    builder, op, depth, (block_rows, width), load_rows, packed_weight, first_output
                )
                values[op.result] = builder.binary("mul", sums, load_outputs(op.arguments[4]))
        else:
            for operand in op.operands:
                if operand not in values:
                    static = rows_of(type_of(operand)) is None
                    values[operand] = load_outputs(operand) if static else load_rows(operand, first_output, width)
            values[op.results[0]] = emit_elementwise(builder, op, [values[operand] for operand in op.operands])
    for index, value in enumerate(group.yielded):
        buffer = builder.buffers[arguments.result_parameter(index)]
        builder.store(values[value], buffer, first_row, first_output, limit=limit, row_step=1)
    return builder.finish()


def _quantized_product(
    builder: KernelBuilder,
    op: schedule.MatmulOp,
    depth: int,
    shape: tuple[int, int],
    load_rows: Callable[[SSAValue, SSAValue, int], SSAValue],
    weight: SSAValue,
    first_output: SSAValue,
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
        right = builder.load_packed(weight, first_output, start, (count, shape[1]))
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
