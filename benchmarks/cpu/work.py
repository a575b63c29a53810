"""What every engine is asked to do, and how the answers of rounds become one figure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ROUNDS = 5
THREADS = 2


@dataclass(frozen=True)
class Work:
    """A prefill (`new` is 0; `prompt` tokens to the first token) or a decode of `users` at the same time."""

    name: str
    title: str
    users: int
    prompt: int
    new: int
    """Timed steps, in each of which every user draws one token. Prompts and two more steps are not timed."""
    repeats: int = 1
    """Within one round; their median is the round's sample."""

    @property
    def prefill(self) -> bool:
        return self.new == 0

    def as_job(self) -> dict[str, Any]:
        return asdict(self)


PREFILL = Work("prefill-512", "prefill 512", 1, 512, 0, repeats=3)
DECODE_1 = Work("decode-1", "decode, 1 user", 1, 128, 128)
DECODE_1_LATER = Work("decode-1-after-512", "decode, 1 user, after 512", 1, 512, 64)
DECODE_8 = Work("decode-8", "decode, 8 users", 8, 128, 32)
DECODE_32 = Work("decode-32", "decode, 32 users", 32, 128, 32)
DECODE_64 = Work("decode-64", "decode, 64 users", 64, 128, 32)
ALL = (PREFILL, DECODE_1, DECODE_1_LATER, DECODE_8, DECODE_32, DECODE_64)

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""Tokens per second: by contender, by name of work, one of each round."""


def figure(samples: Samples, contender: str, work: str) -> float | None:
    """The median over the rounds, or None where nothing was measured."""
    values = samples.get(contender, {}).get(work, ())
    return statistics.median(values) if values else None


def best(samples: Samples, contenders: Sequence[str], work: str) -> tuple[str, float] | None:
    """The contender with the highest median, and that median."""
    figures = [(value, name) for name in contenders if (value := figure(samples, name, work)) is not None]
    if not figures:
        return None
    value, name = max(figures)
    return name, value


def ratio_range(samples: Samples, ours: str, theirs: str, work: str) -> tuple[float, float]:
    """The smallest and the largest ratio of two samples of the same round."""
    pairs = zip(samples[ours][work], samples[theirs][work], strict=False)
    ratios = [mine / other for mine, other in pairs]
    return min(ratios), max(ratios)


def spread(values: Sequence[float]) -> float:
    """(max - min) / median."""
    return (max(values) - min(values)) / statistics.median(values)
