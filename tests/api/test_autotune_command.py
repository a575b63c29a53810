"""`tessera autotune`: what it measures, keeps, finds again, and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tessera.cli.main import main
from tessera_compiler.autotune import tuner
from tessera_compiler.autotune.candidates import candidates
from tessera_compiler.schedule.passes.plan_tiles import Blocking
from tessera_compiler.schedule.tuned_cache import load_tuned


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two candidates at two points, so that tuning is a matter of seconds."""

    def two(*arguments: Any) -> tuple[Blocking, ...]:
        return candidates(*arguments)[:2]

    monkeypatch.setattr(tuner, "candidates", two)
    monkeypatch.setattr(tuner, "points_of", lambda rows: (1, 4))
    monkeypatch.setattr(tuner, "FIRST_POINTS", (1, 4))


def ended(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["autotune", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_a_second_run_is_all_hits(
    compiled: Path, tmp_path: Path, hurried: None, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    code, out, _ = ended(capsys, compiled, "--cache", cache, "--threads", 1, "--explain", "--json")
    first = json.loads(out)
    assert code == 0 and first["kernels"]
    assert {kernel["state"] for kernel in first["kernels"]} == {"measured"}
    for kernel in first["kernels"]:
        assert set(kernel["candidates"]) == {"1", "4"} == set(kernel["microseconds"])
    (file,) = (cache / "cpu").iterdir()
    assert str(file) == first["cache"]
    text = file.read_text()
    tuned = load_tuned(cache, "cpu")
    assert set(tuned) == {kernel["key"] for kernel in first["kernels"]}
    code, out, _ = ended(capsys, compiled, "--cache", cache)
    assert code == 0 and "nothing was measured" in out and f"All {len(tuned)} kernels" in out
    assert file.read_text() == text
    lines = text.splitlines()
    file.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    code, out, _ = ended(capsys, compiled, "--cache", cache, "--threads", 1, "--explain")
    assert code == 0 and f"1 kernels measured, {len(tuned) - 1} found" in out
    assert "chosen: " in out and "default" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "cuda"), "'cuda' is not tuned"),
        (("--budget", "1s"), "not enough to measure"),
        (("--budget", "soon"), "should be a time"),
        (("--dtype", "int8"), "a package has its own"),
    ],
)
def test_bad_options(
    compiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    code, _, err = ended(capsys, compiled, "--cache", tmp_path, *options)
    assert code == 2 and said in err and err.count("error:") == 1


def test_bad_caches(compiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "x86-64-v4.json").write_text("{")
    code, _, err = ended(capsys, compiled, "--cache", tmp_path)
    assert code == 2 and "x86-64-v4.json should map" in err
    (tmp_path / "file").write_text("")
    code, _, err = ended(capsys, compiled, "--cache", tmp_path / "file")
    assert code == 2 and "cannot be written" in err


def test_bad_sources(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ended(capsys, package, "--cache", tmp_path)
    assert code == 2 and "was built for 'reference', not for 'cpu'" in err
    code, _, err = ended(capsys, tmp_path / "nothing", "--cache", tmp_path)
    assert code == 2 and err.count("error:") == 1
    (tmp_path / "config.json").write_text("{}")
    code, _, err = ended(capsys, tmp_path, "--cache", tmp_path, "--dtype", "int3")
    assert code == 2 and "should be one of fp32" in err
