"""Fixtures that more than one area of the tests uses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from golden_files import Golden

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-programs", help="what `benchmarks/gpu.py prepare --models qwen3-tiny` wrote elsewhere")
    parser.addoption("--update-golden", action="store_true", help="write golden files anew instead of comparing")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that need a GPU run only where they are asked for by name: `pytest -m gpu`."""
    if "gpu" in str(config.getoption("markexpr", default="")):
        return
    left = [item for item in items if item.get_closest_marker("gpu") is None]
    if len(left) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("gpu") is not None])
        items[:] = left


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """The golden files of the test's own folder."""
    return Golden(request.path.parent / "golden", bool(request.config.getoption("--update-golden", default=False)))


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real SmolLM2-135M-Instruct as GGUF, fetched once into `.cache/`. Only tests marked `slow` may ask for it."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from fetch_smollm2 import fetch
    finally:
        sys.path.pop(0)
    return fetch(ROOT / ".cache" / "smollm2")


@pytest.fixture(scope="session")
def smollm2_checkpoint(smollm2_gguf: Path) -> Path:
    """The Hugging Face checkpoint made from it, converted once into `.cache/`."""
    from tessera_pack.gguf import convert_gguf

    checkpoint = smollm2_gguf.parent / "checkpoint"
    if not (checkpoint / "tokenizer.json").is_file():
        partial = smollm2_gguf.parent / "checkpoint.partial"
        for left_over in partial.glob("*"):
            left_over.unlink()
        convert_gguf(smollm2_gguf, partial)
        partial.rename(checkpoint)
    return checkpoint
