"""Environment variables become one frozen object."""

from __future__ import annotations

import pytest

from tessera_runtime.configuration import Configuration
from tessera_runtime.errors import InvalidRequest


def test_nothing_set_gives_the_defaults() -> None:
    assert Configuration.from_environment({}) == Configuration(threads=None, target=None, log_level="warning")
    empty = {"TESSERA_THREADS": "", "TESSERA_TARGET": "", "TESSERA_LOG": ""}
    assert Configuration.from_environment(empty) == Configuration()


def test_variables_are_read() -> None:
    values = {"TESSERA_THREADS": "2", "TESSERA_TARGET": "reference", "TESSERA_LOG": "DEBUG"}
    assert Configuration.from_environment(values) == Configuration(threads=2, target="reference", log_level="debug")


@pytest.mark.parametrize(
    ("name", "value"),
    [("TESSERA_THREADS", "0"), ("TESSERA_THREADS", "65"), ("TESSERA_THREADS", "two"), ("TESSERA_LOG", "loud")],
)
def test_nonsense_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        Configuration.from_environment({name: value})
