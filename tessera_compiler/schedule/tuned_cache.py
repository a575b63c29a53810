"""Tuned schedules that ship with the source: `autotune_cache/<target>/*.json` (see the README there)."""

from __future__ import annotations

import json
from pathlib import Path

from tessera_compiler.errors import CompileError
from tessera_compiler.schedule.passes.plan_tiles import Blocking

SHIPPED = (Path(__file__).parents[2] / "autotune_cache", Path(__file__).parents[1] / "autotune_cache")
"""Where the cache lies: in a checkout, and in an installed package."""


class InvalidTuning(CompileError):
    """A file of the autotune cache does not hold schedules."""


def shipped_cache() -> Path:
    """The folder of the cache that came with this installation."""
    return next((folder for folder in SHIPPED if folder.is_dir()), SHIPPED[0])


def load_tuned(cache: Path, target: str) -> dict[str, tuple[Blocking, ...]]:
    """Every blocking that was measured for a target, by its key (`plan_tiles.schedule_key`).

    Raises `InvalidTuning` naming the file; a cache that is not there is an empty one.
    """
    tuned: dict[str, tuple[Blocking, ...]] = {}
    for path in sorted((cache / target).glob("*.json")):
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            tuned.update({key: _blockings(value) for key, value in entries.items()})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InvalidTuning(
                f"{path} should map keys to lists of [most tokens or null, rows, outputs]: {error}. "
                "Run `git checkout` on it, or tune again."
            ) from error
    return tuned


def _blockings(entries: list[list[int | None]]) -> tuple[Blocking, ...]:
    blockings = []
    for most, rows, outputs in entries:
        if not isinstance(rows, int) or not isinstance(outputs, int) or rows < 1 or outputs < 16 or outputs % 16:
            raise ValueError(f"{[most, rows, outputs]} is no blocking")
        blockings.append(Blocking(most or 0, rows, outputs // 16))
    if not blockings or blockings[-1].max_tokens:
        raise ValueError("the last blocking must be for any number of tokens (null)")
    return tuple(blockings)
