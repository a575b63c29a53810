"""The error vocabulary: every class has its own code, and docs/spec/errors.md lists them all."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tessera_pack.errors
import tessera_runtime.errors
from tessera_pack.errors import PackError
from tessera_runtime.errors import TesseraError

ROOT = Path(__file__).parents[2]


def tree(kind: type) -> list[type]:
    children: list[type] = kind.__subclasses__()
    return [kind, *(below for child in children for below in tree(child))]


def owned(base: type) -> list[type]:
    return [kind for kind in tree(base) if kind.__module__ == base.__module__]


@pytest.mark.parametrize("base", [TesseraError, PackError])
def test_every_class_has_a_code_of_its_own_and_says_what_it_means(base: type) -> None:
    codes = [kind.__dict__.get("code") for kind in owned(base)]
    assert len(set(codes)) == len(codes)
    for kind, code in zip(owned(base), codes, strict=True):
        assert isinstance(code, str) and re.fullmatch(r"[a-z]+(-[a-z]+)*", code)
        words = re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()
        assert code == words
        assert kind.__doc__ is not None and kind.__doc__.endswith(".")


@pytest.mark.parametrize("base", [TesseraError, PackError])
def test_the_tree_in_the_docstring_is_the_tree(base: type) -> None:
    drawn = re.findall(r"[├└]── (\w+)|^    (\w+)$", sys.modules[base.__module__].__doc__ or "", re.MULTILINE)
    assert sorted(first or second for first, second in drawn) == sorted(kind.__name__ for kind in owned(base))


def test_what_people_read() -> None:
    error = TesseraError("It is broken.", hint="Mend it.")
    assert str(error) == "It is broken. Mend it." and error.message == "It is broken." and error.hint == "Mend it."
    assert str(TesseraError("It is broken.")) == "It is broken."


@pytest.mark.parametrize("kind", [tessera_runtime.errors.FileMissing, tessera_pack.errors.DiskFull])
def test_errors_can_be_copied(kind: type[TesseraError]) -> None:
    twin = copy.copy(kind("a.", hint="b."))
    assert type(twin) is kind and str(twin) == "a. b." and twin.hint == "b."


@pytest.mark.slow
def test_the_table_is_up_to_date() -> None:
    command = [sys.executable, "tools/generate_error_table.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
