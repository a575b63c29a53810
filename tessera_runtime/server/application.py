"""The routes, and what every request goes through: CORS, the key, one terminal answer, the log, the metrics."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tessera_runtime.errors import TesseraError
from tessera_runtime.server import chat, completions, plain_endpoints
from tessera_runtime.server.errors import ApiError, from_tessera, internal
from tessera_runtime.server.exchange import ClientGone, Exchange
from tessera_runtime.server.security import ApiKeys, RequireKey

if TYPE_CHECKING:
    from tessera_runtime.server.gateway import Gateway

Handler = Callable[["Gateway", Exchange], Awaitable[None]]

CustomRoute = tuple[str, str, str, Handler]
"""Method, path, the name in logs and metrics, and what answers."""

QUIET = frozenset({"live", "ready", "metrics"})
"""Asked every few seconds by machines; logged at `debug` only."""


class Endpoint:
    """Runs a handler. Whatever happens in it, the client gets exactly one answer, and nobody else notices."""

    def __init__(self, gateway: Gateway, name: str, handler: Handler) -> None:
        self._gateway = gateway
        self._name = name
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._gateway
        exchange = Exchange(scope, receive, send)
        gateway.exchanges.add(exchange)
        try:
            outcome = await self._answer(exchange)
        finally:
            gateway.exchanges.discard(exchange)
        seconds = time.monotonic() - exchange.began
        gateway.metrics.observe_request(exchange.model, self._name, outcome, seconds)
        write = gateway.log.debug if self._name in QUIET else gateway.log.info
        write(
            "request",
            id=exchange.request_id,
            endpoint=self._name,
            model=exchange.model,
            status=exchange.status,
            outcome=outcome,
            seconds=round(seconds, 4),
        )

    async def _answer(self, exchange: Exchange) -> str:
        """Replies, and says how it went."""
        try:
            await self._handler(self._gateway, exchange)
            return "ok" if exchange.status < 400 else "server_error"
        except ClientGone:
            return "disconnected"
        except ApiError as error:
            failure = error
        except TesseraError as error:
            failure = from_tessera(error)
            if failure.status >= 500:
                self._gateway.log.error("request_failed", id=exchange.request_id, code=error.code)
        except Exception as error:
            self._gateway.log.defect("request_failed", error, id=exchange.request_id)
            failure = internal("The server has a defect; this request met it.")
        if exchange.started:
            # Half a response cannot be taken back; a cut connection at least does not look like a whole one.
            exchange.abort_connection()
        else:
            await exchange.reply_error(failure)
        return {429: "rejected", 503: "rejected"}.get(
            failure.status, "client_error" if failure.status < 500 else "server_error"
        )


ROUTES: tuple[CustomRoute, ...] = (
    ("POST", "/v1/chat/completions", "chat_completions", chat.chat_completions),
    ("POST", "/v1/completions", "completions", completions.completions),
    ("GET", "/v1/models", "list_models", plain_endpoints.list_models),
    ("GET", "/v1/models/{model:path}", "show_model", plain_endpoints.show_model),
    ("POST", "/v1/tokenize", "tokenize", plain_endpoints.tokenize),
    ("POST", "/v1/detokenize", "detokenize", plain_endpoints.detokenize),
    ("GET", "/v1/healthz", "ready", plain_endpoints.ready),
    ("GET", "/healthz", "ready", plain_endpoints.ready),
    ("GET", "/readyz", "ready", plain_endpoints.ready),
    ("GET", "/health", "ready", plain_endpoints.ready),
    ("GET", "/health/ready", "ready", plain_endpoints.ready),
    ("GET", "/health/live", "live", plain_endpoints.live),
    ("GET", "/version", "version", plain_endpoints.version),
    ("GET", "/openapi.json", "openapi", plain_endpoints.openapi),
)


def make_application(gateway: Gateway, extra_routes: Sequence[CustomRoute] = ()) -> Starlette:
    """The ASGI application of a gateway. The first route that matches answers, and extra ones come first."""
    table = (*extra_routes, *ROUTES, ("GET", gateway.settings.metrics_path, "metrics", plain_endpoints.metrics))
    routes = [Route(path, Endpoint(gateway, name, handler), methods=[method]) for method, path, name, handler in table]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(gateway.settings.cors_origins),
        allow_methods=["GET", "POST", "OPTIONS"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )
    key = Middleware(RequireKey, keys=ApiKeys(gateway.settings.api_keys))
    application = Starlette(
        routes=routes, middleware=[cors, key], exception_handlers={HTTPException: _no_such_endpoint}
    )
    application.router.redirect_slashes = False
    return application


async def _no_such_endpoint(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    path = request.scope["path"][:200]
    if status == 405:
        failure = ApiError(405, f"{path} does not take {request.method}.", code="method_not_allowed")
    else:
        failure = ApiError(status, f"There is nothing at {path}.", code="not_found")
    headers = dict(getattr(error, "headers", None) or {})
    return Response(failure.body(), status_code=status, media_type="application/json", headers=headers)
