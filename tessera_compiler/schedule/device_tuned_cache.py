"""Tuned schedules of devices: `autotune_cache/<target>/*.json`, from measurements on a host that has one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tessera_compiler.schedule.device_blocking import FORMS, DeviceBlocking, broken_rule
from tessera_compiler.schedule.tuned_cache import InvalidTuning

LEAST_EXTENT = 16
_KEY = re.compile(r"(?P<target>[a-z0-9-]+)/matmul/(?P<form>\w+)/\d+x\d+(/parts\d+)?(/groups\d+)?")


def load_device_tuned(cache: Path, targets: Sequence[str]) -> dict[str, tuple[DeviceBlocking, ...]]:
    """Every blocking that was measured for these targets, by its key (`device_blocking.device_schedule_key`).

    Raises `InvalidTuning` naming the file, also for blockings that would change results; a cache that is not there is
    an empty one.
    """
    tuned: dict[str, tuple[DeviceBlocking, ...]] = {}
    for target in targets:
        for path in sorted((cache / target).glob("*.json")):
            try:
                entries = json.loads(path.read_text(encoding="utf-8"))
                tuned.update({key: _entry(target, key, value) for key, value in entries.items()})
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise InvalidTuning(
                    f"{path} should map keys to lists of [most tokens or null, rows, outputs, depth, warps, stages]: "
                    f"{error}. Run `git checkout` on it, or tune again."
                ) from error
    return tuned


def _entry(target: str, key: str, entries: list[list[int | None]]) -> tuple[DeviceBlocking, ...]:
    named = _KEY.fullmatch(key)
    if named is None or named["target"] != target or named["form"] not in FORMS.values():
        forms = "|".join(FORMS.values())
        raise ValueError(f"a key reads {target}/matmul/{forms}/<outputs>x<columns>, and so on; found {key!r}")
    blockings = _blockings(entries)
    rule = broken_rule(target, named["form"], blockings)
    if rule is not None:
        raise ValueError(f"{key!r} would change results: {rule}")
    return blockings


def _blockings(entries: list[list[int | None]]) -> tuple[DeviceBlocking, ...]:
    blockings = []
    for most, *numbers in entries:
        rows, outputs, depth, warps, stages = numbers
        extents, counts = (rows, outputs, depth), (warps, stages)
        if any(not isinstance(each, int) or each < LEAST_EXTENT or each & (each - 1) for each in extents):
            raise ValueError(f"{[most, *numbers]} is no blocking: extents are powers of two from {LEAST_EXTENT} on")
        if any(not isinstance(each, int) or not 1 <= each <= 32 for each in counts):
            raise ValueError(f"{[most, *numbers]} is no blocking: warps and stages are from 1 to 32")
        blockings.append(DeviceBlocking(most or 0, *(int(each or 0) for each in numbers)))
    if not blockings or blockings[-1].max_tokens:
        raise ValueError("the last blocking must be for any number of tokens (null)")
    return tuple(blockings)
