from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from tessera_pack.errors import WeightNotFinite
from tessera_pack.quantize import dequantize_rows, quantize_rows, row_scales

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
ORDINARY = st.just(0.0) | st.floats(2.0**-40, 2.0**40, width=32) | st.floats(-(2.0**40), -(2.0**-40), width=32)


@settings(max_examples=150, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=FINITE))
def test_error_is_at_most_half_a_step(rows: NDArray[np.float32]) -> None:
    scales = row_scales(rows, "w")
    stored = quantize_rows(rows, scales)
    assert stored.min() >= 1, "the value -128 is never used, so that the range is symmetric"
    error = np.abs(dequantize_rows(stored, scales).astype(np.float64) - rows)
    largest = np.abs(rows.astype(np.float64)).max(axis=1, keepdims=True)
    assert (error <= np.maximum(largest / 127 * 0.5001, 2.0**-118)).all()


@settings(max_examples=100, deadline=None)
@given(arrays(np.float32, (3, 6), elements=ORDINARY), st.integers(-20, 20))
def test_quantizing_what_was_quantized_changes_nothing(rows: NDArray[np.float32], power: int) -> None:
    scales = row_scales(rows, "w")
    stored = quantize_rows(rows, scales)
    scaled = dequantize_rows(stored, scales) * np.float32(2.0**power)
    assert np.array_equal(quantize_rows(scaled, row_scales(scaled, "w")), stored)


def test_literal() -> None:
    rows = np.array([[127, -127, 0, 63.5, 0.5, 1.5]], np.float32)
    scales = row_scales(rows, "w")
    assert scales.tolist() == [1.0]
    assert quantize_rows(rows, scales).tolist() == [[255, 1, 128, 192, 128, 130]]


def test_zero_and_tiny_rows_have_scale_one() -> None:
    rows = np.array([[0.0, -0.0], [1e-40, 0.0], [1.0, 0.0]], np.float32)
    scales = row_scales(rows, "w")
    assert scales.tolist()[:2] == [1.0, 1.0] and scales[2] == np.float32(1 / 127)
    assert quantize_rows(rows, scales).tolist() == [[128, 128], [128, 128], [255, 128]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_by_name_and_row(bad: float) -> None:
    rows = np.ones((4, 3), np.float32)
    rows[2, 1] = bad
    with pytest.raises(WeightNotFinite, match=r"'layers\.0\.w' holds NaN or infinity in row 102"):
        row_scales(rows, "layers.0.w", 100)
