"""Lowers groups of kind `linear`: a block of tokens by a block of outputs, all of k, then what follows element by element."""

from __future__ import annotations

from xdsl.ir import BlockArgument, SSAValue

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.physical import PACKED
from tessera_compiler.schedule.passes.plan_tiles import Blocking
from tessera_compiler.schedule.views import VIEW_OPERATIONS
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.context import GroupArguments, resolve_view
from tessera_compiler.tile.lowering.elementwise import emit_elementwise, scalar


def lower_linear(group: schedule.GroupOp, arguments: GroupArguments, symbol: str, blocking: Blocking) -> tile.KernelOp:
    product = next(op for op in group.body.block.ops if isinstance(op, schedule.MatmulOp))
    rows = rows_of(type_of(product.result))
    weight = product.arguments[1]
    assert isinstance(weight, BlockArgument)
    panels, groups, _, packed = arguments.buffers[weight.index].get_shape()
    assert packed in PACKED.values()
    grid = [rows if blocking.rows == 1 else f"{rows}/{blocking.rows}", panels // blocking.panels]
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
        assert isinstance(value, BlockArgument)
        shape = type_of(value).get_shape()
        columns = 1 if not shape or shape[-1] == 1 else width
        return builder.load(builder.buffers[value.index], zero, zero if columns == 1 else first_output, (1, columns))

    values: dict[SSAValue, SSAValue] = {}
    for op in group.body.block.ops:
        if isinstance(op, schedule.YieldOp):
            break
        if isinstance(op, VIEW_OPERATIONS):
            continue
        if isinstance(op, graph.ConstantOp):
            values[op.result] = builder.full(scalar(op))
        elif op is product:
            left = load_rows(op.arguments[0], zero, depth)
            right = builder.load_packed(builder.buffers[weight.index], first_output, zero, (depth, width))
            values[op.result] = builder.dot(left, right)
            if len(op.arguments) == 5:
                _, _, scale, total, scales = op.arguments
                offset = builder.binary("mul", load_rows(total, zero, 1), schedule.ZERO_POINT)
                exact = builder.cast(builder.binary("sub", values[op.result], offset), "f32")
                factor = builder.binary("mul", load_rows(scale, zero, 1), load_outputs(scales))
                values[op.result] = builder.binary("mul", exact, factor)
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
