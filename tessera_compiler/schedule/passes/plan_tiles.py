"""Decides how linear maps are blocked on each CPU class, by the number of tokens in a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from xdsl.dialects.builtin import DictionaryAttr, ModuleOp

from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.heads import columns_together, heads_in
from tessera_compiler.schedule.linear_maps import (
    blockings_as_attribute,
    blockings_in,
    linear_groups,
    mark_tuned,
    matmul_in,
)
from tessera_compiler.schedule.physical import PANEL, padded_rows

ANY_TOKENS = 0
"""Stands for "no limit" where a blocking says up to how many tokens it is used."""


@dataclass(frozen=True)
class Blocking:
    """For steps of at most `max_tokens` rows (0: any), one instance computes `rows` tokens by `panels` times sixteen
    outputs. If `ahead` is 1, the panels of the next outputs are fetched meanwhile, which pays while a step is too short
    to hide the time that they take."""

    max_tokens: int
    rows: int
    panels: int
    ahead: int = 0


_DEFAULTS: dict[tuple[str, str], tuple[Blocking, ...]] = {
    # Sixteen-lane registers: 32 of them hold rows * panels sums, the panels of one step, and one broadcast.
    ("x86-64-v4", "f32"): (Blocking(1, 1, 4), Blocking(128, 4, 4, 1), Blocking(0, 6, 4)),
    ("x86-64-v4", "bf16"): (Blocking(1, 1, 4), Blocking(128, 4, 4, 1), Blocking(0, 6, 4)),
    # Groups of quantized columns need a float sum beside each integer one.
    ("x86-64-v4", "u8"): (Blocking(1, 1, 4), Blocking(128, 4, 4, 1), Blocking(0, 4, 4)),
    ("x86-64-v4", "u4"): (Blocking(1, 1, 4, 1), Blocking(128, 4, 4, 1), Blocking(0, 4, 4)),
    # Two of 16 registers a sum; exact integer products need four times as many.
    ("x86-64-v3", "f32"): (Blocking(1, 1, 4), Blocking(0, 6, 1)),
    ("x86-64-v3", "bf16"): (Blocking(1, 1, 2), Blocking(0, 4, 1)),
    ("x86-64-v3", "u8"): (Blocking(1, 1, 2), Blocking(0, 2, 1)),
    ("x86-64-v3", "u4"): (Blocking(1, 1, 2), Blocking(0, 2, 1)),
    # Four of 32 registers a sum.
    ("aarch64", "f32"): (Blocking(1, 1, 4), Blocking(0, 4, 1)),
    ("aarch64", "bf16"): (Blocking(1, 1, 2), Blocking(0, 4, 1)),
    ("aarch64", "u8"): (Blocking(1, 1, 4), Blocking(0, 4, 1)),
    ("aarch64", "u4"): (Blocking(1, 1, 4), Blocking(0, 4, 1)),
}


_IN_GROUPS: dict[type, str] = {schedule.QuantizeOp: "quantize", schedule.PeaksOp: "peaks"}


def output_columns(group: schedule.GroupOp) -> int:
    """How many columns a group of kind `linear` makes of each row: fewer than its map has outputs if it combines parts
    of them."""
    heads = heads_in(group)
    if heads:
        return int(type_of(heads[0].row).get_shape()[-1])
    *_, last = (op for op in group.body.block.ops if not isinstance(op, schedule.YieldOp | schedule.PeaksOp))
    return int(type_of(last.results[0]).get_shape()[-1])


def output_panels(group: schedule.GroupOp) -> int:
    """Into how many panels its columns are cut, those of padding included."""
    product = matmul_in(group)
    columns = output_columns(group)
    whole = type_of(product.result).get_shape()[-1]
    return (padded_rows(columns) if columns == whole else columns) // PANEL


def panels_together(group: schedule.GroupOp) -> int:
    """Of how many panels its blocks are multiples: those whose columns share a scale, or a peak, or whole heads."""
    heads = heads_in(group)
    if heads:
        columns = columns_together(heads)
        assert columns is not None, "only heads that can be blocked are in the group of their product"
        return columns // PANEL
    widths = [op.group.value.data for op in group.body.block.ops if type(op) in _IN_GROUPS]
    return max(widths, default=PANEL) // PANEL


def default_blocking(cpu_class: str, element: str, panels: int, together: int = 1) -> tuple[Blocking, ...]:
    """A blocking that suits the registers of a class, of widths that divide `panels` and are multiples of `together`
    panels."""
    fitted = []
    for choice in _DEFAULTS[cpu_class, element]:
        widest = max(choice.panels // together, 1) * together
        width = next(count for count in range(widest, 0, -together) if panels % count == 0)
        fitted.append(replace(choice, panels=width))
    return tuple(fitted)


def element_of(product: schedule.MatmulOp) -> str:
    """The element of a product's weight, and how many columns of its rows share a scale."""
    element = schedule.element_name(type_of(product.arguments[1]))
    return element if product.group is None else f"{element}g{product.group.value.data}"


def schedule_key(cpu_class: str, element: str, outputs: int, depth: int, form: str = "plain") -> str:
    """What a tuned blocking depends on, and nothing else; `element` and `form` as of `element_of` and `form_of`."""
    return f"{cpu_class}/matmul/{element}/{outputs}x{depth}/{form}"


def form_of(group: schedule.GroupOp) -> str:
    """What decides the shape of a linear group's kernel beside its weight: `plain`, or how many parts of its outputs it
    combines, and how many columns share a scale or a peak, or are a head."""
    heads = heads_in(group)
    if heads:
        return f"heads{heads[0].width}"
    product = matmul_in(group)
    parts = type_of(product.result).get_shape()[-1] // output_columns(group)
    together = panels_together(group)
    words = [f"parts{parts}"] if parts > 1 else []
    words += [f"{_IN_GROUPS[type(op)]}{together * PANEL}" for op in group.body.block.ops if type(op) in _IN_GROUPS]
    return "-".join(words) or "plain"


@dataclass(frozen=True)
class PlanTiles:
    """group "linear" --> group "linear" with `tiles`: from `tuned` (see `schedule_key`) where it has an entry, else
    a safe default."""

    classes: tuple[str, ...]
    tuned: Mapping[str, tuple[Blocking, ...]] = field(default_factory=dict)

    def apply(self, module: ModuleOp) -> None:
        for group in linear_groups(module):
            product = matmul_in(group)
            weight = type_of(product.arguments[1])
            outputs, depth = weight.get_shape()
            element = schedule.element_name(weight)
            chosen, measured = {}, []
            for name in self.classes:
                key = schedule_key(name, element_of(product), outputs, depth, form_of(group))
                entry = self.tuned.get(key)
                measured += [name] if entry is not None else []
                chosen[name] = blockings_as_attribute(
                    entry or default_blocking(name, element, output_panels(group), panels_together(group))
                )
            group.tiles = DictionaryAttr(chosen)
            mark_tuned(group, measured)


def blockings_of(group: schedule.GroupOp, cpu_class: str) -> tuple[Blocking, ...]:
    """The blockings of a planned group for one class."""
    return tuple(Blocking(*numbers) for numbers in blockings_in(group, cpu_class))
