"""From times at some numbers of rows to the blockings for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, astuple, replace
from typing import Any, ClassVar, Protocol, TypeVar

from tessera_compiler.schedule.passes.plan_tiles import ANY_TOKENS

COST_OF_A_VARIANT = 0.08
"""A boundary more is worth its code only if it makes the points on one side of it this much faster, in sum."""

ADVANTAGE_OF_DEFAULTS = 0.03
"""What must be gained against a default: times of the same kernel differ by as much."""


class AnyBlocking(Protocol):
    """What blockings of processors and of devices have in common."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def max_tokens(self) -> int: ...

    def __hash__(self) -> int: ...


B = TypeVar("B", bound=AnyBlocking)


def choose(times: Mapping[int, Mapping[B, float]], defaults: Iterable[B] = ()) -> tuple[B, ...]:
    """The blockings, in ascending order of `max_tokens`, that lose least against the best at each point.

    `times` is number of rows → candidate → seconds; not all candidates need to be there at all points. What
    is lost is the sum over the points of the logarithm of the time, against the best there.
    """
    points = sorted(times)
    preferred = {replace(blocking, max_tokens=ANY_TOKENS) for blocking in defaults}
    best = {point: min(times[point].values()) for point in points}
    # cheapest[i]: the least cost of the points before i, and the blockings they get.
    cheapest: list[tuple[float, tuple[B, ...]]] = [(0.0, ())]
    for end in range(1, len(points) + 1):
        options = []
        for start in range(end):
            segment = points[start:end]
            for blocking in sorted(times[segment[0]], key=astuple):
                if all(blocking in times[point] for point in segment):
                    handicap = 0.0 if blocking in preferred else ADVANTAGE_OF_DEFAULTS * len(segment)
                    lost = handicap + sum(math.log(times[point][blocking] / best[point]) for point in segment)
                    most = ANY_TOKENS if end == len(points) else segment[-1]
                    cost, chosen = cheapest[start]
                    options.append((cost + lost + COST_OF_A_VARIANT, (*chosen, replace(blocking, max_tokens=most))))
        cheapest.append(min(options, key=lambda option: option[0]))
    return cheapest[-1][1]


def chosen_at(blockings: tuple[B, ...], rows: int) -> B:
    """The one that runs a step of so many rows."""
    return next(each for each in blockings if each.max_tokens == ANY_TOKENS or rows <= each.max_tokens)
