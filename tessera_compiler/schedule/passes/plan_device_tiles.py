"""Decides how linear maps are blocked on each device, by the number of tokens in a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xdsl.dialects.builtin import DictionaryAttr, IntegerAttr, ModuleOp, StringAttr, i64

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.device_blocking import (
    TURNED,
    DeviceBlocking,
    broken_rule,
    default_device_blocking,
    device_layout,
    device_schedule_key,
    form_of_product,
    splits_of,
)
from tessera_compiler.schedule.linear_maps import (
    blockings_as_attribute,
    blockings_in,
    linear_groups,
    mark_tuned,
    matmul_in,
)
from tessera_compiler.schedule.passes.plan_tiles import output_panels, panels_together
from tessera_compiler.schedule.physical import PANEL
from tessera_compiler.schedule.tuned_cache import InvalidTuning


@dataclass(frozen=True)
class LayOutForDevices:
    """weight in panels --> the same weight as devices read it (`matrix`, `matrix_signed`, `matrix4`, `columns4`), named
    `<name>.<layout>`."""

    def apply(self, module: ModuleOp) -> None:
        renamed: dict[str, str] = {}
        weights = [op for op in entry_function(module).body.block.ops if isinstance(op, schedule.WeightOp)]
        for op in weights:
            layout = device_layout(op)
            if layout is not None:
                renamed[op.weight_name.data] = f"{op.weight_name.data}.{layout}"
                op.layout = StringAttr(layout)
        for op in weights:
            if op.weight_name.data in renamed:
                op.weight_name = StringAttr(renamed[op.weight_name.data])
            if op.scales_of is not None and op.scales_of.data in renamed:
                op.scales_of = StringAttr(renamed[op.scales_of.data])


@dataclass(frozen=True)
class PlanDeviceTiles:
    """group "linear" --> group "linear" with `tiles`: from `tuned` (see `device_schedule_key`) where it has an entry,
    else a safe default; and with `splits`, where the columns of its product are cut into parts."""

    targets: tuple[str, ...]
    tuned: Mapping[str, tuple[DeviceBlocking, ...]] = field(default_factory=dict)

    def apply(self, module: ModuleOp) -> None:
        for group in linear_groups(module):
            product = matmul_in(group)
            outputs, depth = type_of(product.arguments[1]).get_shape()
            form = form_of_product(product)
            parts = max(1, sum(isinstance(op, graph.SliceOp) for op in group.body.block.ops))
            together, panels = panels_together(group), output_panels(group)
            chosen, splits, measured = {}, {}, []
            for name in self.targets:
                count = splits_of(name, form, panels, depth, parts=parts, together=together)
                default = default_device_blocking(
                    name, form, panels, depth, parts=parts, together=together, splits=count
                )
                key = device_schedule_key(name, form, outputs, depth, parts, together, count)
                entry = self.tuned.get(key)
                if entry is not None:
                    measured.append(name)
                    _check(entry, key, name, form, panels, together, default)
                chosen[name] = blockings_as_attribute(entry or default)
                if count > 1:
                    splits[name] = IntegerAttr(count, i64)
            group.tiles = DictionaryAttr(chosen)
            group.splits = DictionaryAttr(splits) if splits else None
            mark_tuned(group, measured)


def _check(
    entry: tuple[DeviceBlocking, ...],
    key: str,
    target: str,
    form: str,
    panels: int,
    together: int,
    default: tuple[DeviceBlocking, ...],
) -> None:
    """Raises `InvalidTuning` unless blocks divide the outputs, hold whole groups, and add as the default does."""
    for each in entry:
        if panels * PANEL % each.outputs or (together > 1 and each.outputs != together * PANEL):
            raise InvalidTuning(
                f"the tuned schedule {key!r} has blocks of {each.outputs} outputs, which do not fit {panels * PANEL} "
                f"outputs in groups of {together * PANEL}. Tune again, or remove the entry."
            )
    # The default stands for how the product is added without the entry.
    rule = broken_rule(target, form, entry if form not in TURNED else (*entry, *default))
    if rule is not None:
        raise InvalidTuning(
            f"the tuned schedule {key!r} would change results: {rule}. Tune again, or remove the entry."
        )


def device_blockings_of(group: schedule.GroupOp, target: str) -> tuple[DeviceBlocking, ...]:
    """The blockings of a planned group for one target."""
    return tuple(DeviceBlocking(*numbers) for numbers in blockings_in(group, target))


def device_splits_of(group: schedule.GroupOp, target: str) -> int:
    """Into how many parts the columns of a planned group's product are cut on one target."""
    entry = group.splits.data.get(target) if group.splits is not None else None
    return entry.value.data if isinstance(entry, IntegerAttr) else 1
