"""Keeps what was measured: `<cache>/<target>/<class>.json`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from tessera_compiler.autotune.errors import TuningCacheUnwritable
from tessera_compiler.schedule.tuned_cache import TunedEntry, load_tuned, read_tuned, tuned_text


class CacheFile:
    """One file of the cache. It is read at once, so that a damaged one is found before anything is measured."""

    def __init__(self, cache: Path, target: str, cpu_class: str) -> None:
        """Raises InvalidTuning, or TuningCacheUnwritable if the folder cannot be made or written."""
        load_tuned(cache, target)
        self.path = cache / target / f"{cpu_class}.json"
        self._entries = read_tuned(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path.parent):
                pass
        except OSError as error:
            raise self._unwritable(error) from error

    @property
    def entries(self) -> dict[str, TunedEntry]:
        return dict(self._entries)

    def put(self, key: str, entry: TunedEntry) -> None:
        """Adds an entry and writes the file. It is whole at every moment, whoever reads it and however this ends."""
        self._entries[key] = entry
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            temporary.write_text(tuned_text(self._entries), encoding="utf-8")
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
