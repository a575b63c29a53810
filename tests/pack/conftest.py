"""What the tests of packing share: tiny checkpoints of real architectures, and the command line in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ended_command import Ended, Run

for folder in ("graph", "text"):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / folder))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `tessera …`. What it prints may not hold a traceback, whatever happens."""
    from tessera.cli.main import main

    def run_command(*arguments: object) -> Ended:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Ended(code, captured.out, captured.err)

    return run_command
