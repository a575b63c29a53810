"""Servers for tests: one for all that leave it as it was, and as many as a test wants for itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "text"), str(HERE.parent / "cli")]

from running_server import RunningServer, Start  # noqa: E402
from tiny_package import write_tiny  # noqa: E402

GENERATION = {"eos_token_id": 4}


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("packages") / "tiny.tspkg", generation=GENERATION)


@pytest.fixture(scope="session")
def server(package: Path) -> Iterator[RunningServer]:
    """One server for all tests that leave it as it was."""
    running = RunningServer(package, "--target", "0.001", environment={"TESSERA_LOG": "info"})
    yield running
    running.close()


@pytest.fixture
def start(package: Path) -> Iterator[Start]:
    """Starts servers for one test alone; the first argument may be another package."""
    running: list[RunningServer] = []

    def run(*arguments: object, **options: Any) -> RunningServer:
        running.append(RunningServer(package, *arguments, **options))
        return running[-1]

    yield run
    for each in running:
        each.close()
