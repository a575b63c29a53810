"""Lowers `tile.columns`: sixteen columns, each from wherever in the tile it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llvmlite import ir

from tessera_compiler.targets.cpu.emission import LANES, i64, vector
from tessera_compiler.tile import dialect
from tessera_compiler.tile.types import element_name, shape_of

if TYPE_CHECKING:
    from tessera_compiler.targets.cpu.kernel_lowering import KernelEmitter, Position


def choose_columns(
    kernel: KernelEmitter, operation: dialect.ColumnsOp, row: Position, column: Position, lanes: int
) -> ir.Value:
    """The vector of columns `column`, `column + 1`, … of the result, of which the first `lanes` are wanted.

    Nothing moves between lanes where neighbours are chosen from a multiple of sixteen on.
    """
    first, step = operation.first.value.data, operation.step.value.data
    place: Position
    if isinstance(column, int):
        place, inside = divmod(first + column * step, LANES)
        place *= LANES
    else:
        # Sixteen results on lie sixteen steps on: as far inside their chunk.
        inside = first % LANES
        builder = kernel.emission.builder
        place = builder.add(builder.mul(column, i64(step)), i64(first - inside))
    sources = [divmod(inside + lane * step, LANES) for lane in range(lanes)]
    result: ir.Value | None = None
    for number in range(sources[-1][0] + 1):
        wanted = {lane: source for lane, (chunk, source) in enumerate(sources) if chunk == number}
        if not wanted:
            continue
        value = _chunk(kernel, operation, row, place, number, max(wanted.values()) + 1)
        if all(lane == source for lane, source in wanted.items()) and len(wanted) == lanes:
            return value
        if result is None:
            result = ir.Constant(vector(element_name(operation.result.type)), ir.Undefined)
        mask = [LANES + wanted[lane] if lane in wanted else lane for lane in range(LANES)]
        result = kernel.emission.shuffle(result, mask, value)
    assert result is not None, "at least one lane is wanted"
    return result


def _chunk(
    kernel: KernelEmitter, operation: dialect.ColumnsOp, row: Position, place: Position, number: int, lanes: int
) -> ir.Value:
    if isinstance(place, int):
        at: Position = place + number * LANES
        width = shape_of(operation.operand.type)[1]
        lanes = min(LANES, width - place - number * LANES)
    else:
        at = kernel.emission.builder.add(place, i64(number * LANES))
    return kernel.chunk(operation.operand, row, at, lanes)
