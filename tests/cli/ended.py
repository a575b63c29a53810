"""What a command line that ran in this process came to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        value = json.loads(self.out)
        assert isinstance(value, dict) and self.out.count("\n") == 1
        return value


Run = Callable[..., Ended]
"""Arguments of `tessera` → how it ended: the fixture `run`."""
