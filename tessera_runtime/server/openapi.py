"""The API described by its own types: `/openapi.json` and docs/openapi.json are this document."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from tessera_runtime.server import api_requests, api_responses
from tessera_runtime.server.errors import ErrorResponse

TEMPLATE = "#/components/schemas/{name}"
REQUESTS = {
    "/v1/chat/completions": (api_requests.ChatCompletionRequest, api_responses.ChatCompletion),
    "/v1/completions": (api_requests.CompletionRequest, api_responses.Completion),
    "/v1/tokenize": (api_requests.TokenizeRequest, api_responses.TokenizeResponse),
    "/v1/detokenize": (api_requests.DetokenizeRequest, api_responses.DetokenizeResponse),
}
STREAMED = {
    "/v1/chat/completions": api_responses.ChatCompletionChunk,
    "/v1/completions": api_responses.Completion,
}
ANSWERS = {
    "/v1/models": (api_responses.ModelList, "The models that are served."),
    "/v1/models/{model}": (api_responses.ModelCard, "One model; its name may hold slashes."),
    "/version": (api_responses.Version, "The version of the server."),
    "/health/live": (api_responses.Health, "200 as long as the gateway runs."),
    **{
        path: (api_responses.Health, "200 if every model can be used, else 503.")
        for path in ("/healthz", "/readyz", "/health", "/health/ready", "/v1/healthz")
    },
}
SUMMARIES = {
    "/v1/chat/completions": "Answer a conversation.",
    "/v1/completions": "Continue one or several prompts.",
    "/v1/tokenize": "The token ids of a text or a conversation.",
    "/v1/detokenize": "The text of token ids.",
}
REFUSALS = {
    "400": "The request is wrong; `param` names the field.",
    "401": "The API key is missing or wrong.",
    "404": "The model does not exist.",
    "413": "The body is too large.",
    "429": "The queue is full; `Retry-After` says when to come back.",
    "500": "The server failed.",
    "503": "The server starts, drains or has lost its engine; `Retry-After` says when to come back.",
}


@cache
def document_bytes(version: str) -> bytes:
    """The document as JSON, indented."""
    return msgspec.json.format(msgspec.json.encode(document(version)), indent=2) + b"\n"


def document(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    kinds: list[Any] = [api_requests.ChatMessage, ErrorResponse]
    kinds += [kind for pair in REQUESTS.values() for kind in pair] + list(STREAMED.values())
    kinds += [kind for kind, _ in ANSWERS.values()]
    unique = list(dict.fromkeys(kinds))
    schemas, components = msgspec.json.schema_components(unique, ref_template=TEMPLATE)
    references = dict(zip(unique, schemas, strict=True))
    errors = {
        status: {"description": text, "content": _json(references[ErrorResponse])} for status, text in REFUSALS.items()
    }
    paths: dict[str, Any] = {}
    for path, (request, response) in REQUESTS.items():
        content = _json(references[response])
        if path in STREAMED:
            content["text/event-stream"] = {"schema": references[STREAMED[path]]}
        paths[path] = {
            "post": {
                "summary": SUMMARIES[path],
                "requestBody": {"required": True, "content": _json(references[request])},
                "responses": {"200": {"description": "The answer.", "content": content}, **errors},
            }
        }
    for path, (response, text) in ANSWERS.items():
        operation: dict[str, Any] = {
            "summary": text,
            "responses": {"200": {"description": text, "content": _json(references[response])}},
        }
        if "{model}" in path:
            operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
        paths[path] = {"get": operation}
    paths["/metrics"] = {
        "get": {
            "summary": "Metrics for Prometheus; tis.yaml may move them.",
            "responses": {"200": {"description": "Prometheus' text format.", "content": {"text/plain": {}}}},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tessera", "version": version},
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
