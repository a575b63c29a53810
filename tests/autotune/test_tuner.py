"""What is measured, within which time, and what is kept of it."""

from __future__ import annotations

import pytest
from tuning_bench import CPU_CLASS, Clock, FakeBench, FakeMaker, planned
from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.autotune.candidates import POINTS, candidates
from tessera_compiler.autotune.errors import TuningBudgetTooSmall, TuningChangedResults
from tessera_compiler.autotune.racing import ROUNDS
from tessera_compiler.autotune.subjects import Subject, subjects_of
from tessera_compiler.autotune.tuner import Measurement, Tuner, TuningResult
from tessera_compiler.schedule.passes.plan_tiles import Blocking


@pytest.fixture(scope="module")
def program() -> ModuleOp:
    return planned("int8")


@pytest.fixture(scope="module")
def subjects(program: ModuleOp) -> list[Subject]:
    return subjects_of([program], CPU_CLASS)


def two_panels_are_fast(blocking: Blocking, tokens: int) -> float:
    return 1e-3 * -(-tokens // blocking.rows) * (1.0 if blocking.panels == 2 else 1.5)


def tune(
    subjects: list[Subject], bench: FakeBench, budget: float = 1e6, known: tuple[str, ...] = ()
) -> tuple[TuningResult, list[Measurement]]:
    kept: list[Measurement] = []
    return Tuner(CPU_CLASS, bench, budget, bench.clock, FakeMaker).tune(subjects, known, kept.append), kept


def test_kernels_are_found_once_each(subjects: list[Subject], program: ModuleOp) -> None:
    keys = [subject.key for subject in subjects]
    assert len(keys) == len(set(keys)) >= 4
    assert sum(subject.launches for subject in subjects) == 9  # four a layer, and the head
    assert [subject.rows for subject in subjects].count("L") == 1
    assert subjects_of([program, program], CPU_CLASS)[0].launches == 2 * subjects[0].launches


def test_the_fastest_wins(subjects: list[Subject]) -> None:
    result, kept = tune(subjects[:1], FakeBench(two_panels_are_fast, Clock()))
    (measurement,) = result.measured
    assert kept == [measurement] and not result.hits and not result.left
    assert measurement.chosen[-1].max_tokens == 0
    for point, times in measurement.times.items():
        assert times[measurement.winner_at(point)] <= 1.1 * min(times.values())
    assert set(measurement.times) == set(POINTS)
    entry = measurement.entry()
    assert entry.blockings == measurement.chosen
    assert entry.microseconds[1] == pytest.approx(1e6 * measurement.times[1][measurement.winner_at(1)])


def test_slow_candidates_are_given_up(subjects: list[Subject]) -> None:
    bench = FakeBench(two_panels_are_fast, Clock())
    (measurement,) = tune(subjects[:1], bench)[0].measured
    slow = [b for b, seconds in measurement.times[512].items() if seconds > 1.5 * min(measurement.times[512].values())]
    assert slow and all(measurement.gave_up(512, blocking) for blocking in slow)
    counts = [bench.measured.count((blocking, 512)) for blocking in measurement.times[512]]
    assert max(counts) <= ROUNDS + 1  # one more decides how long a round is


def test_good_blocks_are_tried_in_other_ways(subjects: list[Subject]) -> None:
    def ahead_is_fast(blocking: Blocking, tokens: int) -> float:
        return two_panels_are_fast(blocking, tokens) * (0.9 if blocking.ahead else 1.0)

    (measurement,) = tune(subjects[:1], FakeBench(ahead_is_fast, Clock()))[0].measured
    assert all(blocking.ahead for blocking in measurement.chosen)


def test_what_the_cache_has_is_not_measured(subjects: list[Subject]) -> None:
    bench = FakeBench(two_panels_are_fast, Clock())
    result, kept = tune(subjects, bench, known=tuple(subject.key for subject in subjects))
    assert result.hits == subjects and not kept and not bench.measured


def test_the_budget_is_kept(subjects: list[Subject]) -> None:
    bench = FakeBench(two_panels_are_fast, Clock())
    result, kept = tune(subjects, bench, budget=30.0)
    assert bench.clock.now <= 30.0 + 2 * bench.seconds_each
    assert kept == result.measured and result.left
    assert len(result.measured) + len(result.left) == len(subjects)


@pytest.mark.parametrize("budget", [0.0, 4.9, 6.0])
def test_too_small_a_budget_is_an_error(subjects: list[Subject], budget: float) -> None:
    with pytest.raises(TuningBudgetTooSmall, match="budget"):
        tune(subjects[:1], FakeBench(two_panels_are_fast, Clock(), seconds_each=1.0), budget=budget)


def test_other_bits_are_a_defect(subjects: list[Subject]) -> None:
    bench = FakeBench(two_panels_are_fast, Clock())
    first = subjects[0]
    last = candidates(CPU_CLASS, first.element, first.panels, first.together, 1)[-1]
    bench.outputs[last] = b"other"
    kept: list[Measurement] = []
    with pytest.raises(TuningChangedResults, match=r"other bits"):
        Tuner(CPU_CLASS, bench, 1e6, bench.clock, FakeMaker).tune(subjects[:1], (), kept.append)
    assert not kept
