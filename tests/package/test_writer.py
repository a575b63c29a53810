"""The package appears whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from example_package import example_manifest, write_example
from numpy.typing import NDArray

from tessera_pack import writer as module
from tessera_pack.errors import DiskFull, OutputExists, OutputUnwritable
from tessera_pack.safetensors_writer import SafetensorsLayout, TensorPlan
from tessera_pack.writer import PackageWriter
from tessera_runtime.errors import ManifestInvalid, UnsafePath
from tessera_runtime.package.reader import open_package

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_packs_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = write_example(tmp_path / "a.tspkg"), write_example(tmp_path / "b.tspkg")
    assert contents(first) == contents(second)
    assert sorted(os.listdir(tmp_path)) == ["a.tspkg", "b.tspkg"]


def test_nothing_is_there_before_publish(tmp_path: Path) -> None:
    out = tmp_path / "p.tspkg"
    with PackageWriter(out) as writer:
        writer.write_text("graph_ir.tssa", "")
        assert not out.exists() and writer.path.parent == tmp_path and writer.path.name.startswith(".p.tspkg.partial-")
    assert os.listdir(tmp_path) == []


def test_a_sealed_package_opens_before_it_is_published(tmp_path: Path) -> None:
    out = tmp_path / "p.tspkg"
    with PackageWriter(out) as writer:
        writer.write_text("graph_ir.tssa", "")
        writer.write_text("tile_kernels/cpu/program.json", "{}")
        writer.write_weights("weights/shard_tp0_pp0.safetensors", SafetensorsLayout([]), [])
        writer.seal(example_manifest(evidence=None))
        assert open_package(writer.path).manifest.evidence is None
        writer.seal(example_manifest())
        assert writer.publish() == out
    assert open_package(out).manifest.evidence is not None


def test_publish_wants_a_seal(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "p") as writer, pytest.raises(ValueError, match="call seal first"):
        writer.publish()
    with pytest.raises(ValueError, match="not open"):
        writer.write_text("graph_ir.tssa", "")


def test_a_manifest_that_does_not_hang_together_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid), PackageWriter(tmp_path / "p") as writer:
        writer.seal(example_manifest())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["../x", "/x", "manifest.yaml", "assets/A", "assets/a/b"])
def test_paths_that_cannot_be(tmp_path: Path, path: str) -> None:
    with PackageWriter(tmp_path / "p") as writer:
        writer.write_text("assets/a", "")
        with pytest.raises(UnsafePath):
            writer.write_text(path, "")


def test_copy_file(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 100)
    with PackageWriter(tmp_path / "p") as writer:
        writer.copy_file("assets/copy", tmp_path / "source")
        assert writer.entries[0].size == 100 and (writer.path / "assets/copy").read_bytes() == b"x" * 100


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_output_exists(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "p.tspkg"
    if kind == "file":
        out.touch()
    elif kind == "folder":
        out.mkdir()
    else:
        out.symlink_to("nowhere")
    with pytest.raises(OutputExists, match="exists already"), PackageWriter(out):
        pass
    assert os.listdir(tmp_path) == ["p.tspkg"]


def test_output_comes_into_being_meanwhile(tmp_path: Path) -> None:
    out = tmp_path / "p.tspkg"
    with pytest.raises(OutputExists, match="came into being"), PackageWriter(out) as writer:
        fill(writer)
        out.mkdir()
        writer.publish()
    assert os.listdir(tmp_path) == ["p.tspkg"] and os.listdir(out) == []


def fill(writer: PackageWriter) -> None:
    writer.write_text("graph_ir.tssa", "")
    writer.write_text("tile_kernels/cpu/program.json", "{}")
    writer.write_weights("weights/shard_tp0_pp0.safetensors", SafetensorsLayout([]), [])
    writer.seal(example_manifest())


def test_no_folder_to_write_in(tmp_path: Path) -> None:
    with pytest.raises(OutputUnwritable, match="does not exist"), PackageWriter(tmp_path / "a" / "p"):
        pass


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *arguments: object, **named: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(OutputUnwritable, match="cannot be written to: Permission denied"),
        PackageWriter(tmp_path / "p"),
    ):
        pass


def test_space_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    with (
        pytest.raises(DiskFull, match=re.escape("needs 2.0 GiB, but")),
        PackageWriter(tmp_path / "p", needed_bytes=2**31),
    ):
        pass
    assert os.listdir(tmp_path) == []
    with pytest.raises(DiskFull, match="has only 1.0 MiB free"), PackageWriter(tmp_path / "p") as writer:
        writer.write_weights("weights/w", SafetensorsLayout([TensorPlan("x", "f32", (2**20,))]), [])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_disk_becomes_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Wherever the system says so: here when the second block is written, and when it is flushed."""
    written = 0

    def write(self: module.HashingSink, data: bytes | memoryview) -> None:
        nonlocal written
        written += 1
        if written > 1:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.HashingSink, "write", write)
    with pytest.raises(DiskFull) as refusal, PackageWriter(tmp_path / "p", needed_bytes=3 * 2**20) as writer:
        fill(writer)
    assert "became full" in str(refusal.value) and "the whole package needs 3.0 MiB" in str(refusal.value)
    assert os.listdir(tmp_path) == []


