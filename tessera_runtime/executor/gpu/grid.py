"""The sizes of a step, and the expressions over them that grids and limits of a GPU program are written in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass

from tessera_runtime.errors import ProgramInvalid

SYMBOLS = ("T", "L", "S", "W", "Q", "D", "C")
MAX_GRID = (2**31 - 1, 65_535, 65_535)
_FACTOR = re.compile(r"([0-9]{1,9})|([A-Z])(?:/([1-9][0-9]{0,8}))?")


@dataclass(frozen=True)
class StepSizes:
    """docs/spec/program-gpu.md, "Sizes of a step"; padded ones where the step is padded."""

    tokens: int
    logit_rows: int
    table_rows: int
    table_width: int
    tiles: int
    singles: int
    chunks: int

    def by_symbol(self) -> dict[str, int]:
        return dict(zip(SYMBOLS, astuple(self), strict=True))

    def covers(self, other: StepSizes) -> bool:
        """Whether a step of `other` can be padded to this. Padded tokens need a row of the tables to themselves."""
        if self.tokens > other.tokens and self.table_rows <= other.table_rows:
            return False
        return all(mine >= theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True))


@dataclass(frozen=True)
class Factor:
    """A number, or a size divided by one and rounded up."""

    symbol: str | None
    number: int

    def value(self, sizes: Mapping[str, int]) -> int:
        return self.number if self.symbol is None else -(-sizes[self.symbol] // self.number)


@dataclass(frozen=True)
class GridEntry:
    """A product of factors."""

    factors: tuple[Factor, ...]

    def value(self, sizes: Mapping[str, int]) -> int:
        product = 1
        for factor in self.factors:
            product *= factor.value(sizes)
        return product


def parse_entry(entry: object, where: str) -> GridEntry:
    """Raises `ProgramInvalid` for anything but an integer or a product as the specification has it."""
    if type(entry) is int and entry >= 0:
        return GridEntry((Factor(None, entry),))
    factors = []
    for text in entry.split("*") if isinstance(entry, str) else ():
        found = _FACTOR.fullmatch(text)
        if found is None or (found[2] and found[2] not in SYMBOLS):
            break
        factors.append(Factor(None, int(found[1])) if found[1] else Factor(found[2], int(found[3] or 1)))
    else:
        if factors:
            return GridEntry(tuple(factors))
    raise ProgramInvalid(f"{where} has the grid entry {entry!r}.")


def evaluate_grid(entries: tuple[GridEntry, ...], sizes: Mapping[str, int], where: str) -> tuple[int, int, int]:
    """The three extents; an extent that no device can launch is an error of the program."""
    values = [entry.value(sizes) for entry in entries]
    values += [1] * (3 - len(values))
    for value, most in zip(values, MAX_GRID, strict=True):
        if value > most:
            raise ProgramInvalid(f"{where} has a grid of {values}, and {most} is the most of that axis.")
    return values[0], values[1], values[2]
