"""Int4 weights: how near the numbers come, and what happens at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tessera_pack.errors import WeightNotFinite
from tessera_pack.quantize_groups import dequantize_groups, quantize_groups

GROUP = 32
RANDOM = np.random.default_rng(4)


def noise(rows: NDArray[np.float32]) -> float:
    """The error of a matrix, relative to it."""
    numbers, parameters = quantize_groups(rows, GROUP, "w")
    assert numbers.shape == rows.shape and numbers.max() <= 15
    found = dequantize_groups(numbers, parameters, GROUP)
    return float(np.linalg.norm(found - rows) / np.linalg.norm(rows))


def plain(rows: NDArray[np.float32]) -> float:
    """The same for one float32 scale a group, symmetric, whose largest magnitude stands for -8."""
    grouped = rows.reshape(len(rows), -1, GROUP)
    extreme = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=2)[..., None], axis=2)
    numbers = np.clip(np.rint(grouped / (extreme / -8)), -8, 7)
    return float(np.linalg.norm(numbers * (extreme / -8) - grouped) / np.linalg.norm(rows))


def test_it_is_nearer_than_one_scale_a_group() -> None:
    normal = RANDOM.standard_normal((64, 512), np.float32)
    heavy = RANDOM.standard_t(4, (64, 512)).astype(np.float32)
    assert noise(normal) < 0.88 * plain(normal) and noise(heavy) < 0.8 * plain(heavy)


def test_what_lies_on_a_grid_stays_there() -> None:
    """Weights that were sixteen steps from a smallest one before: all groups of a row have its step."""
    steps = RANDOM.uniform(0.01, 0.02, (8, 1, 1)).astype(np.float32)
    numbers = RANDOM.integers(0, 16, (8, 6, GROUP))
    numbers[..., 0], numbers[..., 1] = 0, 15
    zeros = RANDOM.integers(16, 200, (8, 6, 1)) / 16
    rows = ((numbers - zeros) * steps).astype(np.float32).reshape(8, -1)
    assert noise(rows) < 1e-6


def test_the_last_group_may_be_narrow() -> None:
    rows = RANDOM.standard_normal((16, 45), np.float32)
    numbers, parameters = quantize_groups(rows, GROUP, "w")
    assert numbers.shape == (16, 45) and parameters.scales.shape == parameters.zeros.shape == (16, 2)
    assert noise(rows) < 0.09


def test_rows_do_not_depend_on_each_other() -> None:
    rows = RANDOM.standard_normal((32, 64), np.float32)
    rows[3] *= 1e6
    whole, parameters = quantize_groups(rows, GROUP, "w")
    part, own = quantize_groups(rows[16:], GROUP, "w", 16)
    assert np.array_equal(whole[16:], part) and np.array_equal(parameters.factors[16:], own.factors)


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-39])
def test_rows_of_nothing(value: float) -> None:
    rows = np.full((16, 64), value, np.float32)
    numbers, parameters = quantize_groups(rows, GROUP, "w")
    assert (parameters.factors == 1).all()
    assert not dequantize_groups(numbers, parameters, GROUP).any()


@pytest.mark.parametrize("value", [3.0, -3.0])
def test_rows_of_one_number(value: float) -> None:
    rows = np.full((16, 64), value, np.float32)
    numbers, parameters = quantize_groups(rows, GROUP, "w")
    np.testing.assert_allclose(dequantize_groups(numbers, parameters, GROUP), rows, rtol=1e-6)


def test_a_group_of_zeros_beside_others() -> None:
    rows = RANDOM.standard_normal((16, 64), np.float32)
    rows[:, :32] = 0
    numbers, parameters = quantize_groups(rows, GROUP, "w")
    assert not dequantize_groups(numbers, parameters, GROUP)[:, :32].any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_named(value: float) -> None:
    rows = np.ones((16, 32), np.float32)
    rows[5, 7] = value
    with pytest.raises(WeightNotFinite, match="'w' holds NaN or infinity in row 69"):
        quantize_groups(rows, GROUP, "w", 64)
