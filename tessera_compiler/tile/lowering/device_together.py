"""Groups of kind `rows` that one launch of a device computes: an instance sees by its place in the grid which of them
it belongs to.

They follow each other in one phase of the schedule. So none reads what another of them writes, and as places in memory
are shared between phases only, nothing that one of them reads or writes lies where another writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from xdsl.dialects.builtin import MemRefType, VectorType
from xdsl.ir import Attribute, SSAValue

from tessera_compiler.errors import UnsupportedOperation
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.passes.plan_phases import phases
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.context import CachePlan
from tessera_compiler.tile.lowering.device_context import DeviceArguments, integers
from tessera_compiler.tile.lowering.device_rows import FEEDBACK, lower_device_rows
from tessera_compiler.tile.lowering.lower import source_of, structure_of

MOST_INSTANCES = 65_535
"""Along an axis of a grid but the first."""


@dataclass(frozen=True)
class LoweredRows:
    """A group of kind `rows` with a kernel of its own."""

    group: schedule.GroupOp
    arguments: DeviceArguments
    kernel: tile.KernelOp

    @property
    def rows(self) -> str | int:
        """What the grid counts along its first axis."""
        return self.kernel.grid_entries[0]

    @property
    def instances(self) -> int:
        """For each row."""
        return math.prod(extent for extent in self.kernel.grid_entries[1:] if isinstance(extent, int))

    @property
    def warps(self) -> int:
        return warps_of(self.kernel)

    @property
    def parameters(self) -> list[object]:
        """What each parameter of the kernel is given: equal for equal ones, whatever the group."""
        given, results = list[SSAValue](self.group.inputs), list[SSAValue](self.group.results_)
        return [*given, *self.arguments.caches, *self.arguments.extras, *results]


class RowsOfGroups:
    """The groups of kind `rows` of a program, each with a kernel of its own; those that compute the same share it."""

    def __init__(self, groups: Sequence[schedule.GroupOp], plan: CachePlan) -> None:
        self._groups, self._plan = groups, plan
        self._kernels: dict[object, tile.KernelOp] = {}

    def of(self, number: int) -> LoweredRows:
        group = self._groups[number]
        arguments = rows_arguments(group, self._plan)
        key = structure_of(group, arguments)
        if key not in self._kernels:
            with blamed_on(group):
                self._kernels[key] = lower_device_rows(group, arguments, "alone")
        return LoweredRows(group, arguments, self._kernels[key])


@contextmanager
def blamed_on(group: schedule.GroupOp) -> Iterator[None]:
    """Says of what no kernel could be made."""
    try:
        yield
    except UnsupportedOperation as error:
        raise UnsupportedOperation(f"no kernel can be made of {source_of(group)}: {error}") from error


def rows_arguments(group: schedule.GroupOp, plan: CachePlan) -> DeviceArguments:
    looks_up = any(isinstance(op, schedule.LookupOp) for op in group.body.block.ops)
    return DeviceArguments.with_extras(group, plan, {FEEDBACK: integers()} if looks_up else {})


def warps_of(kernel: tile.KernelOp) -> int:
    """One for each 256 numbers of the largest tile, from 1 to 8."""
    types = [value.type for op in kernel.walk() for value in op.results]
    largest = max((math.prod(type_.get_shape()) for type_ in types if isinstance(type_, VectorType)), default=1)
    warps = 1
    while warps < 8 and warps * 256 < largest:
        warps *= 2
    return warps


def launched_together(groups: Sequence[schedule.GroupOp], rows: RowsOfGroups) -> list[tuple[int, ...]]:
    """The numbers of all groups, in order, those together that one launch computes."""
    phase_of = phases(list(groups))
    units: list[list[int]] = []
    for number, group in enumerate(groups):
        last = units[-1] if units else []
        neighbours = bool(last) and phase_of[last[0]] == phase_of[number]
        both = neighbours and {group.kind.data, groups[last[0]].kind.data} == {"rows"}
        if both and _fit([rows.of(each) for each in last], rows.of(number)):
            last.append(number)
        else:
            units.append([number])
    return [tuple(unit) for unit in units]


def _fit(unit: Sequence[LoweredRows], other: LoweredRows) -> bool:
    """Whether little is lost: no instance has more than twice the warps that it has use for, but for a single one to
    each row."""
    alike = all(each.rows == other.rows for each in unit)
    in_all = sum(each.instances for each in unit) + other.instances
    few = in_all == len(unit) + 1
    warps = [each.warps for each in (*unit, other)]
    return alike and in_all <= MOST_INSTANCES and (few or max(warps) <= 2 * min(warps))


def joined_parameters(unit: Sequence[LoweredRows]) -> tuple[tuple[int, ...], ...]:
    """For each group, which parameters of the kernel that they share are its own: they come one after the other, equal
    ones once."""
    numbers: dict[object, int] = {}
    return tuple(tuple(numbers.setdefault(key, len(numbers)) for key in each.parameters) for each in unit)


def join_rows(unit: Sequence[LoweredRows], symbol: str) -> tile.KernelOp:
    """One kernel for groups that fit together."""
    parameters = joined_parameters(unit)
    buffers: dict[int, MemRefType[Attribute]] = {}
    given: set[int] = set()
    for each, own in zip(unit, parameters, strict=True):
        buffers.update(zip(own, each.arguments.buffers, strict=True))
        given.update(own[index] for index in each.arguments.given)
    grid = [unit[0].rows, sum(each.instances for each in unit)]
    builder = KernelBuilder(symbol, grid, [buffers[number] for number in sorted(buffers)], sorted(given))
    row, at = builder.program_id(0), builder.program_id(1)
    bodies = [_inlined(builder, each, own, row) for each, own in zip(unit, parameters, strict=True)]
    builder.parts(at, [each.instances for each in unit], bodies)
    return builder.finish()


def _inlined(
    builder: KernelBuilder, rows: LoweredRows, parameters: Sequence[int], row: SSAValue
) -> Callable[[SSAValue], None]:
    def body(index: SSAValue) -> None:
        ids, below = [row], rows.instances
        extents = [extent for extent in rows.kernel.grid_entries[1:] if isinstance(extent, int)]
        for number, extent in enumerate(extents):
            below //= extent
            place = builder.index("div", index, below)
            ids.append(place if number == 0 else builder.index("rem", place, extent))
        builder.inline(rows.kernel, [builder.buffers[number] for number in parameters], ids)

    return body
