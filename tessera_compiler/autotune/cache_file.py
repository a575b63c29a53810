"""Keeps what was measured: `<cache>/<target>/<class>.json`."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from tessera_compiler.autotune.errors import TuningCacheUnwritable
from tessera_compiler.schedule.device_tuned_cache import (
    DeviceTunedEntry,
    device_tuned_text,
    load_device_tuned,
    read_device_tuned,
)
from tessera_compiler.schedule.tuned_cache import TunedEntry, load_tuned, read_tuned, tuned_text

E = TypeVar("E")


class CacheFile(Generic[E]):
    """One file of the cache."""

    def __init__(self, path: Path, entries: Mapping[str, E], text: Callable[[Mapping[str, E]], str]) -> None:
        """`entries` are those it has; `text` writes them down. Raises TuningCacheUnwritable if the folder cannot be
        made or written."""
        self.path = path
        self._entries = dict(entries)
        self._text = text
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path.parent):
                pass
        except OSError as error:
            raise self._unwritable(error) from error

    @property
    def entries(self) -> dict[str, E]:
        return dict(self._entries)

    def put(self, key: str, entry: E) -> None:
        """Adds an entry and writes the file. It is whole at every moment, whoever reads it and however this ends."""
        self._entries[key] = entry
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            temporary.write_text(self._text(self._entries), encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> TuningCacheUnwritable:
        return TuningCacheUnwritable(
            f"The cache folder {str(self.path.parent)!r} cannot be written: {error.strerror}. "
            "Choose another with --cache, or change its permissions."
        )


def cpu_cache_file(cache: Path, target: str, cpu_class: str) -> CacheFile[TunedEntry]:
    """That of a class of processors; all files of the target are read at once, so that a damaged one is found before
    anything is measured. Raises InvalidTuning, too."""
    load_tuned(cache, target)
    path = cache / target / f"{cpu_class}.json"
    return CacheFile(path, read_tuned(path), tuned_text)


def device_cache_file(cache: Path, target: str, device: str) -> CacheFile[DeviceTunedEntry]:
    """That of a device by its name, likewise."""
    load_device_tuned(cache, (target,))
    path = cache / target / f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    return CacheFile(path, read_device_tuned(path, target), device_tuned_text)
