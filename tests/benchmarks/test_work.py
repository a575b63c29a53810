"""Rounds become figures, ratios and verdicts."""

from __future__ import annotations

import pytest

from benchmarks.cpu.targets import OPENVINO_BOTH, TARGETS, Target, judge, quality_verdict, verdict
from benchmarks.cpu.work import ALL, DECODE_1, PREFILL, best, figure, ratio_range, spread

SAMPLES = {
    "Tessera int8": {"decode-1": [200.0, 220.0, 210.0]},
    "llama.cpp Q8_0": {"decode-1": [100.0, 110.0, 140.0]},
    "OpenVINO int8": {"prefill-512": [3000.0], "decode-1": [90.0, 95.0, 100.0]},
    "OpenVINO int4": {"prefill-512": [3500.0]},
}


def test_a_figure_is_the_median_of_its_rounds() -> None:
    assert figure(SAMPLES, "Tessera int8", "decode-1") == 210.0
    assert figure(SAMPLES, "Tessera int8", "prefill-512") is None
    assert figure(SAMPLES, "nobody", "decode-1") is None


def test_the_better_of_two_peers_counts() -> None:
    assert best(SAMPLES, OPENVINO_BOTH, "prefill-512") == ("OpenVINO int4", 3500.0)
    assert best(SAMPLES, OPENVINO_BOTH, "decode-1") == ("OpenVINO int8", 95.0)
    assert best(SAMPLES, OPENVINO_BOTH, "decode-64") is None


def test_ratios_are_taken_within_a_round() -> None:
    assert ratio_range(SAMPLES, "Tessera int8", "llama.cpp Q8_0", "decode-1") == (1.5, 2.0)


def test_spread_is_the_range_over_the_median() -> None:
    assert spread([90.0, 100.0, 120.0]) == pytest.approx(0.3)


def test_a_target_compares_medians() -> None:
    target = Target("decode", DECODE_1, ("Tessera int8",), ("llama.cpp Q8_0",), 1.5, 2.0)
    (outcome,) = judge(SAMPLES, (target,))
    assert outcome.ratio == pytest.approx(210 / 110)
    assert outcome.between == (1.5, 2.0)
    assert verdict(outcome.ratio, target.must, target.aim) == "must met"


def test_a_target_without_one_side_is_not_measured() -> None:
    target = Target("prefill", PREFILL, ("Tessera int8",), OPENVINO_BOTH, 1.2, 1.5)
    (outcome,) = judge(SAMPLES, (target,))
    assert (outcome.ratio, outcome.between, outcome.ours) == (None, None, None)
    assert verdict(outcome.ratio, 1.2, 1.5) == "not measured"


@pytest.mark.parametrize(("value", "word"), [(1.19, "missed"), (1.2, "must met"), (1.5, "aim met")])
def test_verdicts_at_their_borders(value: float, word: str) -> None:
    assert verdict(value, 1.2, 1.5) == word


@pytest.mark.parametrize(
    ("name", "perplexity", "size", "word"),
    [
        ("Tessera int8", 10.1, 9, "met"),
        ("Tessera int8-kv8", 10.11, 9, "missed"),
        ("Tessera int4", 12.0, 50, "met"),
        ("Tessera int4", 12.1, 50, "missed"),
        ("Tessera int4-kv8", 11.0, 51, "missed"),
        ("Tessera bf16", 10.0, 9, ""),
        ("OpenVINO int8", 99.0, 9, ""),
    ],
)
def test_quality_at_its_borders(name: str, perplexity: float, size: int, word: str) -> None:
    everybody = {"Tessera bf16": 10.0, "llama.cpp Q4_0": 12.0, name: perplexity}
    assert quality_verdict(name, everybody, {"llama.cpp Q4_0": 50, name: size}) == word


def test_quality_without_a_standard_is_not_judged() -> None:
    assert quality_verdict("Tessera int8", {"Tessera int8": 1.0}, {}) == ""
    assert quality_verdict("Tessera int4", {"Tessera int4": 1.0, "llama.cpp Q4_0": 2.0}, {"Tessera int4": 1}) == ""


def test_every_target_is_about_work_that_is_measured() -> None:
    assert {target.work for target in TARGETS} <= set(ALL)
    assert all(1 < target.must < target.aim for target in TARGETS)
