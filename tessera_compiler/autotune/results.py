"""What tuning found, whatever was tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from tessera_compiler.autotune.choosing import B, chosen_at
from tessera_compiler.schedule.passes.plan_tiles import ANY_TOKENS

S = TypeVar("S")
M = TypeVar("M")


@dataclass(frozen=True)
class Measured(Generic[S, B]):
    """What is known of one subject after its trials."""

    subject: S
    times: Mapping[int, Mapping[B, float]]
    """Number of rows → candidate → median seconds."""
    finished: Mapping[int, frozenset[B]]
    """Number of rows → the candidates that were measured to the end; others were given up for being slow."""
    defaults: tuple[B, ...]
    chosen: tuple[B, ...]

    @property
    def microseconds(self) -> dict[int, float]:
        """What goes to the cache beside the blockings: the winner's at each point."""
        return {point: 1e6 * times[self.winner_at(point)] for point, times in sorted(self.times.items())}

    def winner_at(self, point: int) -> B:
        """The candidate that was chosen for a step of so many rows."""
        return replace(chosen_at(self.chosen, point), max_tokens=ANY_TOKENS)

    def default_at(self, point: int) -> B:
        """The candidate that would run without tuning."""
        return replace(chosen_at(self.defaults, point), max_tokens=ANY_TOKENS)

    def gave_up(self, point: int, blocking: B) -> bool:
        """Whether it was not measured to the end, because it was slow."""
        return blocking not in self.finished[point]

    def gain(self, point: int) -> float | None:
        """How much faster than the default the winner is at a measured point; None if they are the same."""
        default, winner = self.default_at(point), self.winner_at(point)
        if default == winner or default not in self.times[point]:
            return None
        return self.times[point][default] / self.times[point][winner]


@dataclass
class TuningOutcome(Generic[S, M]):
    hits: list[S] = field(default_factory=list)
    """Found in the cache, and not measured."""
    measured: list[M] = field(default_factory=list)
    left: list[S] = field(default_factory=list)
    """Neither found nor measured, for want of time."""
