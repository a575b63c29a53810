"""From recipes and a checkpoint to the tensors of a package."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from tessera_compiler.module import WeightRecipe
from tessera_compiler.tile.float8 import float8_values
from tessera_pack import weights
from tessera_pack.checkpoint import Checkpoint
from tessera_pack.errors import CheckpointInvalid, ShapeMismatch, WeightNotFinite
from tessera_pack.layouts import empty, from_bf16, place, to_bf16
from tessera_pack.quantize import quantize_rows, row_scales
from tessera_pack.quantize_groups import quantize_groups
from tessera_pack.weights import pack_weights, physical_shape, recipe_bytes

RNG = np.random.default_rng(1)
Q = RNG.standard_normal((32, 20), np.float32)
K = RNG.standard_normal((16, 20), np.float32)
CONV = RNG.standard_normal((20, 48), np.float32)
NORM = RNG.standard_normal(20).astype(np.float32)


def checkpoint(folder: Path, **more: NDArray[Any]) -> Checkpoint:
    safetensors.numpy.save_file({"q": Q, "k": K, "conv": CONV, "norm": NORM, **more}, folder / "model.safetensors")
    return Checkpoint(folder)


def packed(array: NDArray[Any], dtype: str, layout: str) -> NDArray[Any]:
    result = empty(array.shape, dtype, layout)
    place(result, array, 0, layout)
    return result


def packed4(numbers: NDArray[np.uint8]) -> NDArray[Any]:
    result = empty(numbers.shape, "u4", "panels_k8")
    place(result, numbers, 0, "panels_k8")
    return result


@pytest.fixture(params=[4 * 2**20, 64])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with every tensor in one block, once with as many blocks as there can be."""
    monkeypatch.setattr(weights, "_BLOCK_ELEMENTS", request.param)
    monkeypatch.setattr(weights, "_BLOCK_ROWS", 16 if request.param == 64 else 64)


@pytest.mark.usefixtures("block")
def test_all_kinds_of_recipes(tmp_path: Path) -> None:
    both = np.concatenate([Q, K])
    table = RNG.standard_normal((5, 8)).astype(np.float32)
    recipes = [
        WeightRecipe("merged", (48, 20), "bf16", "panels_k2", ("q", "k")),
        WeightRecipe("turned", (48, 20), "f32", "panels_k1", ("conv",), transposed=True),
        WeightRecipe("norm", (20,), "f32", "rows", ("model.norm",)),
        WeightRecipe("int8", (48, 20), "u8", "panels_k4", ("q", "k")),
        WeightRecipe("int8.scale", (48,), "f32", "rows", ("q", "k"), scales_of="int8"),
        WeightRecipe("table", (5, 8), "f32", "rows", constant=table),
        WeightRecipe("two", (40,), "f32", "rows", ("model.norm", "model.norm")),
    ]
    made = list(pack_weights(recipes, checkpoint(tmp_path), {"model.norm": "norm"}))
    assert [tensor.name for tensor in made] == [recipe.name for recipe in recipes]
    scales = row_scales(both, "")
    expected = [
        packed(to_bf16(both), "bf16", "panels_k2"),
        packed(CONV.T, "f32", "panels_k1"),
        packed(NORM, "f32", "rows"),
        packed(quantize_rows(both, scales), "u8", "panels_k4"),
        packed(scales, "f32", "rows"),
        packed(table, "f32", "rows"),
        packed(np.concatenate([NORM, NORM]), "f32", "rows"),
    ]
    for tensor, array, recipe in zip(made, expected, recipes, strict=True):
        assert np.array_equal(tensor.array, array), tensor.name
        assert tensor.array.shape == physical_shape(recipe) and tensor.array.nbytes == recipe_bytes(recipe)


@pytest.mark.usefixtures("block")
def test_scales_may_come_first(tmp_path: Path) -> None:
    recipes = [
        WeightRecipe("scale", (32,), "f32", "rows", ("q",), scales_of="int8"),
        WeightRecipe("int8", (32, 20), "u8", "rows", ("q",)),
    ]
    scale, values = pack_weights(recipes, checkpoint(tmp_path))
    found = (values.array[:, :20].astype(np.float32) - 128) * scale.array[:32, None]
    assert np.abs(found - Q).max() <= np.abs(Q).max() / 127 * 0.51
    assert (values.array[:, 20:] == 128).all()


def test_scales_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path)
    reads: list[str] = []
    original = Checkpoint.read_rows

    def count(self: Checkpoint, name: str, start: int, stop: int) -> NDArray[np.float32]:
        reads.append(name)
        return original(self, name, start, stop)

    monkeypatch.setattr(Checkpoint, "read_rows", count)
    recipes = [
        WeightRecipe("int8", (32, 20), "u8", "rows", ("q",)),
        WeightRecipe("scale", (32,), "f32", "rows", ("q",), scales_of="int8"),
    ]
    list(pack_weights(recipes, source))
    assert reads == ["q"]


