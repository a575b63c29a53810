"""Finds stop strings in a text that arrives in pieces, without ever handing out a part of one."""

from __future__ import annotations

from collections.abc import Sequence

from tessera_runtime.errors import InvalidRequest

STOP_LIMIT = 16
"""Stop strings in one request."""
STOP_LENGTH_LIMIT = 1024
"""Characters of one stop string."""


class StopStrings:
    """The stop strings of one answer. The text handed out ends before the first of them that appears."""

    def __init__(self, strings: Sequence[str]) -> None:
        if len(strings) > STOP_LIMIT:
            raise InvalidRequest(f"There are {len(strings)} stop strings; at most {STOP_LIMIT} are allowed.")
        for string in strings:
            if not 0 < len(string) <= STOP_LENGTH_LIMIT:
                raise InvalidRequest(f"A stop string must have 1 to {STOP_LENGTH_LIMIT} characters, not {len(string)}.")
        self._strings = tuple(strings)
        self._longest = max((len(string) for string in strings), default=0)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Takes the next piece and returns the text that can no longer be part of a stop string; nothing after one was
        found.
        """
        if self.found:
            return ""
        if not self._strings:
            return piece
        text = self._held + piece
        starts = [start for start in (text.find(string) for string in self._strings) if start >= 0]
        if starts:
            self.found = True
            self._held = ""
            return text[: min(starts)]
        keep = self._beginning_at_end(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, once no more text will come."""
        held, self._held = self._held, ""
        return held

    def _beginning_at_end(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(string.startswith(end) for string in self._strings):
                return length
        return 0
