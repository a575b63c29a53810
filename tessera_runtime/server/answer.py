"""One answer that an engine is working on, as the gateway sees it: ids become text, and text ends at a stop string.

Everything here outlives the engine. If that dies, `resubmission` asks another for the rest, and the text goes on with
exactly the bytes that would have come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from tessera_runtime.engine.protocol import Output, Submit, TokenLogprob
from tessera_runtime.engine.stop_strings import StopStrings
from tessera_runtime.observe.metrics import AnswerTiming
from tessera_runtime.server.errors import ApiError, from_code, internal
from tessera_runtime.text.detokenizer import Decodes, Detokenizer

if TYPE_CHECKING:
    from tessera_runtime.server.supervisor import EngineInstance

MAX_BACKLOG = 8192
"""Pieces that a client may leave unread before its request is given up."""


class Piece(msgspec.Struct, frozen=True):
    """What became certain of one answer with one step."""

    answer: Answer
    text: str
    logprobs: Sequence[TokenLogprob]
    final: bool


class Inbox:
    """Where all answers of one HTTP request arrive; read by one task."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._waiter: asyncio.Future[None] | None = None
        self.gone = False
        """The client has left, or reads too slowly."""
        self.on_overflow: Callable[[], None] | None = None

    def put(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self._wake()
        if len(self._pieces) > MAX_BACKLOG and not self.gone:
            self.close()
            if self.on_overflow is not None:
                self.on_overflow()

    def close(self) -> None:
        """Nobody will read any more."""
        self.gone = True
        self._pieces.clear()
        self._wake()

    async def take(self) -> list[Piece]:
        """All that has arrived since the last call, at least one; empty if the client is gone."""
        if not self._pieces and not self.gone:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self.gone:
            return []
        pieces, self._pieces = self._pieces, []
        return pieces

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Answer:
    """State of one submission. Ends exactly once: with a `finish_reason` or an `error`."""

    def __init__(
        self,
        submit: Submit,
        tokenizer: Decodes,
        inbox: Inbox,
        timing: AnswerTiming,
        *,
        index: int = 0,
        stop: Sequence[str] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        self.submit = submit
        self.index = index
        """Which of the request's answers this is."""
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self.error: ApiError | None = None
        self.cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprob] | None = None
        self.cumulative_logprob = 0.0
        self.instance: EngineInstance | None = None
        self.began = time.monotonic()
        self.first_token_seconds: float | None = None
        self._last_token_at = 0.0
        self._crashes = 0
        self._ids_at_crash = -1
        self._timing = timing
        self._inbox = inbox
        self._stop_ids = frozenset(submit.stop_ids)
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
        self._stop = StopStrings(stop)

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def accept(self, output: Output) -> None:
        """Takes the engine's news and hands on what is new. Ends the answer early where a stop string appears."""
        if output.cached_tokens:
            self.cached_tokens = output.cached_tokens
        if output.queue_seconds is not None:
            self._timing.queue(output.queue_seconds)
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        if output.error is not None:
            self.fail(from_code(output.error.code, output.error.message))
            return
        if output.ids:
            self._take_time()
        text = ""
        last = len(output.ids) - 1
        stopped_by_model = output.finish_reason == "stop"
        stop = self._stop
        for position, token in enumerate(output.ids):
            self.ids.append(token)
            if not (stopped_by_model and position == last and token in self._stop_ids):
                text += stop.push(self._detokenizer.push(token))
        for entry in output.logprobs:
            self.cumulative_logprob += entry.logprob
        if output.finish_reason == "abort":
            self.fail(internal("The engine gave the request up.", "aborted"))
            return
        if output.finish_reason is not None and not stop.found:
            text += stop.push(self._detokenizer.finish())
            text += stop.finish()
        if stop.found:
            self.finish_reason = "stop"
        elif output.finish_reason is not None:
            self.finish_reason = output.finish_reason
        self._inbox.put(Piece(self, text, output.logprobs, self.ended))

    def _take_time(self) -> None:
        now = time.monotonic()
        if self.first_token_seconds is None:
            self.first_token_seconds = now - self.began
            self._timing.first_token(self.first_token_seconds)
        else:
            self._timing.gap(now - self._last_token_at)
        self._last_token_at = now

    def fail(self, error: ApiError) -> None:
        """Ends the answer with an error, unless it has ended."""
        if not self.ended:
            self.error = error
            self._inbox.put(Piece(self, "", (), True))

    def survived_crash(self) -> int:
        """To be called when an engine has died over this; how many have since it last got any further."""
        self._crashes = self._crashes + 1 if len(self.ids) == self._ids_at_crash else 1
        self._ids_at_crash = len(self.ids)
        return self._crashes

    def resubmission(self) -> Submit:
        """What to ask a new engine for: the rest."""
        wants_prompt = self.submit.prompt_logprobs and self.prompt_logprobs is None
        return msgspec.structs.replace(self.submit, resumed_ids=list(self.ids), prompt_logprobs=wants_prompt)
