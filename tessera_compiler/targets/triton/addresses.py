"""Where the elements of a tile lie in memory, as Triton source."""

from __future__ import annotations

from collections.abc import Mapping

from xdsl.dialects.builtin import MemRefType
from xdsl.ir import SSAValue

from tessera_compiler.targets.triton.expressions import inside, padded, times
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.types import element_name, shape_of

Access = tile.LoadOp | tile.LoadBlockOp | tile.StoreOp | tile.StoreBlockOp
Names = Mapping[SSAValue, str]
"""What values are called in the source."""

BYTES_MULTIPLIED = ("i8", "f8_e4m3")
"""Elements of which products take 32 columns at least, twice those of larger ones."""


def tile_address(op: Access, value: SSAValue, names: Names, least: int) -> tuple[str, list[str]]:
    """The pointers of a tile, and on what conditions they may be followed; axes of more than one element have `least`
    at least, those along which products of bytes are added twice that."""
    rows, columns = shape_of(value.type)
    least_rows, least_columns = (2 * least if axis in _added_axes(value) else least for axis in range(2))
    type_ = op.buffer.type
    assert isinstance(type_, MemRefType)
    stride = type_.get_shape()[1]
    period, lane_row_step = 0, 0
    if isinstance(op, tile.LoadBlockOp | tile.StoreBlockOp):
        period, lane_row_step = op.steps["period"], op.steps["lane_row_step"]
    row_step, column_step, lane_step = (each.value.data for each in (op.row_step, op.column_step, op.lane_step))
    lane_stride = lane_step + lane_row_step * stride
    offsets, conditions = [address(names, op.buffer, op.row, op.column, stride)], []
    if rows > 1:
        numbers = f"tl.arange(0, {padded(rows, least_rows)})"
        if not period:
            offsets.append(times(f"{numbers}[:, None]", row_step * stride + column_step))
        else:
            offsets.append(times(f"({numbers} // {period})[:, None]", row_step * stride))
            offsets.append(times(f"({numbers} % {period})[:, None]", column_step))
    if columns > 1:
        offsets.append(times(f"tl.arange(0, {padded(columns, least_columns)})[None, :]", lane_stride))
    if not all(offsets) or len(offsets) == 1:
        offsets.append(f"tl.zeros(({padded(rows, least_rows)}, {padded(columns, least_columns)}), tl.int32)")
    if padded(rows, least_rows) != rows:
        conditions.append(inside(rows, 0, least_rows))
    if padded(columns, least_columns) != columns:
        conditions.append(inside(columns, 1, least_columns))
    bound = _bound(op, padded(rows, least_rows), names)
    if bound:
        conditions.append(bound)
    return " + ".join(offset for offset in offsets if offset), conditions


def _added_axes(value: SSAValue) -> set[int]:
    """Along which axes products of these bytes are added."""
    if element_name(value.type) not in BYTES_MULTIPLIED:
        return set()
    axes = set()
    for use in value.uses:
        if isinstance(use.operation, tile.DotOp) and use.index < 2:
            axes.add(1 - use.index)
        elif isinstance(use.operation, tile.TransposeOp):
            axes |= {1 - axis for axis in _added_axes(use.operation.result)}
    return axes


def _bound(op: Access, rows: int, names: Names) -> str:
    numbers = f"tl.arange(0, {rows})"
    if isinstance(op, tile.LoadBlockOp | tile.StoreBlockOp):
        return "" if op.count is None else f"({numbers} < {names[op.count]})[:, None]"
    if op.limit is None:
        return ""
    step = op.row_step.value.data
    return f"({names[op.row]} + {times(numbers, step) or '0'} < {names[op.limit]})[:, None]"


def address(names: Names, buffer: SSAValue, row: SSAValue, column: SSAValue, stride: int) -> str:
    """The address of the first element; rows count in 64 bits."""
    at, first = names[row], names[column]
    terms = [names[buffer]]
    if at.isdigit():
        start = int(at) * stride + (int(first) if first.isdigit() else 0)
        terms += [str(start)] if start else []
        terms += [] if first.isdigit() else [first]
    else:
        terms.append(f"tl.cast({at}, tl.int64) * {stride}")
        terms += [] if first == "0" else [first]
    return " + ".join(terms)
