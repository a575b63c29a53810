from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tessera_pack.layouts import STORAGE
from tessera_pack.safetensors_writer import SafetensorsLayout, TensorPlan
from tessera_runtime.package.safetensors_reader import FILLER_PREFIX, SafetensorsFile

PLANS = [
    TensorPlan("z", "f32", (2, 16)),
    TensorPlan("ragged", "bf16", (3, 16)),
    TensorPlan("a", "u8", (1, 4, 16, 4)),
    TensorPlan("none", "f32", (0,)),
]


def tensors() -> list[np.ndarray]:
    return [(np.arange(np.prod(plan.shape)) % 200).astype(STORAGE[plan.dtype]).reshape(plan.shape) for plan in PLANS]


def test_what_is_written_is_read_by_us_and_by_the_library(tmp_path: Path) -> None:
    layout = SafetensorsLayout(PLANS, {"format": "tessera"})
    path = tmp_path / "w.safetensors"
    with open(path, "wb") as sink:
        layout.write(sink, tensors())
    assert path.stat().st_size == layout.file_size
    file = SafetensorsFile(path, alignment=64)
    assert file.metadata == {"format": "tessera"}
    assert list(file) == ["z", "ragged", "a", "none"]
    for plan, array in zip(PLANS, tensors(), strict=True):
        assert np.array_equal(file[plan.name], array) and file.entry(plan.name).tag == plan.dtype
    with safetensors.safe_open(path, "numpy") as library:
        assert np.array_equal(library.get_tensor("z"), tensors()[0])
        assert library.get_slice("ragged").get_dtype() == "BF16"


def test_literal_header() -> None:
    sink = io.BytesIO()
    SafetensorsLayout([TensorPlan("x", "u8", (64,))]).write(sink, [np.zeros(64, np.uint8)])
    header = b'{"x":{"dtype":"U8","shape":[64],"data_offsets":[0,64]}}'
    assert sink.getvalue() == b"\x38\0\0\0\0\0\0\0" + header.ljust(56) + bytes(64)


def test_tensors_are_taken_one_at_a_time() -> None:
    alive: list[int] = []

    class Sink:
        def write(self, data: object) -> None:
            assert len(alive) <= len(PLANS)

    def make() -> Iterator[np.ndarray]:
        for index, array in enumerate(tensors()):
            assert alive == list(range(index)), "the one before was not yet written"
            yield array
            alive.append(index)

    SafetensorsLayout(PLANS).write(Sink(), make())
    assert alive == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "array", [np.zeros((16, 2), np.float32), np.zeros((2, 16), np.float64), np.zeros((2, 16), np.uint16)]
)
def test_a_tensor_that_differs_from_its_plan(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="'z'"):
        SafetensorsLayout(PLANS[:1]).write(io.BytesIO(), [array])


def test_too_few_and_too_many_tensors() -> None:
    with pytest.raises(ValueError, match="shorter"):
        SafetensorsLayout(PLANS).write(io.BytesIO(), tensors()[:2])
    with pytest.raises(ValueError, match="longer"):
        SafetensorsLayout(PLANS[:2]).write(io.BytesIO(), tensors())


@pytest.mark.parametrize("names", [["a", "a"], ["__metadata__"], [FILLER_PREFIX + "a"]])
def test_names_that_are_taken(names: list[str]) -> None:
    with pytest.raises(ValueError, match="is taken"):
        SafetensorsLayout([TensorPlan(name, "u8", (64,)) for name in names])
