"""What is measured on a device, within which time, and what is kept of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from device_trials import TARGET, FakeWorkshop, planned_for_device, subjects

from tessera_compiler.autotune.cache_file import device_cache_file
from tessera_compiler.autotune.choosing import chosen_at
from tessera_compiler.autotune.device_candidates import MOST_CANDIDATES, POINTS, device_candidates, points_of
from tessera_compiler.autotune.device_subjects import DeviceSubject, device_subjects_of
from tessera_compiler.autotune.device_tuner import DeviceMeasurement, DeviceTuner, DeviceTuningResult
from tessera_compiler.autotune.errors import TuningBudgetTooSmall
from tessera_compiler.schedule.device_blocking import DeviceBlocking, broken_rule
from tessera_compiler.schedule.device_tuned_cache import load_device_tuned, read_device_tuned
from tessera_compiler.targets.triton.architectures import architecture_of


@pytest.fixture(scope="module")
def found() -> list[DeviceSubject]:
    return subjects()


def narrow_is_fast(blocking: DeviceBlocking, rows: int) -> float:
    """Instances of 32 outputs for few rows, of 64 for many."""
    return 1e-5 * (1 + abs(blocking.outputs - (32 if rows < 100 else 64)) / 32 + blocking.warps / 100)


def tune(
    workshop: FakeWorkshop, found: list[DeviceSubject], budget: float = 1e6, known: tuple[str, ...] = ()
) -> tuple[DeviceTuningResult, list[DeviceMeasurement]]:
    kept: list[DeviceMeasurement] = []
    tuner = DeviceTuner(workshop.maker, workshop.runner, budget, workshop.clock)
    result = tuner.tune(found, known, kept.append)
    assert not workshop.open and all(each.closed for each in workshop.makings)
    return result, kept


def default_of(subject: DeviceSubject, point: int) -> DeviceBlocking:
    return replace(chosen_at(subject.defaults, point), max_tokens=0)


def test_products_are_found_once_each(found: list[DeviceSubject]) -> None:
    keys = [subject.key for subject in found]
    assert len(keys) == len(set(keys)) >= 4 and all(key.startswith(f"{TARGET}/matmul/bf16/") for key in keys)
    assert sum(subject.launches for subject in found) == 9  # four a layer, and the head
    assert [subject.rows for subject in found].count("L") == 1
    assert any(subject.parts == 2 for subject in found)
    module = planned_for_device("bf16")
    assert device_subjects_of([module, module], TARGET)[0].launches == 2 * found[0].launches


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4", "fp8", "fp32"])
def test_candidates_fit_and_keep_their_bits(dtype: str) -> None:
    for subject in subjects(dtype):
        for point in points_of(subject.rows):
            candidates = device_candidates(subject, point)
            assert candidates[0] == default_of(subject, point) and 2 <= len(candidates) <= MOST_CANDIDATES
            assert len(set(candidates)) == len(candidates)
            for each in candidates:
                assert each.max_tokens == 0 and subject.panels * 16 % each.outputs == 0
                assert broken_rule(TARGET, subject.form, (*subject.defaults, each)) is None
                size = {"bf16": 4, "f32": 8}.get(subject.form, 1)
                assert each.depth * (each.rows + each.outputs) * size * each.stages / 2 <= 2 * (
                    architecture_of(TARGET).shared_bytes
                )


def test_the_fastest_wins_at_each_number_of_rows(found: list[DeviceSubject]) -> None:
    subject = next(each for each in found if each.rows == "T" and each.panels % 4 == 0)
    workshop = FakeWorkshop(narrow_is_fast)
    result, kept = tune(workshop, [subject])
    (measurement,) = result.measured
    assert kept == [measurement] and not result.failed and not result.left
    assert set(measurement.times) == set(POINTS)
    for point, times in measurement.times.items():
        assert times[measurement.winner_at(point)] <= 1.1 * min(times.values())
    assert measurement.winner_at(1).outputs == 32 and measurement.winner_at(2048).outputs == 64
    assert measurement.chosen[-1].max_tokens == 0
    assert measurement.entry().microseconds[1] == pytest.approx(1e6 * min(measurement.times[1].values()), rel=0.1)


def test_candidates_that_fail_are_dropped(found: list[DeviceSubject]) -> None:
    subject = found[0]
    _, refused, failing, other = device_candidates(subject, 1)[:4]
    workshop = FakeWorkshop(lambda blocking, rows: 1e-6 if blocking in (refused, failing, other) else 1e-5)
    workshop.refused, workshop.failing = frozenset({refused}), frozenset({failing})
    workshop.outputs[other] = b"other"
    (measurement,) = tune(workshop, [subject])[0].measured
    assert {refused, failing, other} == set(measurement.dropped)
    assert "other bits" in measurement.dropped[other] and "driver refused" in measurement.dropped[failing]
    assert not {replace(each, max_tokens=0) for each in measurement.chosen} & set(measurement.dropped)


def test_without_a_default_nothing_is_compared(found: list[DeviceSubject]) -> None:
    workshop = FakeWorkshop(narrow_is_fast)
    workshop.refused = frozenset(replace(each, max_tokens=0) for each in found[0].defaults)
    result, kept = tune(workshop, found[:2])
    assert "no results to compare" in result.failed[found[0].key]
    assert [measurement.subject for measurement in kept] == [found[1]]


def test_what_the_cache_has_is_not_measured(found: list[DeviceSubject]) -> None:
    workshop = FakeWorkshop(narrow_is_fast)
    result, kept = tune(workshop, found, known=tuple(subject.key for subject in found))
    assert result.hits == found and not kept and not workshop.makings


def test_the_next_is_compiled_while_one_is_measured(found: list[DeviceSubject]) -> None:
    workshop = FakeWorkshop(narrow_is_fast)
    started: list[int] = []
    workshop.cost = lambda blocking, rows: started.append(len(workshop.makings)) or 1e-5  # type: ignore[func-returns-value]
    tune(workshop, found[:3])
    assert started[0] == 2 and started[-1] == 3


def test_the_budget_is_kept(found: list[DeviceSubject]) -> None:
    workshop = FakeWorkshop(narrow_is_fast, seconds_each=0.02)
    result, kept = tune(workshop, found, budget=15.0)
    assert workshop.clock.now <= 15.0 + workshop.compiling + 2 * workshop.seconds_each
    assert kept == result.measured and kept and result.left
    assert len(kept) + len(result.left) == len(found)


@pytest.mark.parametrize("budget", [4.9, 6.0])
def test_too_small_a_budget_is_an_error(found: list[DeviceSubject], budget: float) -> None:
    workshop = FakeWorkshop(narrow_is_fast, seconds_each=1.0)
    with pytest.raises(TuningBudgetTooSmall, match="budget"):
        tune(workshop, found[:1], budget)


def test_where_columns_are_cut_few_rows_and_many_have_a_boundary(found: list[DeviceSubject]) -> None:
    subject = replace(found[1], splits=2)
    (measurement,) = tune(FakeWorkshop(lambda blocking, rows: 1e-5), [subject])[0].measured
    assert 64 in [each.max_tokens for each in measurement.chosen]


def test_what_is_kept_can_be_read_back(found: list[DeviceSubject], tmp_path: Path) -> None:
    file = device_cache_file(tmp_path, TARGET, "NVIDIA H200 (test)")
    assert file.path == tmp_path / TARGET / "nvidia-h200-test.json"
    _, kept = tune(FakeWorkshop(narrow_is_fast), found)
    for measurement in kept:
        file.put(measurement.subject.key, measurement.entry())
        assert read_device_tuned(file.path, TARGET)[measurement.subject.key].blockings == measurement.chosen
    assert load_device_tuned(tmp_path, (TARGET,)).keys() == {subject.key for subject in found}
    again = device_cache_file(tmp_path, TARGET, "NVIDIA H200 (test)")
    assert again.entries.keys() == file.entries.keys()
    assert set(again.entries[found[0].key].microseconds) == set(points_of(found[0].rows))
