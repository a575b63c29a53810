"""Bytes, multiply-adds and cliffs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cpu import scaling
from benchmarks.cpu.results import Shape
from benchmarks.cpu.shapes import bytes_per_second, multiply_adds_per_second, shape_of

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
}


def test_the_shape_of_smollm2(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    shape = shape_of(tmp_path)
    assert shape.layer_multiply_adds == 30 * (576 * 576 * 2 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert shape.head_multiply_adds == 576 * 49152


def test_bytes_are_weights_and_context() -> None:
    assert bytes_per_second(10.0, weights=1000, context_bytes=4, context=100) == 14000.0


def test_the_head_of_a_prefill_is_computed_once() -> None:
    assert multiply_adds_per_second(20.0, 10, Shape(7, 30)) == 2.0 * (70 + 30)


def test_a_straight_line_has_no_cliff() -> None:
    assert scaling.worst({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0})[1] == pytest.approx(1.0)


def test_a_cliff_is_found_where_it_is() -> None:
    seconds = {tokens: 0.1 + tokens for tokens in scaling.POINTS}
    seconds[96] *= 1.5
    point, above = scaling.worst(seconds)
    assert point == 96
    assert above > 1.4


def test_the_line_goes_by_distance() -> None:
    assert scaling.above_line({1: 1.0, 2: 2.0, 5: 9.0}) == {2: pytest.approx(2.0 / 3.0)}


def test_points_are_in_order_and_reach_512() -> None:
    assert list(scaling.POINTS) == sorted(set(scaling.POINTS))
    assert (scaling.POINTS[0], scaling.POINTS[-1]) == (1, 512)
