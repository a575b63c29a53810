"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from tessera_runtime.server.answer import Answer, Piece
from tessera_runtime.server.api_requests import ChatCompletionRequest
from tessera_runtime.server.api_responses import (
    AnswerMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    ChunkChoice,
    Delta,
    Usage,
)
from tessera_runtime.server.decoding import check_messages, decode_body
from tessera_runtime.server.errors import invalid, unsupported
from tessera_runtime.server.exchange import Exchange
from tessera_runtime.server.generation import Generation, Plan, generate, send_events
from tessera_runtime.server.sampling_fields import (
    MAX_TOP_LOGPROBS,
    check_sampling,
    checked_integer,
    checked_max_tokens,
)
from tessera_runtime.server.served_model import ServedModel
from tessera_runtime.server.token_text import chat_logprobs
from tessera_runtime.text.chat_template import RESERVED_NAMES

if TYPE_CHECKING:
    from tessera_runtime.server.gateway import Gateway

_encode = msgspec.json.Encoder().encode


async def chat_completions(gateway: Gateway, exchange: Exchange) -> None:
    with gateway.admission.enter():
        request = decode_body(await exchange.json_body(gateway.settings.max_body), ChatCompletionRequest)
        model = gateway.model(request.model)
        exchange.model = model.name
        plan, top = await _plan(model, request)
        async with generate(exchange, model, plan, gateway.admission, gateway.metrics) as generation:
            identifier = f"chatcmpl-{exchange.request_id}"
            if request.stream:
                await _stream(generation, identifier, top, plan.wanted.include_usage)
            else:
                await _reply(generation, identifier, top)


async def _plan(model: ServedModel, request: ChatCompletionRequest) -> tuple[Plan, int | None]:
    """What to ask of the engine, and how many likeliest tokens to show (None: no log-probabilities)."""
    wanted = check_sampling(request, model.defaults, model.vocab_size)
    top = _top_logprobs(request)
    if request.tool_choice not in (None, "none", "auto"):
        raise unsupported('\'tool_choice\' may only be "none" or "auto".', "tool_choice")
    messages = check_messages(request.messages)
    tools = request.tools if request.tools and request.tool_choice != "none" else None
    ids = await encode_messages(
        model, messages, tools, request.add_generation_prompt is not False, request.chat_template_kwargs
    )
    name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    limit = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    max_tokens = checked_max_tokens(name, limit, len(ids), model.context, prompt_field="messages", default=None)
    return Plan([ids], [max_tokens], wanted, wanted.n, logprobs=top), top


async def encode_messages(
    model: ServedModel,
    messages: Sequence[dict[str, object]],
    tools: Sequence[dict[str, object]] | None,
    add_generation_prompt: bool,
    variables: dict[str, object] | None,
) -> list[int]:
    """The ids of a conversation, as the model's chat template writes it."""
    reserved = sorted(RESERVED_NAMES.intersection(variables or {}))
    if reserved:
        raise invalid(
            f"'chat_template_kwargs' may not set {reserved[0]!r}, which the server sets itself.",
            "chat_template_kwargs",
            "invalid_value",
        )
    text = await model.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=variables)
    ids = await model.encode(text, add_special_tokens=False, field="messages")
    if not ids:
        raise invalid("The chat template makes an empty prompt of these messages.", "messages")
    return ids


def _top_logprobs(request: ChatCompletionRequest) -> int | None:
    top = checked_integer("top_logprobs", request.top_logprobs, 0, MAX_TOP_LOGPROBS, 0)
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("'top_logprobs' needs 'logprobs': true.", "top_logprobs", "invalid_value")
    return top if request.logprobs else None


async def _reply(generation: Generation, identifier: str, top: int | None) -> None:
    found = await generation.finish()
    choices = []
    for answer in generation.answers:
        pieces = found[answer.index]
        text = "".join(piece.text for piece in pieces)
        logprobs = _logprobs(generation.model, pieces, top)
        choices.append(ChatChoice(answer.index, AnswerMessage(text), answer.finish_reason or "stop", logprobs))
    model = generation.model
    await generation.exchange.reply_json(
        ChatCompletion(identifier, generation.created, model.name, choices, generation.usage(), model.fingerprint)
    )


async def _stream(generation: Generation, identifier: str, top: int | None, include_usage: bool) -> None:
    model = generation.model
    no_usage = None if include_usage else msgspec.UNSET

    def chunk(answer: Answer, delta: Delta, finish: str | None, logprobs: ChatLogprobs | None) -> bytes:
        choice = ChunkChoice(answer.index, delta, finish, logprobs)
        return _encode(
            ChatCompletionChunk(identifier, generation.created, model.name, [choice], model.fingerprint, no_usage)
        )

    def opening() -> list[bytes]:
        return [chunk(answer, Delta("assistant", ""), None, None) for answer in generation.answers]

    def chunks(pieces: Sequence[Piece]) -> list[bytes]:
        events = []
        for piece in pieces:
            if piece.text or (piece.logprobs and top is not None):
                logprobs = _logprobs(model, [piece], top)
                events.append(chunk(piece.answer, Delta(content=piece.text), None, logprobs))
            if piece.final:
                events.append(chunk(piece.answer, Delta(), piece.answer.finish_reason, None))
        return events

    def usage_chunk(usage: Usage) -> bytes:
        return _encode(ChatCompletionChunk(identifier, generation.created, model.name, [], model.fingerprint, usage))

    await send_events(generation, include_usage, chunks, opening, usage_chunk)


def _logprobs(model: ServedModel, pieces: Sequence[Piece], top: int | None) -> ChatLogprobs | None:
    if top is None:
        return None
    return chat_logprobs(model.tokenizer, [entry for piece in pieces for entry in piece.logprobs], top)
