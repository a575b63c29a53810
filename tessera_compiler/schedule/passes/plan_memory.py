"""Gives every intermediate value its place in the arena."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects.builtin import ArrayAttr, IntegerAttr, ModuleOp, i64
from xdsl.dialects.func import ReturnOp
from xdsl.ir import SSAValue

from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.passes.plan_phases import lifetimes
from tessera_compiler.schedule.physical import row_bytes


@dataclass(frozen=True)
class PlanMemory:
    """Values whose lifetimes (in phases) overlap get disjoint places; the largest are placed first, each as
    low as it fits.

    Offsets are in bytes per row: the arena has one region for values with a row per token, then one for those with a
    row per wanted logit. Places are shared between phases only, because launches of one phase run at the same time.
    """

    def apply(self, module: ModuleOp) -> None:
        block = entry_function(module).body.block
        groups = [op for op in block.ops if isinstance(op, schedule.GroupOp)]
        end = block.last_op
        assert isinstance(end, ReturnOp)
        spans = lifetimes(groups, end.operands)
        order = {value: index for index, value in enumerate(spans)}
        placed: dict[SSAValue, int] = {}
        for value in sorted(spans, key=lambda v: (-row_bytes(type_of(v)), order[v])):
            placed[value] = _lowest_place(value, spans, placed)
        for group in groups:
            group.offsets = ArrayAttr([IntegerAttr(placed[result], i64) for result in group.results_])


def _lowest_place(value: SSAValue, spans: dict[SSAValue, tuple[int, int]], placed: dict[SSAValue, int]) -> int:
    first, last = spans[value]
    size = row_bytes(type_of(value))
    rows = rows_of(type_of(value))
    taken = sorted(
        (offset, offset + row_bytes(type_of(other)))
        for other, offset in placed.items()
        if rows_of(type_of(other)) == rows and spans[other][0] <= last and first <= spans[other][1]
    )
    place = 0
    for start, stop in taken:
        if place + size <= start:
            break
        place = max(place, stop)
    return place
