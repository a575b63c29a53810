"""When `make test-triton` runs, when it passes over its tests, and when it fails. The package index is a folder."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

FOREIGN = ("win_amd64", "3.12")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import run_triton_tests  # noqa: E402
from run_triton_tests import TritonNotInstalled, install, pinned  # noqa: E402


def add_wheel(index: Path, tags: str) -> None:
    version = pinned().partition("==")[2]
    about = f"triton-{version}.dist-info"
    files = {
        "triton/__init__.py": "",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: triton\nVersion: {version}\n",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tags}\n",
    }
    index.mkdir(exist_ok=True)
    with zipfile.ZipFile(index / f"triton-{version}-{tags}.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{about}/RECORD", "".join(f"{name},{digest(text)},\n" for name, text in files.items()))


def digest(text: str) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package index, the only one that pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_it_is_installed_once(index: Path, tmp_path: Path) -> None:
    folder = tmp_path / "triton"
    add_wheel(index, "py3-none-any")
    assert install(folder, FOREIGN) and (folder / "triton" / "__init__.py").is_file()
    next(index.iterdir()).unlink()
    assert install(folder, FOREIGN)
    # A pin that has changed since asks for another version.
    (folder / ".installed").write_text("triton==0.1")
    with pytest.raises(TritonNotInstalled):
        install(folder, FOREIGN)


def test_without_one_for_this_platform_there_is_nothing_to_run(index: Path, tmp_path: Path) -> None:
    add_wheel(index, "cp312-cp312-win_amd64")
    assert not install(tmp_path / "triton", FOREIGN)


def test_an_index_that_has_none_at_all_is_an_error(index: Path, tmp_path: Path) -> None:
    with pytest.raises(TritonNotInstalled, match=r"No matching distribution found.*Connect to a Python package index"):
        install(tmp_path / "triton", FOREIGN)


def test_a_wheel_that_cannot_be_installed_is_an_error(index: Path, tmp_path: Path) -> None:
    add_wheel(index, "py3-none-any")
    next(index.iterdir()).write_bytes(b"no wheel")
    with pytest.raises(TritonNotInstalled, match="could not be installed"):
        install(tmp_path / "triton", FOREIGN)
    assert not (tmp_path / "triton" / ".installed").exists()


def test_the_command(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["run_triton_tests.py", "--version"])
    monkeypatch.setattr(run_triton_tests, "SUPPORTED", FOREIGN)
    assert run_triton_tests.main() == 1
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: 'triton==") and err.count("\n") == 1
    add_wheel(index, "cp312-cp312-win_amd64")
    assert run_triton_tests.main() == 0
    out, err = capfd.readouterr()
    assert out.startswith("The package index has no triton==") and out.count("\n") == 1 and err == ""
    add_wheel(index, "py3-none-any")
    assert run_triton_tests.main() == 0 and capfd.readouterr().out.startswith("pytest ")
    monkeypatch.setattr(sys, "argv", ["run_triton_tests.py", "--no-such-option"])
    assert run_triton_tests.main() == 4
