"""Packages with toy engines behind them, in this process and in servers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / name) for name in ("server", "text", "cli"))]

from compiled_package import write_compiled  # noqa: E402
from running_application import RunningApplication  # noqa: E402
from running_server import RunningServer  # noqa: E402
from tiny_package import write_tiny  # noqa: E402
from toy_executor import ToyExecutor  # noqa: E402

from tessera import LLM, local_engine  # noqa: E402

GENERATION = {"eos_token_id": 4}


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("packages") / "tiny.tspkg", generation=GENERATION)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that really computes."""
    return write_compiled(tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyExecutor:
    """The executor that every package gets in this process."""
    executor = ToyExecutor(vocab_size=400, max_model_len=64, max_tokens=16)
    monkeypatch.setattr(local_engine, "load_executor", lambda package, **options: executor)
    return executor


@pytest.fixture
def llm(package: Path, toy: ToyExecutor) -> Iterator[LLM]:
    with LLM(package) as opened:
        yield opened


@pytest.fixture(scope="session")
def server(package: Path) -> Iterator[RunningServer]:
    """`tessera run` around a toy model."""
    running = RunningServer(package, "--target", "0.001")
    yield running
    running.close()


@pytest.fixture(scope="session")
def application(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApplication]:
    """The application of `sample_application.py` around a toy model."""
    folder = tmp_path_factory.mktemp("application")
    running = RunningApplication(HERE / "sample_application.py", folder, package, toy=True)
    yield running
    running.close()
