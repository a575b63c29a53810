"""What is measured: batch sizes, prompts of real words, and how samples become figures."""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tessera_runtime.errors import InvalidRequest

BUSY = 0.25
"""Load average per core above which the machine counts as busy."""

PASSAGE = """The harbour wakes before the town does. At four the first boats come in with their lamps still lit, and the
men on the quay count crates by touch because it is too dark to read the labels. Somebody has put a kettle on a gas
ring behind the ice house; somebody else is arguing, without heat, about the price of diesel. By five the auction hall
smells of salt, wet rope and coffee. The auctioneer, who used to teach mathematics, walks along the rows and speaks so
fast that visitors take it for song. Haddock, 212 kilos, from the northern bank. Ling, 48. Two boxes of monkfish, tails
only. Nobody shouts. A buyer lifts a finger, or an eyebrow, and the next lot is already on its way. When the sun
reaches the roof of the church, the hall has been hosed down, the gulls have had their share, and the lorries are on
the coast road. Then the schools open, the bakery runs out of rye bread as it does every day, and the town begins to
believe that the morning is just starting. Ask anybody here how the place will look in fifty years, and they will tell
you about the winter of 1962, when the sea froze as far as the lighthouse and the post came by sledge: a story is the
usual answer to a question about the future. The engineers who came to measure the breakwater wrote down every one of
them, in the margins of their tables, next to the columns for depth, current and height of wave."""


@dataclass(frozen=True)
class Workload:
    """What `tessera bench` runs."""

    batches: tuple[int, ...] = (1, 8, 32, 64)
    """Sequences, or users, at the same time."""
    prompt: int = 128
    """Tokens of each prompt."""
    new: int = 64
    """Tokens of each answer."""
    prefills: tuple[int, ...] = (512,)
    """Lengths of lone prompts whose computation is timed."""
    rounds: int = 3
    """How often everything is measured; medians are reported."""


class Prompts:
    """Prompts of exact lengths from real text, no two of which begin alike, so that no cache can help."""

    def __init__(self, passage_ids: Sequence[int], seed: int | None = None) -> None:
        """With a seed, they are the same each time; without, a server cannot know them from an earlier run."""
        if not passage_ids:
            raise InvalidRequest(
                "The tokenizer makes no tokens of an English text, so there is nothing to measure with."
            )
        self._ids = list(passage_ids)
        self._random = random.Random(seed)

    def take(self, length: int) -> list[int]:
        """A new prompt."""
        start = self._random.randrange(len(self._ids))
        repeated = self._ids[start:] + self._ids * (length // len(self._ids) + 1)
        opening = self._random.choices(self._ids, k=min(8, length))
        return opening + repeated[: length - len(opening)]


@dataclass(frozen=True)
class Percentiles:
    """Of a set of durations, in seconds."""

    p50: float
    p90: float
    p99: float

    def as_dict(self) -> dict[str, float]:
        return {"p50": self.p50, "p90": self.p90, "p99": self.p99}


def percentiles(samples: Sequence[float]) -> Percentiles | None:
    """By the nearest rank; None without samples."""
    if not samples:
        return None
    ordered = sorted(samples)
    return Percentiles(*(ordered[max(0, -(-len(ordered) * share // 100) - 1)] for share in (50, 90, 99)))


def median(samples: Sequence[float]) -> float | None:
    """None without samples."""
    return statistics.median(samples) if samples else None


def busy_note() -> str | None:
    """A sentence about other work on this machine, if there is any; to be asked before measuring."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load <= BUSY * cores:
        return None
    return f"The machine was not idle: load average {load:.1f} on {cores} cores. Compare figures of one run only."
