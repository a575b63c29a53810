"""What an operation of a body is: a function, and what a program must say to call it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tessera_runtime.executor.reference.numbers import Array

Shape = tuple["int | None", ...]
"""Sizes of the axes; None is the first axis of a value that has one row per token or per wanted row."""


@dataclass(frozen=True)
class Call:
    """What the program says about one use of an operation, beside its operands."""

    attributes: Mapping[str, Any]
    shapes: tuple[Shape, ...]
    """Of each result."""
    dtypes: tuple[str, ...]

    def sizes(self, x: Array) -> tuple[int, ...]:
        """The shape of the first result, with as many rows as `x` has."""
        return tuple(len(x) if size is None else size for size in self.shapes[0])


def is_integer(value: Any) -> bool:
    return type(value) is int


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_integers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(is_integer(item) for item in value)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_true(value: Any) -> bool:
    return value is True


Attribute = Callable[[Any], bool]


def _no_caches(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Operation:
    """One entry of the table of operations.

    `function` takes the call, then the operands, then the parts of the cache; it returns the results. An operand whose
    place is in `weights` arrives as a `Weight`, every other one as an array.
    """

    function: Callable[..., tuple[Array, ...]]
    least: int = 1
    most: int = 1
    """How many operands there may be."""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    optional: Mapping[str, Attribute] = field(default_factory=dict)
    results: int = 1
    weights: tuple[int, ...] = ()
    caches: Callable[[Mapping[str, Any]], tuple[str, ...]] = _no_caches
    """Which parts of the KV cache it is handed, `key` or `value`, given its attributes."""
