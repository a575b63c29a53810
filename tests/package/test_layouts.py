"""Packing against the definition of the layouts, element by element."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tessera_pack import layouts

MATRIX_LAYOUTS = ["rows", "panels_k1", "panels_k2", "panels_k4"]


def naive(matrix: NDArray[Any], layout: str, padding: int) -> NDArray[Any]:
    """docs/spec/program.md, "Layouts of weights", one element at a time."""
    count, columns = matrix.shape
    padded = -(-count // (64 if count > 256 else 16)) * (64 if count > 256 else 16)
    if layout == "rows":
        result = np.full((count, -(-columns // 16) * 16), padding, matrix.dtype)
        for n in range(count):
            for k in range(columns):
                result[n, k] = matrix[n, k]
        return result
    depth = int(layout[-1])
    shape: tuple[int, ...] = (padded // 16, -(-columns // depth), 16, depth)
    result = np.full(shape, padding, matrix.dtype)
    for n in range(count):
        for k in range(columns):
            result[n // 16, k // depth, n % 16, k % depth] = matrix[n, k]
    return result[..., 0] if depth == 1 else result


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40) | st.integers(250, 330),
    st.integers(1, 21),
    st.sampled_from(MATRIX_LAYOUTS),
    st.sampled_from(["f32", "bf16", "u8"]),
    st.lists(st.integers(1, 20), max_size=3),
)
def test_place_is_the_definition(count: int, columns: int, layout: str, dtype: str, cuts: list[int]) -> None:
    matrix = np.arange(1, count * columns + 1).reshape(count, columns).astype(layouts.STORAGE[dtype])
    packed = layouts.empty((count, columns), dtype, layout)
    edges = sorted({0, *(16 * cut for cut in cuts if 16 * cut < count), count})
    for start, stop in itertools.pairwise(edges):
        layouts.place(packed, matrix[start:stop], start, layout)
    expected = naive(matrix, layout, 128 if dtype == "u8" else 0)
    assert packed.shape == expected.shape == layouts.physical_shape((count, columns), layout)
    assert packed.dtype == layouts.STORAGE[dtype]
    assert np.array_equal(packed, expected)
    assert packed.nbytes == layouts.physical_bytes((count, columns), dtype, layout)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40) | st.integers(250, 330), st.integers(1, 35), st.lists(st.integers(1, 20), max_size=3))
def test_place_puts_two_numbers_in_a_byte(count: int, columns: int, cuts: list[int]) -> None:
    matrix = (np.arange(1, count * columns + 1).reshape(count, columns) * 7 % 16).astype(np.uint8)
    packed = layouts.empty((count, columns), "u4", "panels_k8")
    edges = sorted({0, *(16 * cut for cut in cuts if 16 * cut < count), count})
    for start, stop in itertools.pairwise(edges):
        layouts.place(packed, matrix[start:stop], start, "panels_k8")
    expected = np.zeros_like(packed)
    for n in range(count):
        for k in range(columns):
            expected[n // 16, k // 8, n % 16, k % 4] |= matrix[n, k] << (4 if k % 8 >= 4 else 0)
    assert packed.shape == layouts.physical_shape((count, columns), "panels_k8")
    assert np.array_equal(packed, expected)
    assert packed.nbytes == layouts.physical_bytes((count, columns), "u4", "panels_k8")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40) | st.integers(250, 330), st.integers(1, 300), st.lists(st.integers(1, 20), max_size=3))
def test_place_puts_eight_numbers_in_a_word(count: int, columns: int, cuts: list[int]) -> None:
    matrix = (np.arange(1, count * columns + 1).reshape(count, columns) * 7 % 16).astype(np.uint8)
    packed = layouts.empty((count, columns), "u4", "matrix4")
    edges = sorted({0, *(16 * cut for cut in cuts if 16 * cut < count), count})
    for start, stop in itertools.pairwise(edges):
        layouts.place(packed, matrix[start:stop], start, "matrix4")
    words = np.ascontiguousarray(packed).view("<u4")
    k = np.arange(columns)
    shifts = 8 * (k % 128 // 32) + 4 * (k % 2)
    found = words[k[:, None] // 128, np.arange(count), k[:, None] % 32 // 2] >> shifts[:, None] & 15
    assert np.array_equal(found.T, matrix)
    assert packed.shape == layouts.physical_shape((count, columns), "matrix4")
    assert packed.nbytes == layouts.physical_bytes((count, columns), "u4", "matrix4")
    assert words.sum(dtype=np.uint64) == (matrix.astype(np.uint64) << shifts.astype(np.uint64)).sum()


@pytest.mark.parametrize(("count", "columns"), [(40, 35), (300, 16)])
def test_place_takes_the_zero_point_off(count: int, columns: int) -> None:
    matrix = np.random.default_rng(count).integers(0, 256, (count, columns)).astype(np.uint8)
    packed = layouts.empty((count, columns), "u8", "matrix_signed")
    for start in range(0, count, 16):
        layouts.place(packed, matrix[start : start + 16], start, "matrix_signed")
    expected = np.zeros(layouts.physical_shape((count, columns), "matrix_signed"), np.int8)
    expected[:count, :columns] = matrix.astype(np.int16) - 128
    assert np.array_equal(packed.view(np.int8), expected)


def test_place_puts_four_columns_in_a_word() -> None:
    matrix = np.arange(17 * 6, dtype=np.uint8).reshape(17, 6)
    packed = layouts.empty((17, 6), "u8", "columns4")
    layouts.place(packed, matrix[:16], 0, "columns4")
    layouts.place(packed, matrix[16:], 16, "columns4")
    assert packed.shape == layouts.physical_shape((17, 6), "columns4") == (2, 32, 4)
    assert np.array_equal(packed.transpose(1, 0, 2).reshape(32, 8)[:17, :6], matrix)


def test_place_takes_what_is_not_contiguous() -> None:
    matrix = np.arange(32 * 8, dtype=np.uint8).reshape(8, 32).T
    packed = layouts.empty((32, 8), "u8", "panels_k4")
    layouts.place(packed, matrix, 0, "panels_k4")
    assert np.array_equal(packed, naive(matrix, "panels_k4", 128))


def test_vectors() -> None:
    packed = layouts.empty((70,), "f32", "rows")
    layouts.place(packed, np.ones(70, np.float32), 0, "rows")
    assert packed.shape == (128,) and packed.sum() == 70 and packed[69] == 1 and packed[70] == 0


@pytest.mark.parametrize(
    ("rows", "padded"), [(1, 16), (16, 16), (17, 32), (225, 240), (256, 256), (257, 320), (320, 320), (321, 384)]
)
def test_padded_rows(rows: int, padded: int) -> None:
    assert layouts.padded_rows(rows) == padded


@pytest.mark.parametrize(
    ("shape", "layout"), [((4,), "panels_k1"), ((2, 3, 4), "panels_k4"), ((4, 4), "panels_k3"), ((4, 4), "columns")]
)
def test_what_has_no_layout(shape: tuple[int, ...], layout: str) -> None:
    with pytest.raises(ValueError, match="layout"):
        layouts.physical_shape(shape, layout)


def test_panels_begin_at_a_panel() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        layouts.place(layouts.empty((32, 4), "f32", "panels_k1"), np.zeros((16, 4), np.float32), 8, "panels_k1")


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-2.0, 0xC000),
        (0.0, 0x0000),
        (-0.0, 0x8000),
        (1.00390625, 0x3F80),  # halfway between two: to the even one, down
        (1.01171875, 0x3F82),  # halfway: to the even one, up
        (1.0039064, 0x3F81),  # just above halfway
        (np.inf, 0x7F80),
        (-np.inf, 0xFF80),
        (3.4e38, 0x7F80),  # beyond the largest
        (1e-45, 0x0000),
    ],
)
def test_bf16_rounding(value: float, bits: int) -> None:
    assert layouts.to_bf16(np.array([value], np.float32))[0] == bits


def test_bf16_keeps_nan() -> None:
    patterns = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0x7FC00000], np.uint32).view(np.float32)
    assert np.isnan(layouts.from_bf16(layouts.to_bf16(patterns))).all()


def test_bf16_round_trip_of_all_bits() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    values = layouts.from_bf16(bits)
    numbers = ~np.isnan(values)
    assert np.array_equal(layouts.to_bf16(values)[numbers], bits[numbers])