def test_a_real_full_disk(tmp_path: Path) -> None:
    """`/dev/full` fails every write as a full disk does."""
    with pytest.raises(DiskFull), PackageWriter(tmp_path / "p") as writer:
        (writer.path / "assets").mkdir()
        original = open

        def opened(path: object, mode: str, **named: object) -> object:
            return original("/dev/full", "wb", buffering=0)

        module.open = opened  # type: ignore[attr-defined]
        try:
            writer.write_bytes("assets/x", b"x")
        finally:
            del module.open  # type: ignore[attr-defined]
    assert os.listdir(tmp_path) == []


def test_an_error_in_the_middle_of_the_weights(tmp_path: Path) -> None:
    def arrays() -> Iterator[NDArray[np.float32]]:
        yield np.zeros(64, np.float32)
        raise RuntimeError("the checkpoint ended")

    layout = SafetensorsLayout([TensorPlan("a", "f32", (64,)), TensorPlan("b", "f32", (64,))])
    with pytest.raises(RuntimeError), PackageWriter(tmp_path / "p") as writer:
        writer.write_weights("weights/shard_tp0_pp0.safetensors", layout, arrays())
    assert os.listdir(tmp_path) == []


WRITE_FOREVER = """
import sys, time
from tessera_pack.writer import PackageWriter
with PackageWriter(sys.argv[1]) as writer:
    with writer.stream("assets/x") as sink:
        sink.write(b"x" * 1000)
        print("writing", flush=True)
        while True:
            sink.write(b"x")
            time.sleep(0.001)
"""


def start_writing(out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def finish(process: subprocess.Popen[str], number: int) -> tuple[int, str]:
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    return process.returncode, errors


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, -2)])
def test_a_signal_leaves_nothing(tmp_path: Path, number: int, code: int) -> None:
    returned, errors = finish(start_writing(tmp_path / "p.tspkg"), number)
    assert returned == code
    assert number == signal.SIGINT or errors == ""
    assert os.listdir(tmp_path) == []


def test_what_kill_9_leaves_is_cleaned_by_the_next_pack(tmp_path: Path) -> None:
    out = tmp_path / "p.tspkg"
    living, dead = start_writing(out), start_writing(out)
    try:
        assert finish(dead, signal.SIGKILL)[0] == -9
        assert not out.exists()
        assert len(os.listdir(tmp_path)) == 2
        (tmp_path / ".other.tspkg.partial-1-0").mkdir()
        write_example(out)
        left = sorted(os.listdir(tmp_path))
        assert left == [".other.tspkg.partial-1-0", f".p.tspkg.partial-{living.pid}-0", "p.tspkg"]
    finally:
        finish(living, signal.SIGTERM)
    open_package(out)


def test_handlers_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with PackageWriter(tmp_path / "p"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_packs_at_once_in_one_process(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "p") as first, PackageWriter(tmp_path / "p") as second:
        assert first.path != second.path and first.path.is_dir()
        fill(first)
        fill(second)
        first.publish()
        with pytest.raises(OutputExists):
            second.publish()
    assert os.listdir(tmp_path) == ["p"]


def test_hashing_sink_writes_what_a_short_write_left(tmp_path: Path) -> None:
    taken = bytearray()

    def write(view: memoryview) -> int:
        taken.extend(view[:3])
        return min(len(view), 3)

    sink = module.HashingSink(write)
    sink.write(b"0123456789")
    assert bytes(taken) == b"0123456789" and sink.size == 10
    assert sink.hexdigest() == "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"
