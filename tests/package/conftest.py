"""Fixtures of the package tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_package import write_example


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A valid package, to open or to spoil."""
    return write_example(tmp_path / "tiny.tspkg")
