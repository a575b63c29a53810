"""Reads single values of a program, each of the kind it must have or `ProgramInvalid`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from tessera_runtime.errors import ProgramInvalid

Choice = TypeVar("Choice", int, str)


def integer(raw: Mapping[str, Any], key: str, where: str, least: int = 0, *, multiple: int = 1) -> int:
    value = raw.get(key)
    if type(value) is not int or value < least or value % multiple:
        kind = f"a multiple of {multiple}" if multiple > 1 else "an integer"
        raise ProgramInvalid(f"{where} should have {kind} of at least {least} under {key!r}, not {value!r}.")
    return value


def text(raw: Mapping[str, Any], key: str, where: str, *, empty: bool = False) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not (value or empty):
        raise ProgramInvalid(f"{where} should have text under {key!r}, not {value!r}.")
    return value


def truth(raw: Mapping[str, Any], key: str, where: str) -> bool:
    value = raw.get(key)
    if type(value) is not bool:
        raise ProgramInvalid(f"{where} should have true or false under {key!r}, not {value!r}.")
    return value


def one_of(raw: Mapping[str, Any], key: str, choices: tuple[Choice, ...], where: str) -> Choice:
    value = raw.get(key)
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    raise ProgramInvalid(f"{where} should have one of {list(choices)} under {key!r}, not {value!r}.")


def mapping(raw: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = raw.get(key)
    if not isinstance(value, dict):
        raise ProgramInvalid(f"{where} should have an object under {key!r}.")
    return value


def listed(raw: Mapping[str, Any], key: str, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a list, each with its place for messages."""
    value = raw.get(key)
    if not isinstance(value, list):
        raise ProgramInvalid(f"There should be a list under {prefix}{key}.")
    for index, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise ProgramInvalid(f"{prefix}{key}[{index}] should be an object.")
        yield f"{prefix}{key}[{index}]", entry
