"""Which kernels of a program there are to tune."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from xdsl.dialects.builtin import IntegerAttr, ModuleOp, i64

from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.linear_maps import linear_groups, matmul_in
from tessera_compiler.schedule.passes.plan_tiles import (
    element_of,
    form_of,
    output_panels,
    panels_together,
    schedule_key,
)
from tessera_compiler.tile.lowering.lower import source_of


@dataclass(frozen=True)
class Subject:
    """A shape of product, and of the groups that have it the one that is launched most."""

    key: str
    element: str
    outputs: int
    depth: int
    panels: int
    """Of what the group makes: blocks are cut from them."""
    together: int
    """Blocks are multiples of so many panels."""
    rows: str
    """"T" or "L": what a step has of its rows."""
    group: schedule.GroupOp
    """A copy, whose cache is the first one of a program that it is alone in."""
    source: str
    launches: int
    """Of all groups of this shape, in one step."""

    @property
    def work(self) -> int:
        """What tuning it is worth, against others: the elements of weights that a step reads."""
        return self.launches * self.outputs * self.depth


def subjects_of(modules: Iterable[ModuleOp], cpu_class: str) -> list[Subject]:
    """The kernels of planned programs whose blocking can be chosen, the most worthwhile first."""
    by_key: dict[str, dict[str, list[schedule.GroupOp]]] = {}
    for module in modules:
        for group in linear_groups(module):
            weight = type_of(matmul_in(group).arguments[1])
            outputs, depth = weight.get_shape()
            key = schedule_key(cpu_class, element_of(matmul_in(group)), outputs, depth, form_of(group))
            body = " ".join(op.name for op in group.body.block.ops)
            by_key.setdefault(key, {}).setdefault(body, []).append(group)
    found = []
    for key, bodies in by_key.items():
        most = max(bodies.values(), key=len)
        product = matmul_in(most[0])
        weight = type_of(product.arguments[1])
        outputs, depth = weight.get_shape()
        found.append(
            Subject(
                key=key,
                element=schedule.element_name(weight),
                outputs=outputs,
                depth=depth,
                panels=output_panels(most[0]),
                together=panels_together(most[0]),
                rows=rows_of(type_of(product.result)) or "T",
                group=_alone(most[0]),
                source=source_of(most[0]),
                launches=sum(map(len, bodies.values())),
            )
        )
    return sorted(found, key=lambda subject: (-subject.work, subject.key))


def _alone(group: schedule.GroupOp) -> schedule.GroupOp:
    copy = group.clone()
    for op in copy.body.block.ops:
        if isinstance(op, schedule.CacheWriteOp):
            op.cache = IntegerAttr(0, i64)
    return copy


def weight_bytes(subject: Subject) -> int:
    """Of its matrix, about."""
    bits = {"f32": 32, "bf16": 16, "u8": 8, "u4": 4}[subject.element]
    return math.ceil(subject.outputs * subject.depth * bits / 8)
