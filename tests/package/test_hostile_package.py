"""Packages that were altered, cut, grown or made to mislead: each is refused, naming what is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from example_package import example_manifest, example_program, write_example

from tessera_pack.safetensors_writer import SafetensorsLayout
from tessera_pack.writer import PackageWriter
from tessera_runtime.errors import (
    AbiMismatch,
    DigestMismatch,
    FileMissing,
    FileTruncated,
    ManifestInvalid,
    PackageError,
    PackageNotFound,
    ProgramInvalid,
    TargetUnavailable,
    UnexpectedFile,
    UnsafePath,
    WeightsInvalid,
)
from tessera_runtime.package.manifest import Target
from tessera_runtime.package.reader import open_package

FILES = [
    "assets/generation_config.json",
    "graph_ir.tssa",
    "schedule_cache/cpu.json",
    "tile_kernels/cpu/program.json",
    "tile_kernels/cpu/x86-64-v3.so",
    "tokenizer/tokenizer.json",
    "weights/shard_tp0_pp0.safetensors",
]


def test_a_whole_package_opens(package: Path) -> None:
    opened = open_package(package)
    assert [entry.path for entry in opened.manifest.files] == FILES
    assert opened.program("cpu")["abi"] == 1
    assert opened.read_text("graph_ir.tssa").startswith("builtin.module")
    assert opened.has("tokenizer/tokenizer.json") and not opened.has("tokenizer/vocab.txt")
    head = opened.weights()["head"]
    assert head.shape == (2, 4, 16, 4) and head.reshape(-1)[:3].tolist() == [0, 1, 2]
    assert head.ctypes.data % 64 == 0


def test_a_link_to_a_package_is_a_package(package: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(package)
    assert open_package(tmp_path / "current").manifest.name == "tiny"


def test_reading_writes_nothing(package: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in package.rglob("*")}
    open_package(package).weights()
    assert {path: path.stat().st_mtime_ns for path in package.rglob("*")} == before


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere(package: Path, name: str) -> None:
    path = package / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DigestMismatch) as refusal:
        open_package(package)
    assert repr(name) in str(refusal.value)
    assert len(re.findall(r"\b[0-9a-f]{64}\b", str(refusal.value))) == 2
    open_package(package, verify="sizes")


def test_a_flipped_bit_in_the_manifest(package: Path) -> None:
    path = package / "manifest.yaml"
    text = path.read_bytes()
    for step, place in enumerate(range(0, len(text), 11)):
        spoiled = bytearray(text)
        spoiled[place] ^= 1 << (step % 8)
        path.write_bytes(spoiled)
        with pytest.raises(PackageError):
            open_package(package)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(package: Path, name: str) -> None:
    size = (package / name).stat().st_size
    os.truncate(package / name, size - 1)
    with pytest.raises(FileTruncated) as refusal:
        open_package(package, verify="sizes")
    assert repr(name) in str(refusal.value) and f"{size - 1} bytes" in str(refusal.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(package: Path, name: str) -> None:
    (package / name).unlink()
    with pytest.raises(FileMissing, match=re.escape(repr(name))):
        open_package(package)


@pytest.mark.parametrize(
    "name", ["extra", ".hidden", "weights/more.safetensors", "tile_kernels/cpu/deep/er/x", "tokenizer/..."]
)
def test_an_extra_file(package: Path, name: str) -> None:
    (package / name).parent.mkdir(parents=True, exist_ok=True)
    (package / name).write_bytes(b"")
    with pytest.raises(UnexpectedFile, match=re.escape(repr(name))):
        open_package(package)


def link_to_a_file(package: Path) -> None:
    original = package / "tokenizer/tokenizer.json"
    moved = original.rename(package.parent / "elsewhere.json")
    original.symlink_to(moved)


def link_within(package: Path) -> None:
    (package / "tokenizer/copy.json").symlink_to("tokenizer.json")


def link_to_a_folder(package: Path) -> None:
    shutil.copytree(package / "assets", package.parent / "assets")
    shutil.rmtree(package / "assets")
    (package / "assets").symlink_to(package.parent / "assets")


def link_for_manifest(package: Path) -> None:
    moved = (package / "manifest.yaml").rename(package.parent / "manifest.yaml")
    (package / "manifest.yaml").symlink_to(moved)


def dangling_link(package: Path) -> None:
    (package / "assets/x").symlink_to("/nonexistent")


def pipe(package: Path) -> None:
    (package / "tokenizer/tokenizer.json").unlink()
    os.mkfifo(package / "tokenizer/tokenizer.json")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (link_to_a_file, "'tokenizer/tokenizer.json' in the package 'tiny.tspkg' is a link"),
        (link_within, "'tokenizer/copy.json' in the package 'tiny.tspkg' is a link"),
        (link_to_a_folder, "'assets' in the package 'tiny.tspkg' is a link"),
        (link_for_manifest, "manifest.yaml of the package 'tiny.tspkg' is not a plain file"),
        (dangling_link, "'assets/x' in the package 'tiny.tspkg' is a link"),
        (pipe, "'tokenizer/tokenizer.json' in the package 'tiny.tspkg' is neither a file nor a folder"),
    ],
)
def test_what_is_no_plain_file(package: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(package)
    with pytest.raises(UnsafePath) as refusal:
        open_package(package)
    assert said in str(refusal.value)


def test_a_manifest_that_reaches_outside(package: Path) -> None:
    path = package / "manifest.yaml"
    (package.parent / "secret").write_text("{}")
    path.write_text(path.read_text().replace("assets/generation_config.json", "../secret"))
    with pytest.raises(UnsafePath, match=re.escape("'../secret' may not stand in a package: it climbs out")):
        open_package(package)


def test_no_package(tmp_path: Path) -> None:
    with pytest.raises(PackageNotFound, match="does not exist"):
        open_package(tmp_path / "absent.tspkg")
    (tmp_path / "file").write_text("")
    with pytest.raises(PackageNotFound, match="is not a folder"):
        open_package(tmp_path / "file")
    with pytest.raises(PackageNotFound, match="it has no manifest.yaml"):
        open_package(tmp_path)


def test_a_manifest_without_end(package: Path) -> None:
    os.truncate(package / "manifest.yaml", 2**40)  # sparse: it must be refused by its size, unread
    with pytest.raises(ManifestInvalid, match="the limit is"):
        open_package(package)


def test_an_unreadable_file(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(paths: object, sizes: object) -> list[str]:
        raise PermissionError(13, "Permission denied", "graph_ir.tssa")

    monkeypatch.setattr("tessera_runtime.package.reader.sha256_files", refuse)
    with pytest.raises(FileMissing, match=r"graph_ir\.tssa cannot be read: Permission denied\. Check"):
        open_package(package)


def test_a_newer_format(package: Path) -> None:
    path = package / "manifest.yaml"
    path.write_text(path.read_text().replace("format: 1", "format: 2"))
    with pytest.raises(AbiMismatch, match="format 2; this runtime reads format 1"):
        open_package(package)


@pytest.mark.parametrize("abi", [0, 4, "1", True, None, 1.0])
def test_a_program_of_another_abi(tmp_path: Path, abi: object) -> None:
    package = open_package(write_example(tmp_path / "p", program=example_program() | {"abi": abi}))
    with pytest.raises(AbiMismatch, match="ABI .*; this runtime runs ABI 1, 2, 3"):
        package.program("cpu")


@pytest.mark.parametrize("abi", [1, 3])
def test_abis_of_gpu_programs_are_counted_apart(tmp_path: Path, abi: int) -> None:
    targets = (Target(name="cuda-sm90", abi=abi, classes=()),)
    program = example_program("cuda-sm90") | {"abi": abi}
    package = open_package(write_example(tmp_path / "p", program=program, target="cuda-sm90", targets=targets))
    with pytest.raises(AbiMismatch) as refusal:
        package.program("cuda-sm90")
    assert str(refusal.value) == (
        f"The program 'tile_kernels/cuda-sm90/program.json' has ABI {abi}; this runtime runs ABI 2. "
        "Pack the model again with this Tessera, or install the one that packed it."
    )


def test_a_manifest_and_a_program_that_disagree(tmp_path: Path) -> None:
    targets = tuple(msgspec.structs.replace(target, abi=3) for target in example_manifest().targets)
    package = open_package(write_example(tmp_path / "p", targets=targets))
    with pytest.raises(AbiMismatch, match="manifest says ABI 3"):
        package.program("cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"target": "triton"}, "'triton'"), ({"launches": {}}, "'launches'"), ({"output": None}, "'output'")],
)
def test_a_program_out_of_shape(tmp_path: Path, change: dict[str, object], said: str) -> None:
    package = open_package(write_example(tmp_path / "p", program=example_program() | change))
    with pytest.raises(ProgramInvalid, match=said):
        package.program("cpu")


def test_a_target_that_is_not_there(package: Path) -> None:
    with pytest.raises(TargetUnavailable) as refusal:
        open_package(package).program("cuda-sm90")
    assert "'cpu'" in str(refusal.value) and "--target cuda-sm90" in str(refusal.value)


def with_weights(out: Path, content: bytes) -> Path:
    with PackageWriter(out) as writer:
        writer.write_text("graph_ir.tssa", "")
        writer.write_text("tile_kernels/cpu/program.json", json.dumps(example_program()))
        writer.write_bytes("weights/shard_tp0_pp0.safetensors", content)
        writer.seal(example_manifest())
        return writer.publish()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a header needs 8"),
        (SafetensorsLayout([]).prefix + b"x", "no tensor covers"),
        (b"\x08\0\0\0\0\0\0\0{      }", ""),
        (b'\x3c\0\0\0\0\0\0\0{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}       x', "no multiple of 64"),
    ],
)
def test_weights_that_lie(tmp_path: Path, content: bytes, said: str) -> None:
    """The digests are right, so the package opens; what the shard says about itself is checked when it is mapped."""
    package = open_package(with_weights(tmp_path / "p", content))
    if not said:
        assert len(package.weights()) == 0
        return
    with pytest.raises(WeightsInvalid, match=said):
        package.weights()
