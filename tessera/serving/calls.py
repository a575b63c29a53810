"""A request that a handler of an application answers, in a thread of its own beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tessera_runtime.server.exchange import Exchange
    from tessera_runtime.server.gateway import Gateway

Result = TypeVar("Result")


@dataclass
class TokenCount:
    """Tokens of everything that a handler had generated."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0


@dataclass
class Call:
    """What sessions and the reply need to know of the request at hand."""

    gateway: Gateway
    exchange: Exchange
    loop: asyncio.AbstractEventLoop
    names: Mapping[Path, str]
    """Under which name each package is served."""
    count: TokenCount = field(default_factory=TokenCount)
    finish_reason: str | None = None
    """Of what was generated last."""
    gone: bool = False
    """The client has left."""

    def wait_for(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Runs a coroutine in the event loop and waits for it in this thread."""
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result()


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)
"""Set in the thread of a handler while it runs."""
