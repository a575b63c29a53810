"""Checkpoints on disk: what is read, and what is refused in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from tessera_pack.checkpoint import INDEX, Checkpoint
from tessera_pack.errors import CheckpointInvalid, CheckpointNotFound, PackError, PickleRefused, ShapeMismatch
from tessera_pack.layouts import to_bf16

A = np.arange(12, dtype=np.float32).reshape(4, 3) / np.float32(7)
B = np.array([1.5, -2.25], np.float32)


def save(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    safetensors.numpy.save_file(tensors, path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save(tmp_path / "model-1.safetensors", {"a": A})
    save(tmp_path / "model-2.safetensors", {"b": B})
    write_index(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    return tmp_path


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_single_file(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"a": A, "h": A.astype(np.float16), "d": A.astype(np.float64)})
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.names() == {"a", "h", "d"} and "a" in checkpoint and "x" not in checkpoint
    assert np.array_equal(checkpoint.read("a"), A)
    assert np.array_equal(checkpoint.read("h"), A.astype(np.float16).astype(np.float32))
    assert np.array_equal(checkpoint.read("d"), A)
    assert all(checkpoint.read(name).dtype == np.float32 for name in "ahd")
    assert np.array_equal(checkpoint.read_rows("a", 1, 3), A[1:3])
    assert checkpoint.parameters() == 36 and checkpoint.bytes() == 12 * (4 + 2 + 8)


def test_bf16(tmp_path: Path) -> None:
    bits = to_bf16(A)
    header = {"a": {"dtype": "BF16", "shape": [4, 3], "data_offsets": [0, 24]}}
    raw = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bits.tobytes())
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.tensors["a"].dtype == "BF16"
    assert np.array_equal(to_bf16(checkpoint.read("a")), bits)
    assert np.abs(checkpoint.read("a") - A).max() < 0.01


def test_shards(sharded: Path) -> None:
    checkpoint = Checkpoint(sharded)
    assert checkpoint.tensors["b"].shard.name == "model-2.safetensors"
    assert np.array_equal(checkpoint.read("a"), A) and np.array_equal(checkpoint.read("b"), B)


def test_a_single_file_of_another_name(tmp_path: Path) -> None:
    save(tmp_path / "weights.safetensors", {"a": A})
    assert np.array_equal(Checkpoint(tmp_path).read("a"), A)
    save(tmp_path / "more.safetensors", {"b": B})
    with pytest.raises(CheckpointNotFound, match="2 safetensors files but no"):
        Checkpoint(tmp_path)


def missing_shard(folder: Path) -> None:
    (folder / "model-2.safetensors").unlink()


def truncated_shard(folder: Path) -> None:
    os.truncate(folder / "model-1.safetensors", (folder / "model-1.safetensors").stat().st_size - 1)


def corrupt_header(folder: Path) -> None:
    path = folder / "model-1.safetensors"
    path.write_bytes(path.read_bytes().replace(b"F32", b"F31"))


def garbage(folder: Path) -> None:
    (folder / "model-1.safetensors").write_bytes(b"<!DOCTYPE html><html>Not found</html>")


def absent_tensor(folder: Path) -> None:
    write_index(folder, {"a": "model-1.safetensors", "c": "model-2.safetensors"})


def wrong_shard(folder: Path) -> None:
    write_index(folder, {"a": "model-2.safetensors", "b": "model-1.safetensors"})


def path_in_index(folder: Path) -> None:
    write_index(folder, {"a": "../model-1.safetensors"})


def twice(folder: Path) -> None:
    save(folder / "model-2.safetensors", {"a": A, "b": B})


def bad_index(folder: Path) -> None:
    (folder / INDEX).write_text("{")


def index_of_numbers(folder: Path) -> None:
    write_index(folder, {"a": 1})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (missing_shard, "'model-2.safetensors', which model.safetensors.index.json names, is missing"),
        (truncated_shard, "'model-1.safetensors' is not a safetensors file that can be trusted: it is truncated"),
        (corrupt_header, "unknown dtype 'F31'"),
        (garbage, "'model-1.safetensors' is not a safetensors file"),
        (absent_tensor, "'model-2.safetensors' holds the tensor 'c', but it does not"),
        (wrong_shard, "but it does not"),
        (path_in_index, "not a plain file name"),
        (twice, "'a' stands in both"),
        (bad_index, "is not an index"),
        (index_of_numbers, "should map tensor names to file names"),
    ],
)
def test_a_spoiled_checkpoint(sharded: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(sharded)
    with pytest.raises(CheckpointInvalid) as refusal:
        Checkpoint(sharded)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_shard_that_shrinks_while_it_is_read(sharded: Path) -> None:
    checkpoint = Checkpoint(sharded)
    truncated_shard(sharded)
    with pytest.raises(CheckpointInvalid, match="'model-1.safetensors' ended while the tensor 'a'"):
        checkpoint.read("a")


def test_what_the_model_needs(sharded: Path) -> None:
    checkpoint = Checkpoint(sharded)
    checkpoint.require("a", (4, 3))
    with pytest.raises(
        ShapeMismatch, match=r"'a' in 'model-1.safetensors' has shape \[4, 3\]; config.json calls for \[3, 4\]"
    ):
        checkpoint.require("a", (3, 4))
    with pytest.raises(CheckpointInvalid, match="has no tensor 'x'"):
        checkpoint.read("x")


def test_quantized_checkpoints_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"a": A.astype(np.int8)})
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(CheckpointInvalid, match="'a' in 'model.safetensors' is stored as I8"):
        checkpoint.read("a")


def test_pickles_are_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(PickleRefused, match=r"'pytorch_model.bin'.*safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["absent", "file", "empty"])
def test_no_checkpoint(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointNotFound) as refusal:
        Checkpoint(tmp_path / kind)
    assert isinstance(refusal.value, PackError) and refusal.value.hint
