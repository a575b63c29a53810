"""Measures the candidates of each kernel and keeps the winners, within a budget of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Protocol

import numpy as np

from tessera_compiler.autotune.budget import require_budget, too_small
from tessera_compiler.autotune.candidates import FIRST_POINTS, candidates, is_usable, points_of, variations
from tessera_compiler.autotune.choosing import choose
from tessera_compiler.autotune.errors import TuningChangedResults
from tessera_compiler.autotune.racing import NEARLY, race
from tessera_compiler.autotune.results import Measured, TuningOutcome
from tessera_compiler.autotune.subjects import Subject
from tessera_compiler.autotune.trial import FEWEST_COPIES, Bench, Operand, Runner, Trial, TrialMaker
from tessera_compiler.schedule.passes.plan_tiles import Blocking, default_blocking
from tessera_compiler.schedule.tuned_cache import TunedEntry

SHARES_AT_MOST = 2.5
"""Of the time left, a kernel may take so many times what it would get if all got the same."""

STEP_SECONDS = 0.004
"""How long a step of a trial is made, by the number of launches that are run of it."""
STEPS_A_ROUND = 2


class Clock(Protocol):
    def __call__(self) -> float: ...


class Maker(Protocol):
    """Makes the trials of one subject (`TrialMaker`)."""

    def operands(self) -> tuple[Operand, ...]: ...

    def trial(self, blocking: Blocking) -> Trial: ...


class Measurement(Measured[Subject, Blocking]):
    """What is known of one subject after its trials."""

    def entry(self) -> TunedEntry:
        """What goes to the cache."""
        return TunedEntry(self.chosen, self.microseconds)


TuningResult = TuningOutcome[Subject, Measurement]


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
        require_budget(self.budget)
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
            raise too_small(self.budget, len(waiting))
        return result

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
            found = race(
                self._racing(subject, point, times),
                _Trials(maker, trials, bench, point),
                lambda: self.clock() >= deadline,
                partial(self._differs, subject.key, point),
                variations,
            )
            if found is None:
                break
            times[point], finished[point] = found.medians, found.finished
        if not needed <= times.keys():
            return None
        defaults = default_blocking(self.cpu_class, subject.element, subject.panels, subject.together)
        return Measurement(subject, times, finished, defaults, choose(times, defaults))

    @staticmethod
    def _differs(key: str, point: int, blocking: Blocking, first: Blocking) -> str:
        raise TuningChangedResults(
            f"{key} at {point} rows: {blocking} gives other bits than {first}. Report this with the model's name."
        )

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


class _Trials:
    """The candidates of one subject at one point; made when they are first run."""

    def __init__(self, maker: Maker, made: dict[Blocking, Trial], bench: Bench, point: int) -> None:
        self._maker, self._made, self._bench, self._point = maker, made, bench, point
        self._launches = 0

    def output(self, blocking: Blocking) -> bytes:
        return self._bench.output(self._trial(blocking), self._point)

    def seconds(self, blocking: Blocking) -> float:
        trial = self._trial(blocking)
        if not self._launches:
            one = float(np.median(self._bench.seconds(trial, self._point, FEWEST_COPIES, 1)))
            wanted = int(STEP_SECONDS / max(one, 1e-7))
            self._launches = min(trial.launches, max(FEWEST_COPIES, wanted))
        return float(np.median(self._bench.seconds(trial, self._point, self._launches, STEPS_A_ROUND)))

    def _trial(self, blocking: Blocking) -> Trial:
        if blocking not in self._made:
            self._made[blocking] = self._maker.trial(blocking)
        return self._made[blocking]
