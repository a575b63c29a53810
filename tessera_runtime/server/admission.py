"""Who may come in: a bounded number of requests and answers, and nobody while the server drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from tessera_runtime.server.errors import overloaded, unavailable
from tessera_runtime.server.served_model import ServedModel

RETRY_SECONDS = 1
"""What a client that is sent away is told to wait."""
DRAIN_RETRY_SECONDS = 5
EXTRA_REQUESTS = 256
"""Requests beyond the answers that may be outstanding: those that are still read, rendered and tokenized."""
DEFAULT_SEQUENCES = 256


class Admission:
    """Counts the requests inside."""

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self._inside = 0
        self._sequences = DEFAULT_SEQUENCES
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False

    @property
    def inside(self) -> int:
        return self._inside

    def set_sequences(self, count: int) -> None:
        """How many answers all engines together work on at once."""
        self._sequences = max(count, 1)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """For the whole of a request that wants an answer. Raises 429 or 503 before anything of it is read."""
        if self.draining:
            raise unavailable("The server is shutting down.", "draining", DRAIN_RETRY_SECONDS)
        if self._inside >= self._sequences + self._max_queue + EXTRA_REQUESTS:
            raise overloaded("The server has as many requests as it takes. Try again later.", RETRY_SECONDS)
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    def check_queue(self, model: ServedModel, answers: int) -> None:
        """Raises 429 if so many more answers would make the model's queue too long."""
        limit = model.sequences + self._max_queue
        if model.outstanding + answers > limit:
            raise overloaded(
                f"The queue of this model is full: {model.outstanding} answers are being worked on or wait, and"
                f" {limit} is the most. Try again later.",
                RETRY_SECONDS,
            )

    async def drained(self) -> None:
        """Returns when nobody is inside."""
        await self._empty.wait()
