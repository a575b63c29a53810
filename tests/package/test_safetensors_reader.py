"""The reader against literal bytes and against the safetensors library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_runtime.errors import FileMissing, WeightsInvalid
from tessera_runtime.package.safetensors_reader import SafetensorsFile, parse_header


def file_with(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def tensor(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    return path


def test_literal_bytes(tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    content = b"\x36\0\0\0\0\0\0\0" + header + b"\0\0\x80\x3f\0\0\0\xc0"
    file = SafetensorsFile(written(tmp_path, content))
    assert list(file) == ["x"] and len(file) == 1
    assert file["x"].tolist() == [1.0, -2.0]
    assert file.entry("x").tag == "f32" and file.entry("x").offset == 62
    assert not file["x"].flags.writeable


def test_views_share_the_mapping_and_outlive_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, file_with({"x": tensor("BF16", [3], 0, 6)}, b"\x80\x3f\x00\xc0\x00\x00"))
    file = SafetensorsFile(path)
    first, second = file["x"], file["x"]
    del file
    assert first.dtype == np.uint16 and first.tolist() == [0x3F80, 0xC000, 0]
    assert np.shares_memory(first, second)


def test_absent_file_and_absent_tensor(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match=r"w\.safetensors"):
        SafetensorsFile(tmp_path / "w.safetensors")
    file = SafetensorsFile(written(tmp_path, file_with({"x": tensor("U8", [1], 0, 1)}, b"a")))
    with pytest.raises(WeightsInvalid, match="lack the tensor 'y'"):
        file.entry("y")


def test_alignment(tmp_path: Path) -> None:
    path = written(tmp_path, file_with({"x": tensor("U8", [1], 0, 1)}, b"a"))
    with pytest.raises(WeightsInvalid, match="no multiple of 64"):
        SafetensorsFile(path, alignment=64)


ATTACKS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "a header needs 8"),
    "seven bytes": (b"\x01\0\0\0\0\0\0", "a header needs 8"),
    "header beyond the limit": (b"\xff" * 8 + b"{}", "the limit is"),
    "header beyond the file": (file_with(b"{}", length=3), "ends after 2"),
    "no brace": (file_with(b" {}"), "begin with"),
    "not json": (file_with(b"{]"), "not JSON"),
    "not utf-8": (file_with(b'{"\xff":1}'), "not JSON"),
    "nan": (file_with(b'{"x":NaN}'), "not JSON"),
    "deep": (file_with(b'{"x":' + b"[" * 100_000), "not JSON"),
    "huge number": (
        file_with(b'{"x":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"a"),
        "JSON",
    ),
    "duplicate tensor": (file_with(b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"x":{}}'), "stands twice"),
    "duplicate field": (
        file_with(b'{"x":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}'),
        "stands twice",
    ),
    "not an object": (file_with({"x": 1}), "should have dtype"),
    "missing field": (file_with({"x": {"dtype": "U8", "shape": [0]}}), "should have dtype"),
    "extra field": (file_with({"x": tensor("U8", [0], 0, 0) | {"code": "os.system"}}), "nothing else"),
    "unknown dtype": (file_with({"x": tensor("F99", [0], 0, 0)}), "unknown dtype"),
    "dtype of another type": (file_with({"x": tensor(["U8"], [0], 0, 0)}), "unknown dtype"),
    "negative extent": (file_with({"x": tensor("U8", [-1], 0, 0)}), "not plain sizes"),
    "boolean extent": (file_with({"x": tensor("U8", [True], 0, 1)}, b"a"), "not plain sizes"),
    "fractional extent": (file_with({"x": tensor("U8", [1.0], 0, 1)}, b"a"), "not plain sizes"),
    "extent beyond 63 bits": (file_with({"x": tensor("U8", [2**64 + 1], 0, 1)}, b"a"), "not plain sizes"),
    "backward offsets": (file_with({"x": tensor("U8", [1], 1, 0)}, b"a"), "not plain sizes"),
    "three offsets": (file_with({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 1]}}, b"a"), "plain sizes"),
    "wrapping product": (
        file_with({"x": tensor("U8", [4194305, 4194305, 211106198978564], 0, 4)}, b"abcd"),
        "beyond any memory",
    ),
    "product wraps to zero": (file_with({"x": tensor("F32", [2**32, 2**32], 0, 0)}), "beyond any memory"),
    "shape larger than extent": (file_with({"x": tensor("F32", [2], 0, 4)}, b"abcd"), "its extent is 4"),
    "shape smaller than extent": (file_with({"x": tensor("U8", [1], 0, 4)}, b"abcd"), "its extent is 4"),
    "half a byte": (file_with({"x": tensor("F4", [3], 0, 1)}, b"a"), "its extent"),
    "truncated data": (file_with({"x": tensor("U8", [4], 0, 4)}, b"abc"), "is truncated"),
    "trailing data": (file_with({"x": tensor("U8", [2], 0, 2)}, b"abc"), "no tensor covers"),
    "gap": (file_with({"x": tensor("U8", [1], 0, 1), "y": tensor("U8", [1], 2, 3)}, b"abc"), "gap"),
    "gap at the start": (file_with({"x": tensor("U8", [1], 1, 2)}, b"ab"), "gap"),
    "overlap": (file_with({"x": tensor("U8", [2], 0, 2), "y": tensor("U8", [2], 1, 3)}, b"abc"), "overlaps"),
    "same place twice": (file_with({"x": tensor("U8", [2], 0, 2), "y": tensor("U8", [2], 0, 2)}, b"ab"), "overlaps"),
    "metadata of numbers": (file_with({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata list": (file_with({"__metadata__": ["a"]}), "__metadata__"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused(attack: str, tmp_path: Path) -> None:
    content, reason = ATTACKS[attack]
    with pytest.raises(WeightsInvalid) as refusal:
        SafetensorsFile(written(tmp_path, content))
    assert reason in str(refusal.value) and "'w.safetensors'" in str(refusal.value)


DTYPES = [
    "float32",
    "float16",
    "float64",
    "uint8",
    "int8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "bool",
]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=12).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4)),
        max_size=6,
    ),
    st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=2),
)
def test_reads_what_the_library_writes(
    tmp_path_factory: pytest.TempPathFactory, plan: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None
) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(0, 2, shape).astype(dtype) if dtype == "bool" else rng.integers(0, 100, shape).astype(dtype)
        for name, (dtype, shape) in plan.items()
    }
    path = tmp_path_factory.mktemp("library") / "w.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata)
    file = SafetensorsFile(path)
    assert set(file) == set(arrays)
    assert file.metadata == (metadata or {})
    for name, array in arrays.items():
        assert file[name].dtype == array.dtype and file[name].shape == array.shape
        assert np.array_equal(file[name], array)


library_reads: Callable[[bytes], Any] = safetensors.deserialize
"""Raises for whatever the library refuses; unlike `load` it does not mind dtypes that NumPy lacks."""

BASE = file_with(
    {"a": tensor("F32", [2, 2], 0, 16), "b": tensor("BF16", [3], 16, 22), "c": tensor("U8", [0], 22, 22)}, bytes(22)
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.integers(0, 255)), min_size=1, max_size=3), st.integers(0, 30)
)
def test_refuses_what_the_library_refuses(changes: list[tuple[int, int]], cut: int) -> None:
    """Whatever the library will not read, we will not either; we may refuse more (a key that stands twice)."""
    content = bytearray(BASE)
    for place, value in changes:
        content[place] = value
    spoiled = bytes(content[: len(content) - (cut if cut > 20 else 0)])
    try:
        library_reads(spoiled)
        accepted = True
    except safetensors.SafetensorError:
        accepted = False
    length = int.from_bytes(spoiled[:8], "little")
    try:
        if length > len(spoiled) - 8:
            raise WeightsInvalid("header")
        parse_header(spoiled[8 : 8 + length], len(spoiled), "w")
        ours = True
    except WeightsInvalid:
        ours = False
    assert accepted or not ours


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-3, 2**65) | st.floats() | st.sampled_from(["U8", "F32", "dtype", ""]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "x", "__metadata__"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_gives_a_header_or_a_refusal(value: Any) -> None:
    raw = json.dumps(value).encode()
    try:
        parse_header(raw, 8 + len(raw), "w")
    except WeightsInvalid as error:
        assert str(error)