INT4 = [
    WeightRecipe("int4", (48, 20), "u4", "panels_k8", ("q", "k"), group=16),
    WeightRecipe("factors", (48,), "f32", "rows", ("q", "k"), scales_of="int4", group=16),
    WeightRecipe("scales", (48, 2), "u8", "panels_k1", ("q", "k"), scales_of="int4", part="scales", group=16),
    WeightRecipe("zeros", (48, 2), "u8", "panels_k1", ("q", "k"), scales_of="int4", part="zeros", group=16),
]


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_weights_of_four_bits(tmp_path: Path, order: tuple[int, ...]) -> None:
    both = np.concatenate([Q, K])
    numbers, parameters = quantize_groups(both, 16, "")
    expected = {
        "int4": packed4(numbers),
        "factors": packed(parameters.factors, "f32", "rows"),
        "scales": packed(parameters.scales, "u8", "panels_k1"),
        "zeros": packed(parameters.zeros, "u8", "panels_k1"),
    }
    for tensor in pack_weights([INT4[index] for index in order], checkpoint(tmp_path)):
        assert np.array_equal(tensor.array, expected[tensor.name]), tensor.name
        recipe = next(each for each in INT4 if each.name == tensor.name)
        assert tensor.array.shape == physical_shape(recipe) and tensor.array.nbytes == recipe_bytes(recipe)


def test_groups_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def count(rows: Any, group: int, name: str, first_row: int = 0) -> Any:
        made.append(name)
        return quantize_groups(rows, group, name, first_row)

    monkeypatch.setattr(weights, "quantize_groups", count)
    list(pack_weights(INT4, checkpoint(tmp_path)))
    assert made == ["q + k"]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (WeightRecipe("w", (33, 20), "f32", "rows", ("q",)), r"'q' has shape \[32, 20\].*\[33, 20\]"),
        (WeightRecipe("w", (32, 21), "f32", "rows", ("q",)), r"'q' has shape \[32, 20\].*\[32, 21\]"),
        (WeightRecipe("w", (20, 48), "f32", "rows", ("conv",), transposed=True), r"'conv' has shape.*transposed"),
        (WeightRecipe("w", (49, 20), "f32", "rows", ("q", "k")), r"as a part of \[49, 20\]"),
        (WeightRecipe("w", (32,), "f32", "rows", ("q",)), r"'q' has shape"),
    ],
)
def test_wrong_shapes(tmp_path: Path, recipe: WeightRecipe, said: str) -> None:
    with pytest.raises(ShapeMismatch, match=said):
        list(pack_weights([recipe], checkpoint(tmp_path)))


def test_an_absent_tensor(tmp_path: Path) -> None:
    recipe = WeightRecipe("w", (32, 20), "f32", "rows", ("graph.name",))
    with pytest.raises(CheckpointInvalid, match=r"has no tensor 'file\.name'"):
        list(pack_weights([recipe], checkpoint(tmp_path), {"graph.name": "file.name"}))


def test_nan_is_refused_for_integers_alone(tmp_path: Path) -> None:
    bad = Q.copy()
    bad[17, 3] = np.nan
    source = checkpoint(tmp_path, bad=bad)
    for dtype in ("f32", "bf16"):
        (tensor,) = pack_weights([WeightRecipe("w", (32, 20), dtype, "rows", ("bad",))], source)
        values = tensor.array if dtype == "f32" else from_bf16(tensor.array)
        assert np.isnan(values[17, 3])
    with pytest.raises(WeightNotFinite, match="'bad' holds NaN or infinity in row 17"):
        list(pack_weights([WeightRecipe("w", (32, 20), "u8", "rows", ("bad",))], source))
    with pytest.raises(WeightNotFinite, match="'bad' holds NaN or infinity in row 17.* to int4"):
        list(pack_weights([WeightRecipe("w", (32, 20), "u4", "panels_k8", ("bad",), group=16)], source))


def test_eight_bit_floats_have_a_scale_for_each_row(tmp_path: Path) -> None:
    recipes = [
        WeightRecipe("float8", (32, 20), "f8_e4m3", "matrix", ("q",)),
        WeightRecipe("scales", (32,), "f32", "rows", ("q",), scales_of="float8"),
    ]
    stored, scales = (tensor.array for tensor in pack_weights(recipes, checkpoint(tmp_path)))
    assert stored.shape == (32, 32) and not stored[:, 20:].any() and not (stored & 0x7F == 0x7F).any()
    values = float8_values(stored)[:, :20]
    assert np.array_equal(np.abs(values).max(axis=1), np.full(32, 448))
    off = np.abs(values * scales[:32, None] - Q)
    assert (off <= np.maximum(np.abs(Q) / 16, scales[:32, None] * 2.0**-10) * 1.001).all()


def test_float16_is_rounded_and_refused_where_it_does_not_reach(tmp_path: Path) -> None:
    recipe = WeightRecipe("w", (32, 20), "f16", "matrix", ("q",))
    (tensor,) = pack_weights([recipe], checkpoint(tmp_path))
    assert np.array_equal(tensor.array[:, :20], Q.astype(np.float16))
    large = Q.copy()
    large[9, 4] = 1e5
    with pytest.raises(WeightNotFinite, match=r"'large' holds 1e\+05 in row 9; float16 holds up to 65504"):
        list(pack_weights([WeightRecipe("w", (32, 20), "f16", "rows", ("large",))], checkpoint(tmp_path, large=large)))


def test_memory_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_BLOCK_ELEMENTS", 2**16)
    big = np.ones((2048, 1024), np.float32)
    source = checkpoint(tmp_path, big=big, wide=big.T.copy())
    recipes = [
        WeightRecipe("a", (2048, 1024), "u8", "panels_k4", ("big",)),
        WeightRecipe("a4", (2048, 1024), "u4", "panels_k8", ("big",), group=32),
        WeightRecipe("b", (2048, 1024), "bf16", "panels_k2", ("big",)),
        WeightRecipe("c", (2048, 1024), "f32", "panels_k1", ("wide",), transposed=True),
    ]
    tracemalloc.start()
    try:
        for _ in pack_weights(recipes, source):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * big.nbytes
