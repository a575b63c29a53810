"""Decides how linear maps are blocked on each CPU class, by the number of tokens in a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xdsl.dialects.builtin import ArrayAttr, DictionaryAttr, IntegerAttr, ModuleOp, UnitAttr, i64

from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.physical import padded_rows

ANY_TOKENS = 0
"""Stands for "no limit" where a blocking says up to how many tokens it is used."""


@dataclass(frozen=True)
class Blocking:
    """For steps of at most `max_tokens` rows (0: any), one instance computes `rows` tokens by `panels` times sixteen
    outputs."""

    max_tokens: int
    rows: int
    panels: int


_DEFAULTS: dict[tuple[str, str], tuple[Blocking, ...]] = {
    # Sixteen-lane registers: 32 of them hold rows * panels sums, the panels of one step, and one broadcast.
    ("x86-64-v4", "f32"): (Blocking(1, 1, 4), Blocking(4, 4, 4), Blocking(0, 6, 4)),
    ("x86-64-v4", "bf16"): (Blocking(1, 1, 4), Blocking(4, 4, 4), Blocking(0, 6, 4)),
    # Groups of quantized columns need a float sum beside each integer one.
    ("x86-64-v4", "u8"): (Blocking(1, 1, 4), Blocking(4, 4, 2), Blocking(0, 6, 2)),
    # Two of 16 registers a sum; exact integer products need four times as many.
    ("x86-64-v3", "f32"): (Blocking(1, 1, 4), Blocking(0, 6, 1)),
    ("x86-64-v3", "bf16"): (Blocking(1, 1, 2), Blocking(0, 4, 1)),
    ("x86-64-v3", "u8"): (Blocking(1, 1, 2), Blocking(0, 2, 1)),
    # Four of 32 registers a sum.
    ("aarch64", "f32"): (Blocking(1, 1, 4), Blocking(0, 4, 1)),
    ("aarch64", "bf16"): (Blocking(1, 1, 2), Blocking(0, 4, 1)),
    ("aarch64", "u8"): (Blocking(1, 1, 4), Blocking(0, 4, 1)),
}


def default_blocking(cpu_class: str, element: str, outputs: int) -> tuple[Blocking, ...]:
    """A blocking that fits the registers of a class; panels are taken down until they divide the panels that
    there are.
    """
    panels = padded_rows(outputs) // 16
    fitted = []
    for choice in _DEFAULTS[cpu_class, element]:
        width = next(count for count in range(choice.panels, 0, -1) if panels % count == 0)
        fitted.append(Blocking(choice.max_tokens, choice.rows, width))
    return tuple(fitted)


def schedule_key(cpu_class: str, element: str, outputs: int, depth: int) -> str:
    """What a tuned blocking depends on, and nothing else."""
    return f"{cpu_class}/matmul/{element}/{outputs}x{depth}"


@dataclass(frozen=True)
class PlanTiles:
    """group "linear" --> group "linear" with `tiles`: from `tuned` (see `schedule_key`) where it has an entry, else
    a safe default."""

    classes: tuple[str, ...]
    tuned: Mapping[str, tuple[Blocking, ...]] = field(default_factory=dict)

    def apply(self, module: ModuleOp) -> None:
        for group in entry_function(module).body.block.ops:
            if not isinstance(group, schedule.GroupOp) or group.kind.data != "linear":
                continue
            product = next(op for op in group.body.block.ops if isinstance(op, schedule.MatmulOp))
            weight = type_of(product.arguments[1])
            outputs, depth = weight.get_shape()
            element = schedule.element_name(weight)
            chosen, all_tuned = {}, True
            for name in self.classes:
                entry = self.tuned.get(schedule_key(name, element, outputs, depth))
                all_tuned = all_tuned and entry is not None
                chosen[name] = _as_attribute(entry or default_blocking(name, element, outputs))
            group.tiles = DictionaryAttr(chosen)
            group.tuned = UnitAttr() if all_tuned and self.classes else None


def _as_attribute(blockings: tuple[Blocking, ...]) -> ArrayAttr[ArrayAttr[IntegerAttr]]:  # type: ignore[type-arg]
    return ArrayAttr([ArrayAttr([IntegerAttr(n, i64) for n in (b.max_tokens, b.rows, b.panels)]) for b in blockings])


def blockings_of(group: schedule.GroupOp, cpu_class: str) -> tuple[Blocking, ...]:
    """The blockings of a planned group for one class."""
    assert group.tiles is not None, "the tiles of a group are planned before it is lowered"
    entry = group.tiles.data[cpu_class]
    assert isinstance(entry, ArrayAttr)
    return tuple(Blocking(*(number.value.data for number in blocking.data)) for blocking in entry.data)
