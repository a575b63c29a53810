"""Trials that really run: kernels with any blocking give the same bits, and launches take time."""

from __future__ import annotations

import numpy as np
import pytest
from tuning_bench import CPU_CLASS, planned

from tessera.tuning.native_bench import NativeBench
from tessera_compiler.autotune.candidates import candidates
from tessera_compiler.autotune.subjects import subjects_of
from tessera_compiler.autotune.trial import MAX_TOKENS, TrialMaker
from tessera_compiler.schedule.passes.plan_tiles import Blocking


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4"])
def test_blockings_give_the_same_bits(dtype: str) -> None:
    subject = subjects_of([planned(dtype)], CPU_CLASS)[0]
    maker = TrialMaker(subject, CPU_CLASS)
    bench = NativeBench(maker.operands(), 2)
    chosen = candidates(CPU_CLASS, subject.element, subject.panels, subject.together, 7)
    trials = [maker.trial(blocking) for blocking in (chosen[0], chosen[-1])]
    for tokens in (1, 7, 33):
        first, second = (bench.output(trial, tokens) for trial in trials)
        assert first == second and len(first) % tokens == 0 and any(first)
    assert len(bench.output(trials[0], MAX_TOKENS)) == 512 * len(bench.output(trials[0], 1))


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_what_goes_to_the_cache_is_compared_too(dtype: str) -> None:
    (subject,) = (each for each in subjects_of([planned(dtype)], CPU_CLASS) if each.key.endswith("heads16"))
    assert subject.launches == 2 and subject.together == 1
    maker = TrialMaker(subject, CPU_CLASS)
    bench = NativeBench(maker.operands(), 2)
    one, other = (maker.trial(Blocking(0, rows, panels)) for rows, panels in ((1, 4), (3, 1)))
    queries, cache = 64 * 4, (32 * 2) * 2 * 16  # four heads of float32; keys and values of a block, in bfloat16
    for tokens in (1, 16, 35):
        found = bench.output(one, tokens)
        assert found == bench.output(other, tokens)
        assert len(found) == tokens * queries + -(-tokens // 16) * cache
        assert any(found[tokens * queries :])
    assert (bench.seconds(one, 35, 4, 2) > 0).all()


def test_launches_are_timed() -> None:
    subject = subjects_of([planned("fp32")], CPU_CLASS)[0]
    maker = TrialMaker(subject, CPU_CLASS)
    bench = NativeBench(maker.operands(), 1)
    trial = maker.trial(candidates(CPU_CLASS, subject.element, subject.panels, subject.together, 64)[0])
    assert trial.launches == maker.launches
    all_of_them = bench.seconds(trial, 64, trial.launches, 3)
    assert all_of_them.shape == (3, trial.launches) and (all_of_them > 0).all()
    some = bench.seconds(trial, 64, 5, 2)
    assert some.shape == (2, 4) and (some > 0).all()
    more, fewer = (float(np.median(bench.seconds(trial, tokens, 5, 5))) for tokens in (512, 1))
    assert more > fewer


def test_planning_is_left_as_it_was() -> None:
    subject = subjects_of([planned("bf16")], CPU_CLASS)[0]
    before = str(subject.group.tiles)
    TrialMaker(subject, CPU_CLASS).trial(candidates(CPU_CLASS, "bf16", subject.panels, subject.together, 64)[-1])
    assert str(subject.group.tiles) == before
