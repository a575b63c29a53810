"""Tuned schedules: `autotune_cache/<target>/<class>.json` (autotune_cache/README.md says what is in a file)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from tessera_compiler.errors import CompileError
from tessera_compiler.schedule.passes.plan_tiles import Blocking
from tessera_compiler.schedule.physical import padded_rows

SHIPPED = (Path(__file__).parents[2] / "autotune_cache", Path(__file__).parents[1] / "autotune_cache")
"""Where the cache lies: in a checkout, and in an installed package."""

KERNELS = 2
"""Which kernels of products for processors are measured now. Who changes them (`tile/lowering/linear.py`, and how
`targets/cpu` makes machine code of it) so that another blocking may be the fastest adds one: what was measured before
then counts as not there."""

_NUMBER = "[1-9][0-9]{0,8}"
_KEY = re.compile(
    rf"[a-z0-9-]+/matmul/[a-z0-9]+/(?P<outputs>{_NUMBER})x{_NUMBER}"
    rf"/(?P<form>plain|[a-z]+{_NUMBER}(?:-[a-z]+{_NUMBER})*)"
)
_WORD = re.compile("([a-z]+)([0-9]+)")
_LANES = 16


class InvalidTuning(CompileError):
    """A file of the autotune cache does not hold schedules."""


@dataclass(frozen=True)
class TunedEntry:
    """What was measured for one key."""

    blockings: tuple[Blocking, ...]
    microseconds: Mapping[int, float]
    """Of one launch, by the number of rows: only for people, nothing depends on it."""


def shipped_cache() -> Path:
    """The folder of the cache that came with this installation."""
    return next((folder for folder in SHIPPED if folder.is_dir()), SHIPPED[0])


def load_tuned(cache: Path, target: str) -> dict[str, tuple[Blocking, ...]]:
    """Every blocking that was measured for a target, by its key (`plan_tiles.schedule_key`).

    Raises `InvalidTuning` naming the file; a cache that is not there is an empty one.
    """
    tuned: dict[str, tuple[Blocking, ...]] = {}
    for path in sorted((cache / target).glob("*.json")):
        tuned.update({key: entry.blockings for key, entry in read_tuned(path).items()})
    return tuned


def read_tuned(path: Path) -> dict[str, TunedEntry]:
    """The entries of one file that hold for the kernels of now; none if it is not there. Raises `InvalidTuning`."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {key: _entry(key, value) for key, value in entries.items() if was_of(value, KERNELS)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise InvalidTuning(
            f"{path} should map keys to tuned blockings: {error}. "
            "Run `git checkout` on it, or delete it and run `tessera autotune` again."
        ) from error


def tuned_text(entries: Mapping[str, TunedEntry]) -> str:
    """The text of a file."""
    return entries_text(
        {
            key: ([listed(blocking) for blocking in entry.blockings], entry.microseconds)
            for key, entry in entries.items()
        },
        KERNELS,
    )


def was_of(value: Any, kernels: int) -> bool:
    """Whether an entry, as a file has it, was measured with these kernels."""
    # The first entries do not say; they were of the first kernels.
    number = value.get("kernels", 1) if isinstance(value, dict) else 1
    if type(number) is not int or number < 1:
        raise ValueError(f"'kernels' is a number from 1 on; found {number!r}")
    return number == kernels


def entries_text(entries: Mapping[str, tuple[list[list[int | None]], Mapping[int, float]]], kernels: int) -> str:
    """Blockings and microseconds by key as a file has them: one line for each key, in order, so that a difference shows
    what was tuned anew. All are of the same `kernels`."""
    lines = []
    for key in sorted(entries, key=_natural):
        blockings, times = entries[key]
        microseconds = {str(rows): float(f"{value:.3g}") for rows, value in sorted(times.items())}
        value = json.dumps({"kernels": kernels, "blockings": blockings, "microseconds": microseconds})
        lines.append(f"{json.dumps(key)}: {value}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _natural(key: str) -> list[tuple[int, str]]:
    """Numbers by their value: 576x576 stands before 1536x576."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", key)]


def listed(blocking: Blocking) -> list[int | None]:
    """A blocking as files have it: most rows or null, rows, columns, and what else there is to choose."""
    most, rows, panels, *more = astuple(blocking)
    return [most or None, rows, panels * _LANES, *more]


def _entry(key: str, value: Any) -> TunedEntry:
    found = _KEY.fullmatch(key)
    if found is None:
        raise ValueError(f"{key!r} is no key")
    outputs = int(found["outputs"])
    words = {name: int(number) for name, number in _WORD.findall(found["form"])}
    parts = words.pop("parts", 1)
    panels = (padded_rows(outputs) if parts == 1 else outputs // parts) // _LANES
    together = max([1, *(columns // _LANES for columns in words.values())])
    blockings = tuple(_blocking(entry, panels, together) for entry in value["blockings"])
    limits = [blocking.max_tokens or math.inf for blocking in blockings]
    if limits[-1:] != [math.inf] or limits != sorted(set(limits)):
        raise ValueError(f"the blockings of {key} must ascend and end with one for any number of tokens (null)")
    return TunedEntry(blockings, {int(rows): float(each) for rows, each in value.get("microseconds", {}).items()})


def _blocking(entry: Any, panels: int, together: int) -> Blocking:
    most, rows, outputs, *more = entry
    numbers = [0 if most is None else most, rows, outputs, *more]
    if len(numbers) > len(fields(Blocking)) or not all(type(number) is int for number in numbers):
        raise ValueError(f"{entry} is no blocking")
    width, rest = divmod(outputs, _LANES)
    if min(numbers) < 0 or rows < 1 or width < 1 or rest or panels % width or width % together:
        raise ValueError(f"{entry} is no blocking of {panels * _LANES} columns")
    return Blocking(numbers[0], rows, width, *more)
