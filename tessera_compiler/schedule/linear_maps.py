"""The groups that linear maps became, and what all planning of their blocks does with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple
from typing import Any

from xdsl.dialects.builtin import ArrayAttr, IntegerAttr, ModuleOp, StringAttr, i64

from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.schedule import dialect as schedule


def linear_groups(module: ModuleOp) -> Iterator[schedule.GroupOp]:
    """Those of kind `linear`, in order."""
    for group in entry_function(module).body.block.ops:
        if isinstance(group, schedule.GroupOp) and group.kind.data == "linear":
            yield group


def matmul_in(group: schedule.GroupOp) -> schedule.MatmulOp:
    """The one product of such a group."""
    return next(op for op in group.body.block.ops if isinstance(op, schedule.MatmulOp))


def blockings_as_attribute(blockings: Iterable[Any]) -> ArrayAttr[ArrayAttr[IntegerAttr]]:  # type: ignore[type-arg]
    """Blockings, dataclasses of numbers, as `tiles` has them."""
    return ArrayAttr([ArrayAttr([IntegerAttr(number, i64) for number in astuple(each)]) for each in blockings])


def mark_tuned(group: schedule.GroupOp, names: Iterable[str]) -> None:
    """Says for which CPU classes or devices the blockings of a planned group were measured."""
    marked = [StringAttr(name) for name in names]
    group.tuned = ArrayAttr(marked) if marked else None


def tuned_for(group: schedule.GroupOp) -> tuple[str, ...]:
    """The CPU classes or devices for which the blockings of a planned group were measured."""
    marked = group.tuned.data if group.tuned is not None else ()
    return tuple(name.data for name in marked if isinstance(name, StringAttr))


def blockings_in(group: schedule.GroupOp, name: str) -> list[tuple[int, ...]]:
    """The numbers of the blockings of a planned group for one CPU class or device."""
    assert group.tiles is not None, "the tiles of a group are planned before it is lowered"
    entry = group.tiles.data[name]
    assert isinstance(entry, ArrayAttr)
    return [tuple(number.value.data for number in blocking.data) for blocking in entry.data]
