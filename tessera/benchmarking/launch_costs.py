"""What a launch has to move and to multiply at least, read from program.json (docs/benchmarks/README.md, "The
profile").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIZES = {"f32": 4, "i32": 4, "bf16": 2, "i8": 1, "u8": 1}
PEAK_OF = {"f32": "f32", "bf16": "bf16", "i8": "u8", "u8": "u8", "u4": "u8"}
"""Element of weights or of the KV cache → the arithmetic that is measured for it."""


@dataclass(frozen=True)
class StepShape:
    """A step of `tokens` tokens, equally many of each of `sequences` sequences that have `context` tokens before it.

    Each sequence wants the logits of its last token.
    """

    tokens: int
    context: int
    sequences: int

    @property
    def each(self) -> int:
        """Tokens of one sequence."""
        return self.tokens // self.sequences

    @property
    def positions(self) -> int:
        """Positions whose keys and values the step reads, of all sequences; each counts once."""
        return self.sequences * (self.context + self.each)

    @property
    def attended(self) -> int:
        """Pairs of a token and a position that it attends to."""
        return self.sequences * sum(self.context + index + 1 for index in range(self.each))


@dataclass(frozen=True)
class LaunchCost:
    weight_bytes: int
    buffer_bytes: int
    cache_bytes: int
    multiply_adds: int
    element: str | None
    """What is multiplied; None where nothing is that counts."""

    def __add__(self, other: LaunchCost) -> LaunchCost:
        return LaunchCost(
            self.weight_bytes + other.weight_bytes,
            self.buffer_bytes + other.buffer_bytes,
            self.cache_bytes + other.cache_bytes,
            self.multiply_adds + other.multiply_adds,
            self.element or other.element,
        )


def launched_variant(program: Mapping[str, Any], cpu_class: str, group: str, shape: StepShape) -> dict[str, Any]:
    """The kernel of a group that runs in a step of this shape."""
    variants = program["classes"][cpu_class]["kernels"][group]
    rows = _rows(variants[0]["grid"], shape)
    fitting = (v for v in variants if v["max_tokens"] is None or rows <= v["max_tokens"])
    return dict(next(fitting, variants[-1]))


def launch_cost(
    program: Mapping[str, Any],
    launch: Mapping[str, Any],
    grid: list[str | int],
    weight_sizes: Mapping[str, int],
    shape: StepShape,
) -> LaunchCost:
    """`weight_sizes` has the bytes of each tensor of the package. Every byte counts once, however often it is read.

    A table that rows are looked up in counts for as many rows as there are tokens. Windows of attention are not known
    here; all positions count.
    """
    kind = program["groups"][launch["group"]]["kind"]
    rows = _rows(grid, shape)
    weights = buffers = cache = products = 0
    element = None
    tables = () if kind == "linear" else _tables(program, launch)
    last_width = 0
    key_width = value_width = 0
    for argument in launch["args"]:
        what, _, which = argument.partition(":")
        if what == "weight":
            entry = program["weights"][int(which)]
            size = weight_sizes[entry["name"]]
            weights += min(size, size * rows // entry["shape"][0]) if entry["shape"][0] in tables else size
            count = math.prod(entry["shape"])
            if kind == "linear" and len(entry["shape"]) == 2 and rows * count > products:
                products, element = rows * count, str(entry["dtype"])
        elif what == "buffer":
            entry = program["buffers"][int(which)]
            of_tokens = entry["rows"] == "T"
            last_width = math.prod(entry["shape"])
            buffers += last_width * SIZES[entry["dtype"]] * (shape.tokens if of_tokens else shape.sequences)
        elif what in ("cache_key_scale", "cache_value_scale"):
            layer = program["cache"]["layers"][int(which)]
            positions = shape.positions if int(which) in launch["reads_cache"] else shape.tokens
            cache += positions * layer["heads"] * SIZES["f32"]
        elif what in ("cache_key", "cache_value"):
            layer = program["cache"]["layers"][int(which)]
            width = layer["key_dim" if what == "cache_key" else "value_dim"]
            positions = shape.positions if int(which) in launch["reads_cache"] else shape.tokens
            cache += positions * layer["heads"] * width * SIZES[layer["dtype"]]
            element = layer["dtype"] if kind == "attention" else element
            if what == "cache_key":
                key_width = width
            else:
                value_width = width
    if kind == "attention" and value_width:
        heads = last_width // value_width  # its result has a row of `value_width` for each query head
        products = shape.attended * heads * (key_width + value_width)
    return LaunchCost(weights, buffers, cache, products, element)


def _tables(program: Mapping[str, Any], launch: Mapping[str, Any]) -> tuple[int, ...]:
    """How many rows the tables have that a launch looks rows up in; scales that go with them have as many."""
    entries = (program["weights"][int(a.partition(":")[2])] for a in launch["args"] if a.startswith("weight:"))
    return tuple(entry["shape"][0] for entry in entries if len(entry["shape"]) == 2)


def _rows(grid: list[str | int], shape: StepShape) -> int:
    return shape.sequences if any(str(entry).startswith("L") for entry in grid) else shape.tokens
