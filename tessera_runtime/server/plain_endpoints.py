"""Endpoints that answer at once: models, tokens, health, version, metrics, the API's description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tessera_runtime.observe.metrics import CONTENT_TYPE
from tessera_runtime.server.api_requests import DetokenizeRequest, TokenizeRequest
from tessera_runtime.server.api_responses import (
    DetokenizeResponse,
    Health,
    ModelList,
    TokenizeResponse,
    Version,
)
from tessera_runtime.server.chat import encode_messages
from tessera_runtime.server.decoding import check_messages, decode_body
from tessera_runtime.server.errors import invalid
from tessera_runtime.server.exchange import Exchange
from tessera_runtime.server.sampling_fields import check_token_ids

if TYPE_CHECKING:
    from tessera_runtime.server.gateway import Gateway

PLAIN_TEXT = b"text/plain; charset=utf-8"


async def list_models(gateway: Gateway, exchange: Exchange) -> None:
    await exchange.reply_json(ModelList([model.card() for model in gateway.models.values()]))


async def show_model(gateway: Gateway, exchange: Exchange) -> None:
    await exchange.reply_json(gateway.model(exchange.parameter("model")).card())


async def tokenize(gateway: Gateway, exchange: Exchange) -> None:
    with gateway.admission.enter():
        request = decode_body(await exchange.json_body(gateway.settings.max_body), TokenizeRequest)
        model = gateway.model(request.model)
        exchange.model = model.name
        if (request.prompt is None) == (request.messages is None):
            raise invalid("Give exactly one of 'prompt' and 'messages'.", "prompt", "invalid_value")
        if request.messages is not None:
            ids = await encode_messages(
                model,
                check_messages(request.messages),
                request.tools,
                request.add_generation_prompt is not False,
                request.chat_template_kwargs,
            )
        else:
            ids = await model.encode(
                request.prompt or "", add_special_tokens=request.add_special_tokens is not False, field="prompt"
            )
        strings = [model.tokenizer.token(token) or "" for token in ids] if request.return_token_strs else None
        await exchange.reply_json(TokenizeResponse(len(ids), model.context, ids, strings))


async def detokenize(gateway: Gateway, exchange: Exchange) -> None:
    with gateway.admission.enter():
        request = decode_body(await exchange.json_body(gateway.settings.max_body), DetokenizeRequest)
        model = gateway.model(request.model)
        exchange.model = model.name
        if len(request.tokens) > model.context:
            raise invalid(f"'tokens' has {len(request.tokens)} ids; at most {model.context} are allowed.", "tokens")
        check_token_ids(request.tokens, model.vocab_size, "tokens")
        text = model.tokenizer.decode(request.tokens, skip_special_tokens=bool(request.skip_special_tokens))
        await exchange.reply_json(DetokenizeResponse(text))


async def live(gateway: Gateway, exchange: Exchange) -> None:
    """The gateway runs. Whether it can serve is what `ready` says."""
    await exchange.reply_json(_health(gateway))


async def ready(gateway: Gateway, exchange: Exchange) -> None:
    """200 if every model has an engine that serves and the server is not shutting down; else 503."""
    health = _health(gateway)
    await exchange.reply_json(health, status=200 if health.status == "ok" else 503)


def _health(gateway: Gateway) -> Health:
    models = {name: model.health() for name, model in gateway.models.items()}
    status: Literal["ok", "starting", "unavailable", "draining"] = "ok"
    if gateway.admission.draining:
        status = "draining"
    elif not gateway.has_been_ready:
        status = "starting"
    elif not all(each.ready for each in models.values()):
        status = "unavailable"
    return Health(status, models)


async def version(gateway: Gateway, exchange: Exchange) -> None:
    await exchange.reply_json(Version(gateway.version))


async def metrics(gateway: Gateway, exchange: Exchange) -> None:
    await exchange.reply(gateway.metrics.exposition(), kind=CONTENT_TYPE)


async def openapi(gateway: Gateway, exchange: Exchange) -> None:
    from tessera_runtime.server.openapi import document_bytes

    await exchange.reply(document_bytes(gateway.version))
