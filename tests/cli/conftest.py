"""Runs command lines in this process, against a tiny package and an executor made of a few lines of NumPy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "text"))

from ended import Ended, Run
from tiny_package import write_tiny
from toy_executor import ToyExecutor

from tessera.cli import running
from tessera.cli.main import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ended(code, captured.out, captured.err)

    return run_command


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("packages") / "tiny.tspkg")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyExecutor:
    """The executor that `generate` and `eval` get, whatever the package says."""
    executor = ToyExecutor(vocab_size=400, max_model_len=64, max_tokens=8)
    monkeypatch.setattr(running, "load_executor", lambda package, **options: executor)
    return executor
