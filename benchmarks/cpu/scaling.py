"""Time per step against tokens in the step: is there a cliff?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

POINTS: Sequence[int] = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 17, 20, 24, 28, 32, 33, 40, 48, 56, 64, 65, 80, 96, 112, 128, 129),
    *(160, 192, 224, 256, 257, 320, 384, 448, 512),
)
"""Dense where kernels change their form, so that a jump has near neighbours on both sides."""


def above_line(seconds: Mapping[int, float]) -> dict[int, float]:
    """For every point but the ends, its time over what the line through its two neighbours says."""
    points = sorted(seconds)
    found = {}
    for before, point, after in zip(points, points[1:], points[2:], strict=False):
        share = (point - before) / (after - before)
        line = seconds[before] + share * (seconds[after] - seconds[before])
        found[point] = seconds[point] / line
    return found


def worst(seconds: Mapping[int, float]) -> tuple[int, float]:
    """The point furthest above its line, and how far."""
    ratios = above_line(seconds)
    point = max(ratios, key=lambda tokens: ratios[tokens])
    return point, ratios[point]
