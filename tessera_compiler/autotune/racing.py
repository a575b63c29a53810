"""Compares candidates of a kernel at one number of rows: in interleaved rounds, so that what disturbs a machine for a
while disturbs all of them, and only while they are not hopeless."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from tessera_compiler.autotune.choosing import AnyBlocking, B

ROUNDS = 5
HOPELESS = (1.4, 1.2, 1.1, 1.05)
"""After each round: a candidate slower than the best by this factor is measured no further."""
NEARLY = 1.2
"""What is slower than the best by more at the points on both sides is not tried between them."""


class CandidateFailed(Exception):
    """A candidate cannot be run; the text says why."""


Run = TypeVar("Run", bound=AnyBlocking, contravariant=True)


class Racer(Protocol[Run]):
    """Runs candidates. Both may raise `CandidateFailed`."""

    def output(self, blocking: Run) -> bytes:
        """What stands for the bits that it computes."""
        ...

    def seconds(self, blocking: Run) -> float:
        """Of one launch, from some of them."""
        ...


@dataclass
class Race(Generic[B]):
    """How it went. A candidate in none of the three was not reached."""

    samples: dict[B, list[float]] = field(default_factory=dict)
    """The seconds of each round, the first who ran first."""
    finished: frozenset[B] = frozenset()
    """Those who got to the end; others were given up for being slow."""
    dropped: dict[B, str] = field(default_factory=dict)
    """Those who failed, and why."""

    @property
    def medians(self) -> dict[B, float]:
        return {blocking: float(np.median(taken)) for blocking, taken in self.samples.items()}


def race(
    running: Sequence[B],
    racer: Racer[B],
    expired: Callable[[], bool],
    differs: Callable[[B, B], str],
    vary: Callable[[B], Iterable[B]] = lambda blocking: (),
) -> Race[B] | None:
    """Who is fastest; None if there was not even time for one round.

    The first who runs stands for the bits that all must give. `differs` is called with one who gives others, and this
    first one: it raises, or returns what to say of it. What `vary` makes of good candidates runs from the second round
    on.
    """
    found: Race[B] = Race()
    first: B | None = None
    expected = b""
    racing = list(running)
    for number in range(ROUNDS):
        for blocking in racing:
            if expired():
                return _ended(found, racing) if number else None
            try:
                if blocking not in found.samples:
                    output = racer.output(blocking)
                    if first is None:
                        first, expected = blocking, output
                    elif output != expected:
                        raise CandidateFailed(differs(blocking, first))
                taken = racer.seconds(blocking)
            except CandidateFailed as failure:
                found.dropped[blocking] = str(failure)
                continue
            found.samples.setdefault(blocking, []).append(taken)
        racing = [blocking for blocking in racing if blocking not in found.dropped]
        if not racing:
            return None
        medians = found.medians
        if number < len(HOPELESS):
            limit = HOPELESS[number] * min(medians[blocking] for blocking in racing)
            racing = [blocking for blocking in racing if medians[blocking] <= limit]
        if number == 0:
            nearly = NEARLY * min(medians.values())
            good = [blocking for blocking in racing if medians[blocking] <= nearly]
            racing += dict.fromkeys(
                each for one in good for each in vary(one) if each not in found.samples and each not in found.dropped
            )
        elif len(racing) == 1:
            break
    return _ended(found, racing)


def _ended(found: Race[B], racing: Sequence[B]) -> Race[B] | None:
    for blocking in found.dropped:
        found.samples.pop(blocking, None)
    found.finished = frozenset(racing) - found.dropped.keys()
    return found if found.samples else None
