"""Measures the candidates of each product on a device and keeps the winners, within a budget of time.

Compiling takes longer than measuring, and processes do it: those of one subject compile while the one before is
measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tessera_compiler.autotune.budget import require_budget, too_small
from tessera_compiler.autotune.choosing import choose, chosen_at
from tessera_compiler.autotune.device_candidates import FIRST_POINTS, device_candidates, points_of
from tessera_compiler.autotune.device_subjects import DeviceSubject
from tessera_compiler.autotune.device_trial import DeviceTrial, DeviceTrialMaker, Made, Making
from tessera_compiler.autotune.racing import race
from tessera_compiler.autotune.results import Measured, TuningOutcome
from tessera_compiler.schedule.device_blocking import SPLIT_TOKENS, DeviceBlocking, broken_rule
from tessera_compiler.schedule.device_tuned_cache import DeviceTunedEntry


class DeviceBench(Protocol):
    """The operands of one subject on the device, and a way to run trials on them. Both raise `CandidateFailed`."""

    def seconds(self, trial: DeviceTrial, rows: int) -> float:
        """How long one launch takes that reads weights nobody has read for a while, in steps of so many rows."""
        ...

    def output(self, trial: DeviceTrial, rows: int) -> bytes:
        """What stands for the bits of all that a launch writes."""
        ...

    def close(self) -> None: ...


DeviceRunner = Callable[[DeviceTrial, int], DeviceBench]
"""Makes a bench whose operands fit a trial and all others of its subject, for at most so many rows."""

DeviceMaker = Callable[[DeviceSubject, Sequence[DeviceBlocking]], Making]


def making_with(workers: int | None) -> DeviceMaker:
    """Makers that compile with so many processes."""
    return lambda subject, candidates: DeviceTrialMaker(subject, candidates, workers)


@dataclass(frozen=True)
class DeviceMeasurement(Measured[DeviceSubject, DeviceBlocking]):
    """What is known of one subject after its trials."""

    dropped: dict[DeviceBlocking, str] = field(default_factory=dict)
    """Candidates that could not be compiled or run, and why."""

    def entry(self) -> DeviceTunedEntry:
        """What goes to the cache."""
        return DeviceTunedEntry(self.chosen, self.microseconds)


@dataclass
class DeviceTuningResult(TuningOutcome[DeviceSubject, DeviceMeasurement]):
    failed: dict[str, str] = field(default_factory=dict)
    """By key, why products that there was time for were not tuned."""


@dataclass(frozen=True)
class DeviceTuner:
    maker: DeviceMaker
    runner: DeviceRunner
    budget: float
    """Seconds for all subjects together, their compilation included. It is looked at before every measurement."""
    clock: Callable[[], float] = time.perf_counter

    def tune(
        self,
        subjects: Sequence[DeviceSubject],
        known: Sequence[str],
        keep: Callable[[DeviceMeasurement], None],
        report: Callable[[str, int, int], None] = lambda phase, done, total: None,
    ) -> DeviceTuningResult:
        """Measures every subject whose key is not `known`; `keep` is called with each as soon as it is done.

        A candidate that cannot be compiled or run, or whose results are not those of the default, bit for bit, is
        dropped. Raises TuningBudgetTooSmall if there was not time for even one subject.
        """
        require_budget(self.budget)
        result = DeviceTuningResult()
        result.hits = [subject for subject in subjects if subject.key in known]
        waiting = [subject for subject in subjects if subject.key not in known]
        end = self.clock() + self.budget
        pending = self._start(waiting[0]) if waiting else None
        for number, subject in enumerate(waiting):
            report("tuning", number, len(waiting))
            if pending is None:
                result.left.append(subject)
                continue
            with pending:
                made = pending.finish(max(0.0, end - self.clock()))
            following = waiting[number + 1 : number + 2]
            pending = self._start(following[0]) if following and self.clock() < end else None
            try:
                # What is not compiled by then says nothing about a product.
                measurement = self._measure(subject, made, end) if self.clock() < end else None
            except BaseException:
                if pending is not None:
                    pending.__exit__(None, None, None)
                raise
            if isinstance(measurement, str):
                result.failed[subject.key] = measurement
            elif measurement is None:
                result.left.append(subject)
            else:
                keep(measurement)
                result.measured.append(measurement)
        report("tuning", len(waiting), len(waiting))
        if waiting and not result.measured and not result.failed:
            raise too_small(self.budget, len(waiting))
        return result

    def _start(self, subject: DeviceSubject) -> Making:
        """Candidates in the order in which they are wanted, each once."""
        wanted = [each for point in points_of(subject.rows) for each in device_candidates(subject, point)]
        return self.maker(subject, list(dict.fromkeys(wanted)))

    def _measure(self, subject: DeviceSubject, made: Made, end: float) -> DeviceMeasurement | str | None:
        """None if there was no time; a sentence if it cannot be tuned."""
        trials = {blocking: trial for blocking, trial in made.items() if isinstance(trial, DeviceTrial)}
        dropped = {blocking: why for blocking, why in made.items() if isinstance(why, str)}
        if not trials:
            return f"none of its {len(made)} candidates could be compiled: {next(iter(dropped.values()), '')}"
        points = points_of(subject.rows)
        bench = self.runner(next(iter(trials.values())), max(points))
        times: dict[int, dict[DeviceBlocking, float]] = {}
        finished: dict[int, frozenset[DeviceBlocking]] = {}
        try:
            for point in points:
                if self.clock() >= end:
                    break
                usable = [each for each in trials if each not in dropped]
                running = _running(subject, point, usable)
                if not running:
                    return "none of its defaults could be run, so there are no results to compare others with"
                found = race(
                    running,
                    _Trials(trials, bench, point),
                    lambda: self.clock() >= end,
                    lambda blocking, first: f"it gives other bits than {first.listed()}",
                )
                if found is None:
                    if self.clock() < end:
                        return f"no candidate for {point} rows could be run"
                    break
                times[point], finished[point] = found.medians, found.finished
                dropped |= found.dropped
        finally:
            bench.close()
        if not set(points) & set(FIRST_POINTS) <= times.keys():
            return None
        for measured in times.values():
            for blocking in dropped.keys() & measured.keys():
                del measured[blocking]
        if not all(times.values()):
            return "candidates that ran for some numbers of rows failed for others"
        chosen = _chosen(subject, times)
        rule = broken_rule(subject.target, subject.form, (*chosen, *subject.defaults))
        if rule is not None:
            return f"the fastest would change results: {rule}"
        return DeviceMeasurement(subject, times, finished, subject.defaults, chosen, dropped)


def _running(subject: DeviceSubject, point: int, usable: Sequence[DeviceBlocking]) -> list[DeviceBlocking]:
    """The candidates at a point that can be run; the default there comes first, or another that was to be."""
    wanted = [each for each in device_candidates(subject, point) if each in usable]
    defaults = [replace(chosen_at(subject.defaults, each), max_tokens=0) for each in (point, *points_of(subject.rows))]
    first = next((each for each in defaults if each in usable), None)
    return [] if first is None else list(dict.fromkeys((first, *wanted)))


@dataclass(frozen=True)
class _Trials:
    """The candidates of one subject at one point."""

    trials: dict[DeviceBlocking, DeviceTrial]
    bench: DeviceBench
    point: int

    def output(self, blocking: DeviceBlocking) -> bytes:
        return self.bench.output(self.trials[blocking], self.point)

    def seconds(self, blocking: DeviceBlocking) -> float:
        return self.bench.seconds(self.trials[blocking], self.point)


def _chosen(subject: DeviceSubject, times: dict[int, dict[DeviceBlocking, float]]) -> tuple[DeviceBlocking, ...]:
    """Where columns are cut, few rows and many are computed in two ways, with a boundary between them."""
    if subject.splits == 1:
        return choose(times, subject.defaults)
    few = {point: taken for point, taken in times.items() if point <= SPLIT_TOKENS}
    many = {point: taken for point, taken in times.items() if point > SPLIT_TOKENS}
    *first, last = choose(few, subject.defaults)
    return (*first, replace(last, max_tokens=SPLIT_TOKENS), *choose(many, subject.defaults))
