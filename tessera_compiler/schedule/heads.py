"""Where heads lie in the rows of a linear map, for the maps whose kernels go on head by head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.ir import SSAValue

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.physical import PANEL, padded_rows

MOST_COLUMNS = 256
"""That a block of heads may have at least: the sums of all of them are held while it is computed."""


@dataclass(frozen=True)
class Heads:
    """`count` heads of `width` columns each, one after the other, in each row of `row`, from column `first` on."""

    value: SSAValue
    """They as a value: `[rows, count, width]`."""
    row: SSAValue
    first: int
    count: int
    width: int


def heads_of(value: SSAValue) -> Heads | None:
    """The heads that a value is, if it is just a view of neighbouring columns of a row as heads."""
    if not isinstance(value.owner, graph.ReshapeOp) or rows_of(type_of(value)) is None:
        return None
    row, first = value.owner.operands[0], 0
    if isinstance(row.owner, graph.SliceOp):
        chosen = row.owner.values
        if chosen["axis"] != 1 or chosen["step"] != 1:
            return None
        row, first = row.owner.operands[0], chosen["start"]
    shape = type_of(value).get_shape()
    if len(shape) != 3 or len(type_of(row).get_shape()) != 2:
        return None
    return Heads(value, row, first, shape[1], shape[2])


def columns_together(heads: Sequence[Heads]) -> int | None:
    """Of how many columns blocks are multiples that hold whole heads, if the heads of a map can be blocked at all: they
    are equally wide, start at multiples of their width, and not too wide blocks of whole panels fill the row."""
    widths = {each.width for each in heads}
    if len(widths) != 1:
        return None
    (width,) = widths
    together = math.lcm(width, PANEL)
    if together > MOST_COLUMNS or any(each.first % width for each in heads):
        return None
    if padded_rows(type_of(heads[0].row).get_shape()[1]) % together:
        return None
    return together


def heads_in(group: schedule.GroupOp) -> tuple[Heads, ...]:
    """The heads that a group of kind `linear` goes on with, in the order of its ops; none if it does not."""
    found = []
    if group.kind.data == "linear":
        for op in group.body.block.ops:
            heads = heads_of(op.results[0]) if isinstance(op, graph.ReshapeOp) else None
            if heads is not None:
                found.append(heads)
    return tuple(found)
