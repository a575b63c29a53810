"""The one module that reads environment variables. What they say is passed on explicitly; nothing else looks at
them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from tessera_runtime.errors import InvalidRequest

LOG_LEVELS = ("debug", "info", "warning", "error")
MAX_THREADS = 64
"""As many as the native object's context has places for (docs/spec/program.md)."""


@dataclass(frozen=True)
class Configuration:
    """Settings of a process that its command line may override."""

    threads: int | None = None
    """`TESSERA_THREADS`: threads that compute; all cores this process may use if not set."""
    target: str | None = None
    """`TESSERA_TARGET`: the target to run; the fastest that this machine has if not set."""
    log_level: str = "warning"
    """`TESSERA_LOG`: `debug`, `info`, `warning` or `error`. At `debug`, internal errors show a traceback."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Configuration:
        """Reads the variables; empty ones count as not set. A value that makes no sense is an `InvalidRequest`."""
        values = os.environ if environment is None else environment
        level = (values.get("TESSERA_LOG") or "warning").lower()
        if level not in LOG_LEVELS:
            raise InvalidRequest(f"TESSERA_LOG must be one of {', '.join(LOG_LEVELS)}, not {level!r}.")
        return cls(
            threads=_threads(values.get("TESSERA_THREADS") or ""),
            target=values.get("TESSERA_TARGET") or None,
            log_level=level,
        )


def _threads(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_THREADS):
        raise InvalidRequest(f"TESSERA_THREADS must be a number from 1 to {MAX_THREADS}, not {text!r}.")
    return int(text)
