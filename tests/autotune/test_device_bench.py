"""Trials on a driver that is a fake: what is launched, on what, and that everything is given back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from device_trials import StandInCompilation, compiled_by_nobody, subjects
from fake_driver import FakeDriver, FakeMemory

from tessera.tuning.device_bench import FEWEST_LAUNCHES, DeviceBench
from tessera_compiler.autotune import device_trial
from tessera_compiler.autotune.device_candidates import device_candidates
from tessera_compiler.autotune.device_subjects import DeviceSubject
from tessera_compiler.autotune.device_trial import DeviceTrial, DeviceTrialMaker
from tessera_compiler.autotune.racing import CandidateFailed
from tessera_compiler.schedule.device_blocking import DeviceBlocking
from tessera_runtime.errors import DeviceLost
from tessera_runtime.executor.gpu.program import read_program

__all__ = ["compiled_by_nobody"]
pytestmark = pytest.mark.usefixtures("compiled_by_nobody")


@pytest.fixture(autouse=True)
def few_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_trial, "MOST_COPIES", 3)


def trials_of(subject: DeviceSubject, count: int = 2) -> list[DeviceTrial]:
    candidates = device_candidates(subject, 1)[:count]
    with DeviceTrialMaker(subject, candidates, None) as maker:
        made = maker.finish(1.0)
    trials = [made[blocking] for blocking in candidates]
    assert all(isinstance(trial, DeviceTrial) for trial in trials)
    return [trial for trial in trials if isinstance(trial, DeviceTrial)]


def driver_for(trials: list[DeviceTrial]) -> FakeDriver:
    parameters = {}
    for trial in trials:
        for kernel in read_program(trial.target.program).kernels.values():
            parameters[kernel.entry] = kernel.function_parameters
    return FakeDriver(parameters)


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4", "fp8", "fp16"])
def test_every_product_can_be_tried(dtype: str) -> None:
    for subject in subjects(dtype):
        trials = trials_of(subject)
        assert subject.key in trials[0].name
        driver = driver_for(trials)
        bench = DeviceBench(driver, trials[0], 64)
        for rows in (1, 64, 16):
            for trial in trials:
                assert bench.output(trial, rows) and bench.seconds(trial, rows) > 0
        bench.close()
        assert not driver.left_over() and driver.graph_launches


def test_launches_read_weights_of_their_own_and_numbers() -> None:
    subject = subjects()[0]
    trials = trials_of(subject)
    program = read_program(trials[0].target.program)
    entry = next(iter(trials[0].target.program["kernels"].values()))["entry"]
    places = {argument.kind: place for place, argument in enumerate(program.launches[0].arguments)}
    weights: list[int] = []

    def kernel(memory: FakeMemory, values: list[int], grid: tuple[int, int, int]) -> None:
        weights.append(values[places["weight"]])
        seen = memory.view(values[places["weight"]], 4096, "weights").view(np.uint16)
        given = memory.view(values[0], 128, "activations").view(np.uint16)
        assert len(np.unique(seen)) > 100 and len(np.unique(given)) > 10

    driver = driver_for(trials)
    driver.kernels[entry] = kernel
    bench = DeviceBench(driver, trials[0], 16)
    bench.seconds(trials[0], 16)
    bench.close()
    assert len(set(weights)) == 3 and len(weights) % FEWEST_LAUNCHES == 0


def test_results_are_told_apart() -> None:
    trials = trials_of(subjects()[0], 3)
    program = read_program(trials[0].target.program)
    (result,) = program.launches[0].writes
    place = next(
        n for n, each in enumerate(program.launches[0].arguments) if (each.kind, each.index) == ("buffer", result)
    )
    entries = [next(iter(trial.target.program["kernels"].values()))["entry"] for trial in trials]
    assert len(set(entries)) == 3
    driver = driver_for(trials)

    def writing(value: int) -> object:
        def kernel(memory: FakeMemory, values: list[int], grid: tuple[int, int, int]) -> None:
            memory.view(values[place], 2, "result").fill(value)

        return kernel

    for entry, value in zip(entries, (1, 1, 2), strict=True):
        driver.kernels[entry] = writing(value)  # type: ignore[assignment]
    bench = DeviceBench(driver, trials[0], 16)
    one, same, other = (bench.output(trial, 16) for trial in trials)
    assert one == same != other
    bench.close()


def test_where_columns_are_cut_both_launches_are_timed() -> None:
    subject = next(each for each in subjects() if each.depth >= 64 and each.parts == 1)
    from xdsl.dialects.builtin import DictionaryAttr, IntegerAttr, i64

    group = subject.group.clone()
    group.splits = DictionaryAttr({subject.target: IntegerAttr(2, i64)})
    cut = replace(subject, group=group, splits=2)
    with DeviceTrialMaker(cut, [replace(subject.defaults[0], max_tokens=0)], None) as maker:
        (trial,) = maker.finish(1.0).values()
    assert isinstance(trial, DeviceTrial)
    driver = driver_for([trial])
    bench = DeviceBench(driver, trial, 128)
    for rows, launches in ((16, 2), (128, 1)):
        driver.launches.clear()
        bench.output(trial, rows)
        assert len(driver.launches) == launches
    bench.close()


def test_what_cannot_be_made_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subjects()[0]
    first, second = device_candidates(subject, 1)[:2]
    monkeypatch.setattr(
        StandInCompilation, "refused", staticmethod(lambda job: f"{first.outputs}x{first.depth}" in job.source.symbol)
    )
    odd = DeviceBlocking(0, 16, 48, 128, 4, 4)
    with DeviceTrialMaker(subject, [first, second, odd], 1) as maker:
        made = maker.finish(1.0)
    assert "is too large" in str(made[first]) and isinstance(made[second], DeviceTrial)


def test_a_refusal_is_the_candidates_and_a_lost_device_is_the_end() -> None:
    trials = trials_of(subjects()[0])
    driver = driver_for(trials)
    bench = DeviceBench(driver, trials[0], 16)
    driver.too_old = True
    with pytest.raises(CandidateFailed, match="cannot read this code"):
        bench.output(trials[0], 16)
    driver.too_old = False
    bench.output(trials[1], 16)
    driver.lose_after = -1
    with pytest.raises(DeviceLost, match=r"lost with cuda-sm90/matmul/bf16"):
        bench.seconds(trials[1], 16)
    bench.close()
