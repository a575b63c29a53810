"""The models that several tests run, each made and compiled once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from reference_models import Compiled, compile_checkpoint, save_model
from transformers import PreTrainedModel


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, PreTrainedModel]]:
    @cache
    def save(kind: str) -> tuple[Path, PreTrainedModel]:
        folder = tmp_path_factory.mktemp(kind)
        return folder, save_model(kind, folder)

    return save


@pytest.fixture(scope="session")
def compiled(saved: Callable[[str], tuple[Path, PreTrainedModel]]) -> Callable[..., Compiled]:
    @cache
    def compile_once(kind: str, dtype: str, *classes: str) -> Compiled:
        return compile_checkpoint(saved(kind)[0], dtype, classes)

    return compile_once
