"""What Tessera has to reach, as ratios of medians measured side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.cpu.work import DECODE_1, DECODE_8, DECODE_32, DECODE_64, PREFILL, Samples, Work, best, ratio_range

OPENVINO_BOTH = ("OpenVINO int4", "OpenVINO int8")


@dataclass(frozen=True)
class Target:
    """The best of ours against the best of theirs."""

    title: str
    work: Work
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    must: float
    aim: float


TARGETS = (
    Target("decode, 1 user, 4-bit", DECODE_1, ("Tessera int4",), ("llama.cpp Q4_0",), 1.6, 2.4),
    Target("decode, 1 user, 8-bit", DECODE_1, ("Tessera int8",), ("llama.cpp Q8_0",), 1.5, 2.0),
    Target("decode, 1 user, bf16", DECODE_1, ("Tessera bf16",), ("llama.cpp BF16",), 1.2, 1.5),
    Target("prefill 512, int8 or 4-bit", PREFILL, ("Tessera int8", "Tessera int4"), OPENVINO_BOTH, 1.2, 1.5),
    Target("prefill 512, bf16", PREFILL, ("Tessera bf16",), ("llama.cpp BF16",), 1.3, 1.6),
    Target("decode, 8 users, 8-bit", DECODE_8, ("Tessera int8",), OPENVINO_BOTH, 1.3, 2.0),
    Target("decode, 32 users, 8-bit", DECODE_32, ("Tessera int8",), OPENVINO_BOTH, 1.3, 2.0),
    Target("decode, 64 users, 8-bit", DECODE_64, ("Tessera int8",), OPENVINO_BOTH, 1.3, 2.0),
)

READ_SHARE = (0.75, 0.90)
"""Of the measured read bandwidth, by the bytes of one user's decode: must, aim."""
INT8_SHARE = (0.45, 0.65)
"""Of the measured int8 multiply-adds a second, by a prefill of 512: must, aim."""
NEIGHBOUR_SHARE = 0.45
"""Of the idle decode rate, beside a process that keeps one core busy."""
CLIFF = 1.3
"""A step may take this many times what the line through its neighbours says."""
INT8_PERPLEXITY = 1.01
"""Of int8 weights, at most so many times that of bf16."""
SAME_RATIO = 0.9
"""A larger model's ratio may be this part of the small one's."""


@dataclass(frozen=True)
class Outcome:
    """A target and what was measured; ratios are None where one side is missing."""

    target: Target
    ours: tuple[str, float] | None
    theirs: tuple[str, float] | None
    ratio: float | None
    between: tuple[float, float] | None
    """The smallest and largest ratio within one round."""


def judge(samples: Samples, targets: tuple[Target, ...] = TARGETS) -> list[Outcome]:
    """One outcome per target, in their order."""
    outcomes = []
    for target in targets:
        ours = best(samples, target.ours, target.work.name)
        theirs = best(samples, target.theirs, target.work.name)
        ratio = ours[1] / theirs[1] if ours and theirs else None
        between = ratio_range(samples, ours[0], theirs[0], target.work.name) if ours and theirs else None
        outcomes.append(Outcome(target, ours, theirs, ratio, between))
    return outcomes


def quality_verdict(name: str, perplexity: Mapping[str, float], sizes: Mapping[str, int]) -> str:
    """One word about a package's perplexity, none about peers or where nothing is to compare with.

    int8 stays near bf16; int4 is no worse than llama.cpp's Q4_0, at no more bytes.
    """
    found = perplexity[name]
    if name.startswith("Tessera int8") and (exact := perplexity.get("Tessera bf16")):
        return "met" if found <= INT8_PERPLEXITY * exact else "missed"
    peer = "llama.cpp Q4_0"
    if name.startswith("Tessera int4") and peer in perplexity and name in sizes and peer in sizes:
        return "met" if found <= perplexity[peer] and sizes[name] <= sizes[peer] else "missed"
    return ""


def verdict(value: float | None, must: float, aim: float) -> str:
    """One word for the table."""
    if value is None:
        return "not measured"
    if value >= aim:
        return "aim met"
    return "must met" if value >= must else "missed"
