"""Decides between which launches all threads have to wait for each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.dialects.builtin import BoolAttr, ModuleOp
from xdsl.ir import SSAValue

from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.schedule import dialect as schedule


@dataclass(frozen=True)
class PlanPhases:
    """A group that reads a buffer or a cache written since the last barrier gets a barrier; the others run
    alongside.
    """

    def apply(self, module: ModuleOp) -> None:
        written: set[object] = set()
        for group in entry_function(module).body.block.ops:
            if not isinstance(group, schedule.GroupOp):
                continue
            reads: set[object] = {value for value in group.inputs if isinstance(value.owner, schedule.GroupOp)}
            caches_read, caches_written = caches_of(group)
            needs = bool((reads | caches_read) & written)
            group.barrier = BoolAttr.from_bool(needs)
            if needs:
                written.clear()
            written |= set(group.results_) | caches_written


def caches_of(group: schedule.GroupOp) -> tuple[set[object], set[object]]:
    """The caches that a group reads, and those that it writes, by number."""
    ops = list(group.body.block.ops)
    reads: set[object] = {op.cache.value.data for op in ops if isinstance(op, schedule.AttendOp)}
    writes: set[object] = {op.cache.value.data for op in ops if isinstance(op, schedule.CacheWriteOp)}
    return reads, writes


def phases(groups: list[schedule.GroupOp]) -> list[int]:
    """The phase of each group: how many barriers stand before it."""
    result, phase = [], 0
    for group in groups:
        phase += group.barrier is not None and bool(group.barrier.value.data)
        result.append(phase)
    return result


def lifetimes(groups: list[schedule.GroupOp], outputs: Sequence[SSAValue]) -> dict[SSAValue, tuple[int, int]]:
    """The first and the last phase in which each result of a group is needed; the program's outputs live to the end."""
    phase_of = phases(groups)
    spans: dict[SSAValue, tuple[int, int]] = {}
    for group, phase in zip(groups, phase_of, strict=True):
        for result in group.results_:
            spans[result] = (phase, phase)
        for value in group.inputs:
            if value in spans:
                spans[value] = (spans[value][0], phase)
    for output in outputs:
        spans[output] = (spans[output][0], phase_of[-1])
    return spans
