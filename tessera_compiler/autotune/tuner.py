"""Measures the candidates of each kernel and keeps the winners, within a budget of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Protocol

import numpy as np

from tessera_compiler.autotune.candidates import FIRST_POINTS, candidates, is_usable, points_of, variations
from tessera_compiler.autotune.choosing import choose, chosen_at
from tessera_compiler.autotune.errors import TuningBudgetTooSmall, TuningChangedResults
from tessera_compiler.autotune.subjects import Subject
from tessera_compiler.autotune.trial import FEWEST_COPIES, Bench, Operand, Runner, Trial, TrialMaker
from tessera_compiler.schedule.passes.plan_tiles import ANY_TOKENS, Blocking, default_blocking
from tessera_compiler.schedule.tuned_cache import TunedEntry

LEAST_BUDGET = 5.0
"""Seconds; with less, not one kernel could be measured on any machine."""

SHARES_AT_MOST = 2.5
"""Of the time left, a kernel may take so many times what it would get if all got the same."""

ROUNDS = 5
STEP_SECONDS = 0.004
"""How long a step of a trial is made, by the number of launches that are run of it."""
STEPS_A_ROUND = 2
HOPELESS = (1.4, 1.2, 1.1, 1.05)
"""After each round: a candidate slower than the best by this factor is measured no further."""
NEARLY = 1.2
"""What is slower than the best by more at the points on both sides is not tried between them."""


class Clock(Protocol):
    def __call__(self) -> float: ...


class Maker(Protocol):
    """Makes the trials of one subject (`TrialMaker`)."""

    def operands(self) -> tuple[Operand, ...]: ...

    def trial(self, blocking: Blocking) -> Trial: ...


@dataclass(frozen=True)
class Measurement:
    """What is known of one subject after its trials."""

    subject: Subject
    times: dict[int, dict[Blocking, float]]
    """Number of rows → candidate → median seconds."""
    finished: dict[int, frozenset[Blocking]]
    """Number of rows → the candidates that were measured to the end; others were given up for being slow."""
    defaults: tuple[Blocking, ...]
    chosen: tuple[Blocking, ...]

    def entry(self) -> TunedEntry:
        """What goes to the cache."""
        microseconds = {point: 1e6 * times[self.winner_at(point)] for point, times in sorted(self.times.items())}
        return TunedEntry(self.chosen, microseconds)

    def winner_at(self, point: int) -> Blocking:
        """The candidate that was chosen for a step of so many rows."""
        return replace(chosen_at(self.chosen, point), max_tokens=ANY_TOKENS)

    def default_at(self, point: int) -> Blocking:
        """The candidate that would run without tuning."""
        return replace(chosen_at(self.defaults, point), max_tokens=ANY_TOKENS)

    def gave_up(self, point: int, blocking: Blocking) -> bool:
        """Whether it was not measured to the end, because it was slow."""
        return blocking not in self.finished[point]

    def gain(self, point: int) -> float | None:
        """How much faster than the default the winner is at a measured point; None if they are the same."""
        default, winner = self.default_at(point), self.winner_at(point)
        if default == winner or default not in self.times[point]:
            return None
        return self.times[point][default] / self.times[point][winner]


@dataclass
class TuningResult:
    hits: list[Subject] = field(default_factory=list)
    """Found in the cache, and not measured."""
    measured: list[Measurement] = field(default_factory=list)
    left: list[Subject] = field(default_factory=list)
    """Neither found nor measured, for want of time."""


@dataclass(frozen=True)
class Tuner:
    cpu_class: str
    runner: Runner
    budget: float
    """Seconds for all subjects together. It is looked at before every measurement, and overrun by one at most."""
    clock: Clock = time.perf_counter
    maker: Callable[[Subject, str], Maker] = TrialMaker

    def tune(
        self,
        subjects: Sequence[Subject],
        known: Sequence[str],
        keep: Callable[[Measurement], None],
        report: Callable[[str, int, int], None] = lambda phase, done, total: None,
    ) -> TuningResult:
        """Measures every subject whose key is not `known`; `keep` is called with each as soon as it is done.

        Raises TuningBudgetTooSmall if not even the first could be measured, and TuningChangedResults if a candidate's
        results are not those of the default, bit for bit.
        """
        self.require_budget(self.budget)
        result = TuningResult()
        result.hits = [subject for subject in subjects if subject.key in known]
        waiting = [subject for subject in subjects if subject.key not in known]
        end = self.clock() + self.budget
        for number, subject in enumerate(waiting):
            report("tuning", number, len(waiting))
            # The first are worth most: each may take more than its share, as long as there is something left.
            share = min(1.0, SHARES_AT_MOST / (len(waiting) - number))
            deadline = self.clock() + (end - self.clock()) * share
            measurement = self._measure(subject, deadline)
            if measurement is None:
                result.left.append(subject)
                continue
            keep(measurement)
            result.measured.append(measurement)
        report("tuning", len(waiting), len(waiting))
        if waiting and not result.measured:
            raise TuningBudgetTooSmall(
                f"{self.budget:g} s were not enough to measure one of {len(waiting)} kernels. Give a larger --budget."
            )
        return result

    @staticmethod
    def require_budget(budget: float) -> None:
        """Raises TuningBudgetTooSmall for one that cannot suffice."""
        if budget < LEAST_BUDGET:
            raise TuningBudgetTooSmall(
                f"A budget of {budget:g} s is not enough to measure anything. "
                f"Give at least `--budget {LEAST_BUDGET:g}s`."
            )

    def _measure(self, subject: Subject, deadline: float) -> Measurement | None:
        maker = self.maker(subject, self.cpu_class)
        trials: dict[Blocking, Trial] = {}
        bench = self.runner(maker.operands())
        points = points_of(subject.rows)
        needed = set(points[: len(set(points) & set(FIRST_POINTS))])
        times: dict[int, dict[Blocking, float]] = {}
        finished: dict[int, frozenset[Blocking]] = {}
        for point in points:
            if self.clock() >= deadline:
                break
            racing = self._racing(subject, point, times)
            found = self._race(subject.key, racing, maker, trials, bench, point, deadline)
            if found is None:
                break
            samples, finished[point] = found
            times[point] = {blocking: float(np.median(taken)) for blocking, taken in samples.items()}
        if not needed <= times.keys():
            return None
        defaults = default_blocking(self.cpu_class, subject.element, subject.panels, subject.together)
        return Measurement(subject, times, finished, defaults, choose(times, defaults))

    def _racing(self, subject: Subject, point: int, times: dict[int, dict[Blocking, float]]) -> list[Blocking]:
        """The candidates at a point: all of them at the first points; at those between, what was good next to them."""
        every = candidates(self.cpu_class, subject.element, subject.panels, subject.together, point)
        if point in FIRST_POINTS:
            return list(every)
        beside = [max(p for p in times if p < point), min((p for p in times if p > point), default=1)]
        good = {b for p in beside for b, taken in times[p].items() if taken <= NEARLY * min(times[p].values())}
        racing = [blocking for blocking in every if blocking in good]
        racing += sorted((b for b in good if b not in racing and is_usable(b, point)), key=astuple)
        return racing or list(every)

    def _race(
        self,
        key: str,
        running: list[Blocking],
        maker: Maker,
        trials: dict[Blocking, Trial],
        bench: Bench,
        point: int,
        deadline: float,
    ) -> tuple[dict[Blocking, list[float]], frozenset[Blocking]] | None:
        """Each candidate's median launch of each round, in interleaved rounds, and who got to the end; None if there
        was not even time for one round.
        """
        first = running[0]
        samples: dict[Blocking, list[float]] = {}
        expected: bytes | None = None
        launches = FEWEST_COPIES
        for number in range(ROUNDS):
            for blocking in running:
                if self.clock() >= deadline:
                    return (samples, frozenset(running)) if number else None
                if blocking not in trials:
                    trials[blocking] = maker.trial(blocking)
                trial = trials[blocking]
                if blocking not in samples:
                    output = bench.output(trial, point)
                    expected = expected if expected is not None else output
                    if output != expected:
                        raise TuningChangedResults(
                            f"{key} at {point} rows: {blocking} gives other bits than {first}. "
                            "Report this with the model's name."
                        )
                    if blocking == first:
                        one = float(np.median(bench.seconds(trial, point, launches, 1)))
                        wanted = int(STEP_SECONDS / max(one, 1e-7))
                        launches = min(trial.launches, max(FEWEST_COPIES, wanted))
                taken = bench.seconds(trial, point, launches, STEPS_A_ROUND)
                samples.setdefault(blocking, []).append(float(np.median(taken)))
            if number < len(HOPELESS):
                medians = {blocking: float(np.median(samples[blocking])) for blocking in running}
                limit = HOPELESS[number] * min(medians.values())
                running = [blocking for blocking in running if medians[blocking] <= limit]
            if number == 0:
                nearly = NEARLY * min(medians.values())
                good = [blocking for blocking in running if medians[blocking] <= nearly]
                running += dict.fromkeys(v for b in good for v in variations(b) if v not in samples)
            elif len(running) == 1:
                break
        return samples, frozenset(running)
