"""Those who wait: one queue per priority lane, first come first served."""

from __future__ import annotations

from bisect import bisect_left, insort
from operator import attrgetter

from tessera_runtime.scheduler.sequence import Sequence

PATIENCE = 32
"""So often others may be let past a sequence; then its lane goes first."""
PREEMPTION_COUNTS = 8
"""Having been preempted once counts as being overtaken so often."""

_arrival = attrgetter("arrival")


class Lanes:
    """The queues in order of arrival; who was preempted stands where he stood before."""

    def __init__(self, count: int) -> None:
        self.queues: list[list[Sequence]] = [[] for _ in range(count)]

    def __len__(self) -> int:
        return sum(map(len, self.queues))

    def add(self, sequence: Sequence) -> None:
        insort(self.queues[sequence.lane], sequence, key=_arrival)

    def remove(self, sequence: Sequence) -> None:
        queue = self.queues[sequence.lane]
        del queue[bisect_left(queue, sequence.arrival, key=_arrival)]

    def order(self) -> list[int]:
        """Lanes that somebody waits in: those whose first was overtaken too often, then by priority."""
        filled = [lane for lane, queue in enumerate(self.queues) if queue]
        return sorted(filled, key=lambda lane: self.queues[lane][0].overtaken < PATIENCE)

    def let_past(self, lane: int) -> None:
        """Somebody of `lane` was admitted: notes it with the first of each lane after it."""
        for queue in self.queues[lane + 1 :]:
            if queue:
                queue[0].overtaken += 1
