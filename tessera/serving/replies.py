"""How the text of a handler becomes a response: OpenAI's objects on OpenAI's routes, plain JSON on others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from tessera.serving.requests import CHAT, TEXT, Request

if TYPE_CHECKING:
    from tessera.serving.calls import Call
    from tessera_runtime.server.api_responses import Usage

_encode = msgspec.json.Encoder().encode


class Form(Protocol):
    """Makes events of a stream, or one object of all of it."""

    def opening(self) -> list[bytes]: ...

    def delta(self, value: Any) -> bytes:
        """Raises TypeError for what this route cannot carry."""
        ...

    def closing(self) -> list[bytes]: ...

    def whole(self, values: list[Any]) -> Any: ...


def form_for(path: str, request: Request, call: Call) -> Form:
    """The form of a route's responses."""
    if path == CHAT:
        return _Chat(request, call)
    return _Text(request, call) if path == TEXT else _Plain()


class _OpenAi:
    """What both kinds of completions have in common."""

    def __init__(self, request: Request, call: Call) -> None:
        self._call = call
        self._created = int(time.time())
        options = request.get("stream_options")
        self._include_usage = bool(options is not None and options.include_usage)
        self._model = request.get("model") or call.exchange.model or next(iter(call.gateway.models))

    @property
    def _fingerprint(self) -> str:
        served = self._call.gateway.models.get(self._model)
        return served.fingerprint if served is not None else "fp_application"

    @property
    def _chunk_usage(self) -> Any:
        return None if self._include_usage else msgspec.UNSET

    def _reason(self) -> str:
        return self._call.finish_reason or "stop"

    def _usage(self) -> Usage:
        from tessera_runtime.server.api_responses import PromptTokensDetails, Usage

        count = self._call.count
        total = count.prompt + count.completion
        return Usage(count.prompt, count.completion, total, PromptTokensDetails(count.cached))


class _Chat(_OpenAi):
    @property
    def _identifier(self) -> str:
        return f"chatcmpl-{self._call.exchange.request_id}"

    def opening(self) -> list[bytes]:
        from tessera_runtime.server.api_responses import Delta

        return [self._chunk(Delta("assistant", ""), None)]

    def delta(self, value: Any) -> bytes:
        from tessera_runtime.server.api_responses import Delta

        return self._chunk(Delta(content=_text(value)), None)

    def closing(self) -> list[bytes]:
        from tessera_runtime.server.api_responses import ChatCompletionChunk, Delta

        events = [self._chunk(Delta(), self._reason())]
        if self._include_usage:
            usage = self._usage()
            chunk = ChatCompletionChunk(self._identifier, self._created, self._model, [], self._fingerprint, usage)
            events.append(_encode(chunk))
        return events

    def whole(self, values: list[Any]) -> Any:
        from tessera_runtime.server.api_responses import AnswerMessage, ChatChoice, ChatCompletion

        text = "".join(map(_text, values))
        choice = ChatChoice(0, AnswerMessage(text), self._reason())
        return ChatCompletion(self._identifier, self._created, self._model, [choice], self._usage(), self._fingerprint)

    def _chunk(self, delta: Any, reason: str | None) -> bytes:
        from tessera_runtime.server.api_responses import ChatCompletionChunk, ChunkChoice

        choices = [ChunkChoice(0, delta, reason)]
        return _encode(
            ChatCompletionChunk(
                self._identifier, self._created, self._model, choices, self._fingerprint, self._chunk_usage
            )
        )


class _Text(_OpenAi):
    def opening(self) -> list[bytes]:
        return []

    def delta(self, value: Any) -> bytes:
        return _encode(self._completion(_text(value), None, self._chunk_usage))

    def closing(self) -> list[bytes]:
        events = [_encode(self._completion("", self._reason(), self._chunk_usage))]
        if self._include_usage:
            events.append(_encode(self._completion(None, None, self._usage())))
        return events

    def whole(self, values: list[Any]) -> Any:
        return self._completion("".join(map(_text, values)), self._reason(), self._usage())

    def _completion(self, text: str | None, reason: str | None, usage: Any) -> Any:
        from tessera_runtime.server.api_responses import Completion, CompletionChoice

        choices = [] if text is None else [CompletionChoice(0, text, reason)]
        identifier = f"cmpl-{self._call.exchange.request_id}"
        return Completion(identifier, self._created, self._model, choices, self._fingerprint, usage)


class _Plain:
    """Events are the values themselves; a whole answer is the only value, or all text joined, or the list of values."""

    def opening(self) -> list[bytes]:
        return []

    def delta(self, value: Any) -> bytes:
        return _encode({"text": value} if isinstance(value, str) else value)

    def closing(self) -> list[bytes]:
        return []

    def whole(self, values: list[Any]) -> Any:
        if values and all(isinstance(value, str) for value in values):
            return {"text": "".join(values)}
        return values[0] if len(values) == 1 else values


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"A handler of this route gives pieces of text, not {type(value).__name__}.")
    return value
