"""Sessions: how a handler, or a script, has text generated. All sessions of a model share its engine's batches."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tessera.errors import ModelNotServed
from tessera.packages import Module, resolve
from tessera.serving.calls import Call, current_call
from tessera_runtime.errors import InvalidRequest, NumericalError

if TYPE_CHECKING:
    from tessera.llm import LLM, Parameters
    from tessera_runtime.server.api_requests import ChatCompletionRequest
    from tessera_runtime.server.generation import Plan
    from tessera_runtime.server.served_model import ServedModel

Messages = Sequence[Mapping[str, Any]]
SAMPLING_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("frequency_penalty", "presence_penalty", "logit_bias", "seed"),
)
WISHES = ("max_tokens", *SAMPLING_FIELDS, "stop", "stop_token_ids", "ignore_eos", "priority")


@dataclass(frozen=True)
class Finish:
    """How an answer ended."""

    reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class _Source(Protocol):
    def generate(self, messages: Messages, wishes: Mapping[str, Any]) -> Iterator[str | Finish]: ...

    def close(self) -> None: ...


class Session:
    """A context in which one model generates; made by `Scheduler.session`."""

    def __init__(self, source: _Source) -> None:
        self._source: _Source | None = source
        self.finish: Finish | None = None
        """How the answer that ended last did."""

    def generate(self, messages: Messages, *, max_tokens: int | None = None, **wishes: Any) -> Iterator[str]:
        """The text of the answer, piece by piece; closing the iterator stops the work on it.

        Without `max_tokens`, the context is the limit. `wishes` are the sampling fields of a chat completion:
        `temperature`, `top_p`, `top_k`, `min_p`, the penalties, `logit_bias`, `seed`, `stop`, `stop_token_ids`,
        `ignore_eos`; what is left out is as the model's authors advise. One out of its range is refused at the first
        piece.
        """
        if self._source is None:
            raise InvalidRequest("The session is over.", hint="Generate inside its `with` block.")
        pieces = self._source.generate(messages, {"max_tokens": max_tokens, **wishes})
        try:
            for piece in pieces:
                if isinstance(piece, Finish):
                    self.finish = piece
                else:
                    yield piece
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None


def open_session(model: str | Path | Module) -> Session:
    """In a handler, with a model that the application serves; elsewhere, with a package in this process."""
    call = current_call.get()
    if call is not None:
        name = _served_name(call, model)
        served = call.gateway.models.get(name)
        if served is None:
            raise ModelNotServed(
                f"This application serves no model {name!r}; it serves {', '.join(call.gateway.models)}.",
                hint="Register its package with @app.model(path).",
            )
        return Session(_Served(call, served))
    path = model.path if isinstance(model, Module) else resolve(model)
    if not path.exists():
        raise ModelNotServed(
            f"No application serves {str(model)!r} here, and there is no package of that name.",
            hint="Ask by a model's name in a handler of an App; elsewhere, by the path of a package.",
        )
    return Session(_Local(path))


def _served_name(call: Call, model: str | Path | Module) -> str:
    """A model is asked for by the name it has in the application, or by its package."""
    if isinstance(model, str) and model in call.gateway.models:
        return model
    path = model.path if isinstance(model, Module) else resolve(model)
    return call.names.get(path.resolve(), str(model))


class _Served:
    """A model of the application, whose engine is another process. Used in the thread of a handler."""

    def __init__(self, call: Call, model: ServedModel) -> None:
        self._call = call
        self._model = model

    def close(self) -> None:
        """The model goes on for others."""

    def generate(self, messages: Messages, wishes: Mapping[str, Any]) -> Iterator[str | Finish]:
        found: queue.SimpleQueue[str | Finish | BaseException] = queue.SimpleQueue()
        task = asyncio.run_coroutine_threadsafe(self._drive(messages, wishes, found), self._call.loop)
        try:
            while True:
                piece = found.get()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if isinstance(piece, Finish):
                    return
        finally:
            task.cancel()

    async def _drive(
        self,
        messages: Messages,
        wishes: Mapping[str, Any],
        found: queue.SimpleQueue[str | Finish | BaseException],
    ) -> None:
        """In the event loop: puts the text there as it comes, and at last how it ended, or why it did not."""
        from tessera_runtime.server.generation import generate

        call, model = self._call, self._model
        call.exchange.model = model.name
        try:
            plan = await self._plan(messages, wishes)
            async with generate(call.exchange, model, plan, call.gateway.admission, call.gateway.metrics) as generation:
                async for pieces in generation.pieces():
                    text = "".join(piece.text for piece in pieces)
                    if text:
                        found.put(text)
                usage = generation.usage()
            reason = generation.answers[0].finish_reason or "stop"
            cached = usage.prompt_tokens_details.cached_tokens
            call.count.prompt += usage.prompt_tokens
            call.count.completion += usage.completion_tokens
            call.count.cached += cached
            call.finish_reason = reason
            found.put(Finish(reason, usage.prompt_tokens, usage.completion_tokens, cached))
        except BaseException as error:
            found.put(error)
            raise

    async def _plan(self, messages: Messages, wishes: Mapping[str, Any]) -> Plan:
        from tessera_runtime.server.chat import encode_messages
        from tessera_runtime.server.decoding import check_messages
        from tessera_runtime.server.generation import Plan
        from tessera_runtime.server.sampling_fields import check_sampling, checked_max_tokens

        model = self._model
        request = as_chat_request(messages, wishes)
        wanted = check_sampling(request, model.defaults, model.vocab_size)
        ids = await encode_messages(model, check_messages(request.messages), None, True, None)
        limit = checked_max_tokens(
            "max_tokens", request.max_tokens, len(ids), model.context, prompt_field="messages", default=None
        )
        return Plan([ids], [limit], wanted, 1)


class _Local:
    """A package that is loaded when the first answer is asked for, in this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._llm: LLM | None = None

    def close(self) -> None:
        if self._llm is not None:
            self._llm.close()
            self._llm = None

    def generate(self, messages: Messages, wishes: Mapping[str, Any]) -> Iterator[str | Finish]:
        from tessera.llm import LLM

        if self._llm is None:
            self._llm = LLM(self._path)
        with self._llm.stream(list(messages), self._parameters(self._llm, messages, wishes)) as stream:
            yield from stream
            result = stream.result
        if result is None or result.error is not None:
            raise NumericalError(result.error if result is not None and result.error else "The answer did not end.")
        usage = result.usage
        yield Finish(result.finish_reason, usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)

    def _parameters(self, llm: LLM, messages: Messages, wishes: Mapping[str, Any]) -> Parameters:
        from tessera.llm import Parameters
        from tessera_runtime.server.errors import ApiError
        from tessera_runtime.server.sampling_fields import check_sampling, model_defaults

        request = as_chat_request(messages, wishes)
        try:
            wanted = check_sampling(request, model_defaults(dict(llm.generation_defaults)), llm.vocab_size)
        except ApiError as error:
            raise InvalidRequest(error.message) from None
        sampling = {name: getattr(wanted.sampling, name) for name in SAMPLING_FIELDS}
        return Parameters(
            **sampling,
            max_tokens=llm.max_model_len if request.max_tokens is None else request.max_tokens,
            stop=wanted.stop,
            stop_ids=wanted.stop_ids,
            ignore_eos=wanted.ignore_eos,
        )


def as_chat_request(messages: Messages, wishes: Mapping[str, Any]) -> ChatCompletionRequest:
    """The wishes in the form, and with the checks, of a chat completion."""
    import msgspec

    from tessera_runtime.server.api_requests import ChatCompletionRequest

    unknown = sorted(wishes.keys() - {*WISHES})
    if unknown:
        raise InvalidRequest(f"There is no sampling field {unknown[0]!r}; there are {', '.join(WISHES)}.")
    given = {name: value for name, value in wishes.items() if value is not None}
    try:
        return msgspec.convert({"messages": [dict(each) for each in messages], **given}, ChatCompletionRequest)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise InvalidRequest(f"What is to be generated is not described properly: {error}.") from None
