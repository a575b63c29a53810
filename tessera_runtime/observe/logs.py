"""Structured logs: one JSON object a line, on stderr. What clients write and what models answer is never logged."""

from __future__ import annotations

import sys
import time
import traceback
from typing import Any, TextIO

import msgspec

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Log:
    """Writes events at or above a level. An event is a name and fields; fields hold numbers and names, never text of
    requests.
    """

    def __init__(self, level: str = "warning", stream: TextIO | None = None) -> None:
        self._level = LEVELS[level]
        self._stream = stream

    def enabled(self, level: str) -> bool:
        """Whether events of this level are written; for callers that would have to compute their fields."""
        return LEVELS[level] >= self._level

    def debug(self, event: str, **fields: Any) -> None:
        self._write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write("error", event, fields)

    def defect(self, event: str, error: BaseException, **fields: Any) -> None:
        """An error nobody designed: its kind and place. Its message may quote a request, so it is shown at `debug`
        only.
        """
        frames = traceback.extract_tb(error.__traceback__)
        fields["kind"] = type(error).__name__
        fields["at"] = [f"{frame.name}:{frame.lineno}" for frame in frames[-4:]]
        if self.enabled("debug"):
            fields["detail"] = str(error)[:1000]
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if LEVELS[level] < self._level:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line = {"time": stamp, "level": level, "event": event, **fields}
        stream = self._stream or sys.stderr
        try:
            stream.write(msgspec.json.encode(line, enc_hook=str).decode() + "\n")
            stream.flush()
        except (OSError, ValueError):
            # Whoever read the log has left; serving goes on.
            return
