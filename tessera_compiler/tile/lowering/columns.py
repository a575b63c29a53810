"""A value of one row, as a function of the columns that are asked for.

Row kernels are written by asking: a store asks for the columns of its value, which asks its operands, down to loads.
A value that is put together from pieces (rotary embeddings, concatenation) says where its pieces meet, and is asked
for one piece at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from xdsl.ir import SSAValue

from tessera_compiler.errors import UnsupportedOperation


@dataclass(frozen=True)
class Segment:
    """Columns start, start + step, … (count of them). Inside a loop over columns the start is an index, and
    step is 1.
    """

    start: int | SSAValue
    count: int
    step: int = 1

    @property
    def first(self) -> int:
        """The start, where it must be known."""
        assert isinstance(self.start, int), "rows that are put together from pieces are not computed in a loop"
        return self.start


@dataclass
class Columns:
    width: int
    take_: Callable[[Segment], SSAValue]
    segments: tuple[Segment, ...] = ()
    _taken: dict[Segment, SSAValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.segments:
            self.segments = (Segment(0, self.width),)

    def take(self, segment: Segment) -> SSAValue:
        """The tile of one row and `segment.count` columns; a value of width 1 gives its one column for any segment."""
        if self.width == 1:
            segment = Segment(0, 1)
        if segment not in self._taken:
            self._taken[segment] = self.take_(segment)
        return self._taken[segment]


def common_segments(width: int, values: Sequence[Columns]) -> tuple[Segment, ...]:
    """The coarsest cutting of the columns in which every value is in one piece."""
    cuts = {0, width}
    interleaved: set[tuple[int, int]] = set()
    for value in values:
        if value.width == 1:
            continue
        for segment in value.segments:
            start, count, step = segment.first, segment.count, segment.step
            if step == 1:
                cuts |= {start, start + count}
            elif start % 2 == 0:
                interleaved.add((start, start + 2 * count))
    for first, last in interleaved:
        if any(first < cut < last for cut in cuts):
            raise UnsupportedOperation(
                "rows that are cut in two different ways cannot be computed in one kernel. Report the model."
            )
        cuts |= {first, last}
    segments = []
    edges = sorted(cuts)
    for first, last in itertools.pairwise(edges):
        if (first, last) in interleaved:
            segments += [Segment(first, (last - first) // 2, 2), Segment(first + 1, (last - first) // 2, 2)]
        else:
            segments.append(Segment(first, last - first))
    return tuple(segments)
