"""Packages with GPU targets, made and looked at by the command line, on a machine without a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
for folder in ("pack", "graph", "text"):
    sys.path.insert(0, str(HERE.parent / folder))

from tiny_checkpoints import ODD, save_checkpoint  # noqa: E402
from tiny_models import Case  # noqa: E402

from tessera.cli.main import main  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(Case("llama", ODD), folder)
    yield folder


def pack(checkpoint: Path, out: Path, *options: str) -> int:
    return main(["pack", "--from-hf", str(checkpoint), "--dtype", "bf16", "--out", str(out), *options])


@pytest.mark.slow
def test_one_package_for_several_devices(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "tiny.tspkg"
    targets = ["--target", "cpu", "--target", "cuda-sm90", "--target", "hip-gfx942"]
    assert pack(checkpoint, package, *targets, "--no-verify") == 0
    capfd.readouterr()
    assert main(["verify", str(package)]) == 0
    checked = capfd.readouterr().out
    assert "cuda-sm90: code objects" in checked and "is sound" in checked
    assert main(["inspect", str(package), "--json"]) == 0
    kernels = json.loads(capfd.readouterr().out)["kernels"]
    assert set(kernels) == {"cpu", "reference", "cuda-sm90", "hip-gfx942"}
    for target in ("cuda-sm90", "hip-gfx942"):
        for kernel in kernels[target]:
            assert kernel["registers"] > 0 and kernel["spilled_bytes"] >= 0 and kernel["limits"]
            assert kernel["launches"] >= 1
        assert {kernel["tuned"] for kernel in kernels[target] if kernel["kind"] == "linear"} == {False}
    assert main(["generate", str(package), "--prompt", "a", "--max-tokens", "3"]) == 0


@pytest.mark.slow
def test_two_packs_are_the_same(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    packages = [tmp_path / name / "tiny.tspkg" for name in ("one", "other")]
    for package in packages:
        package.parent.mkdir()
        assert pack(checkpoint, package, "--target", "cuda-sm90", "--no-verify") == 0
    first, second = ({p.relative_to(top): p.read_bytes() for p in top.rglob("*") if p.is_file()} for top in packages)
    assert first == second
    assert not any("cpu" in str(path) or "reference" in str(path) for path in first)
    assert any(path.suffix == ".cubin" for path in first)


@pytest.mark.parametrize("dtype", ["fp16", "fp8"])
def test_what_only_gpus_compute_with(
    dtype: str, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "tiny.tspkg"
    assert pack(checkpoint, package, "--dtype", dtype, "--target", "cpu", "--target", "cuda-sm90") != 0
    assert f"Only GPUs compute with {dtype}; found the target cpu" in capfd.readouterr().err
    assert pack(checkpoint, package, "--dtype", dtype, "--target", "cuda-sm90", "--no-verify") == 0
    assert main(["verify", str(package)]) == 0
    capfd.readouterr()
    assert main(["inspect", str(package), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["manifest"]["dtype"] == dtype and set(told["kernels"]) == {"cuda-sm90"}


@pytest.mark.slow
def test_four_bits_for_processors_and_gpus(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "tiny.tspkg"
    options = ["--dtype", "int4", "--target", "cpu", "--target", "cuda-sm90", "--no-verify"]
    assert pack(checkpoint, package, *options) == 0
    assert main(["verify", str(package)]) == 0
    program = json.loads((package / "tile_kernels" / "cuda-sm90" / "program.json").read_text(encoding="utf-8"))
    assert {weight["layout"] for weight in program["weights"]} == {"matrix4", "columns4", "matrix_signed", "rows"}
    assert main(["generate", str(package), "--prompt", "a", "--max-tokens", "3"]) == 0


def test_evidence_needs_the_cpu(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert pack(checkpoint, tmp_path / "tiny.tspkg", "--target", "cuda-sm90") != 0
    assert "Add --target cpu, or leave the evidence out with --no-verify" in capfd.readouterr().err


def test_an_unknown_target_is_named(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert pack(checkpoint, tmp_path / "tiny.tspkg", "--target", "cuda-sm70") != 0
    error = capfd.readouterr().err
    assert "cuda-sm90" in error and "found cuda-sm70" in error
    assert not (tmp_path / "tiny.tspkg").exists()
