"""Tuned schedules of devices: `autotune_cache/<target>/*.json`, from measurements on a host that has one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tessera_compiler.schedule.device_blocking import FORMS, DeviceBlocking, broken_rule
from tessera_compiler.schedule.tuned_cache import InvalidTuning, entries_text, was_of

KERNELS = 1
"""Which kernels of products for devices are measured now. Who changes them (`tile/lowering/device_linear.py`, and how
`targets/triton` writes its kernels) so that another blocking may be the fastest adds one: what was measured before then
counts as not there."""
LEAST_EXTENT = 16
_KEY = re.compile(r"(?P<target>[a-z0-9-]+)/matmul/(?P<form>\w+)/\d+x\d+(/parts\d+)?(/groups\d+)?(/cut\d+)?")
_NAMES = tuple(field.name for field in fields(DeviceBlocking))[1:]


@dataclass(frozen=True)
class DeviceTunedEntry:
    """What was measured for one key."""

    blockings: tuple[DeviceBlocking, ...]
    microseconds: Mapping[int, float]
    """Of one launch, by the number of rows: only for people, nothing depends on it."""


def load_device_tuned(cache: Path, targets: Sequence[str]) -> dict[str, tuple[DeviceBlocking, ...]]:
    """Every blocking that was measured for these targets, by its key (`device_blocking.device_schedule_key`).

    Raises `InvalidTuning` naming the file, also for blockings that would change results; a cache that is not there is
    an empty one.
    """
    tuned: dict[str, tuple[DeviceBlocking, ...]] = {}
    for target in targets:
        for path in sorted((cache / target).glob("*.json")):
            tuned.update({key: entry.blockings for key, entry in read_device_tuned(path, target).items()})
    return tuned


def read_device_tuned(path: Path, target: str) -> dict[str, DeviceTunedEntry]:
    """The entries of one file that hold for the kernels of now; none if it is not there. Raises `InvalidTuning`."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {key: _entry(target, key, value) for key, value in entries.items() if was_of(value, KERNELS)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise InvalidTuning(
            f"{path} should map keys to lists of [most tokens or null, {', '.join(_NAMES)}]: {error}. "
            "Run `git checkout` on it, or tune again."
        ) from error


def device_tuned_text(entries: Mapping[str, DeviceTunedEntry]) -> str:
    """The text of a file: one line for each key, in order, so that a difference shows what was tuned anew."""
    return entries_text(
        {key: ([each.listed() for each in entry.blockings], entry.microseconds) for key, entry in entries.items()},
        KERNELS,
    )


def _entry(target: str, key: str, value: Any) -> DeviceTunedEntry:
    named = _KEY.fullmatch(key)
    if named is None or named["target"] != target or named["form"] not in FORMS.values():
        forms = "|".join(FORMS.values())
        raise ValueError(f"a key reads {target}/matmul/{forms}/<outputs>x<columns>, and so on; found {key!r}")
    # A list alone is an entry whose times nobody wrote down.
    entry: dict[str, Any] = value if isinstance(value, dict) else {"blockings": value}
    blockings = _blockings(entry["blockings"])
    rule = broken_rule(target, named["form"], blockings)
    if rule is not None:
        raise ValueError(f"{key!r} would change results: {rule}")
    microseconds = {int(rows): float(each) for rows, each in entry.get("microseconds", {}).items()}
    return DeviceTunedEntry(blockings, microseconds)


def _blockings(entries: list[list[int | None]]) -> tuple[DeviceBlocking, ...]:
    blockings = []
    for most, *numbers in entries:
        rows, outputs, depth, warps, stages, *others = numbers
        extents, counts = (rows, outputs, depth), (warps, stages)
        if any(not isinstance(each, int) or each < LEAST_EXTENT or each & (each - 1) for each in extents):
            raise ValueError(f"{[most, *numbers]} is no blocking: extents are powers of two from {LEAST_EXTENT} on")
        if any(not isinstance(each, int) or not 1 <= each <= 32 for each in counts):
            raise ValueError(f"{[most, *numbers]} is no blocking: warps and stages are from 1 to 32")
        if len(numbers) > len(_NAMES) or any(each not in (0, 1) for each in others):
            raise ValueError(f"{[most, *numbers]} is no blocking: what follows the stages is 0 or 1, {_NAMES}")
        blockings.append(DeviceBlocking(most or 0, *(int(each or 0) for each in numbers)))
    if not blockings or blockings[-1].max_tokens:
        raise ValueError("the last blocking must be for any number of tokens (null)")
    return tuple(blockings)
