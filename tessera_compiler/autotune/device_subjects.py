"""Which products of a program there are to tune for a device."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.device_blocking import DeviceBlocking, device_schedule_key, form_of_product
from tessera_compiler.schedule.linear_maps import linear_groups, matmul_in
from tessera_compiler.schedule.passes.plan_device_tiles import PlanDeviceTiles, device_blockings_of, device_splits_of
from tessera_compiler.schedule.passes.plan_tiles import output_panels, panels_together
from tessera_compiler.tile.lowering.lower import source_of

_WEIGHT_BITS = {"f32": 32, "bf16": 16, "f16": 16, "u8": 8, "f8_e4m3": 8, "u4": 4}


@dataclass(frozen=True)
class DeviceSubject:
    """A shape of product, and of the groups that have it the one that is launched most."""

    key: str
    target: str
    form: str
    outputs: int
    depth: int
    panels: int
    """Of what the group makes: blocks are cut from them."""
    parts: int
    """Blocks of outputs that are computed side by side."""
    together: int
    """If more than 1, a block is just so many panels."""
    splits: int
    """Parts of the columns that are added up on their own."""
    defaults: tuple[DeviceBlocking, ...]
    rows: str
    """"T" or "L": what a step has of its rows."""
    group: schedule.GroupOp
    """A copy."""
    source: str
    launches: int
    """Of all groups of this shape, in one step."""
    weight_bytes: int
    """Of its matrix, about."""

    @property
    def work(self) -> int:
        """What tuning it is worth, against others: the bytes of weights that a step reads."""
        return self.launches * self.weight_bytes


def device_subjects_of(modules: Iterable[ModuleOp], target: str) -> list[DeviceSubject]:
    """The products of planned programs whose blocking can be chosen, the most worthwhile first.

    The modules are planned for the target anew, with nothing tuned.
    """
    by_key: dict[str, dict[str, list[schedule.GroupOp]]] = {}
    for module in modules:
        PlanDeviceTiles((target,)).apply(module)
        for group in linear_groups(module):
            body = " ".join(op.name for op in group.body.block.ops)
            by_key.setdefault(_key(group, target), {}).setdefault(body, []).append(group)
    found = [
        _subject(key, target, max(bodies.values(), key=len)[0], sum(map(len, bodies.values())))
        for key, bodies in by_key.items()
    ]
    return sorted(found, key=lambda subject: (-subject.work, subject.key))


def _subject(key: str, target: str, group: schedule.GroupOp, launches: int) -> DeviceSubject:
    product = matmul_in(group)
    weight = type_of(product.arguments[1])
    outputs, depth = weight.get_shape()
    return DeviceSubject(
        key=key,
        target=target,
        form=form_of_product(product),
        outputs=outputs,
        depth=depth,
        panels=output_panels(group),
        parts=_parts(group),
        together=panels_together(group),
        splits=device_splits_of(group, target),
        defaults=device_blockings_of(group, target),
        rows=rows_of(type_of(product.result)) or "T",
        group=group.clone(),
        source=source_of(group),
        launches=launches,
        weight_bytes=math.ceil(outputs * depth * _WEIGHT_BITS[schedule.element_name(weight)] / 8),
    )


def _key(group: schedule.GroupOp, target: str) -> str:
    product = matmul_in(group)
    outputs, depth = type_of(product.arguments[1]).get_shape()
    form = form_of_product(product)
    splits = device_splits_of(group, target)
    return device_schedule_key(target, form, outputs, depth, _parts(group), panels_together(group), splits)


def _parts(group: schedule.GroupOp) -> int:
    return max(1, sum(isinstance(op, graph.SliceOp) for op in group.body.block.ops))
