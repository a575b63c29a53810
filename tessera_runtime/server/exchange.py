"""One HTTP request and its response, over bare ASGI: bodies with a limit, JSON out, events out."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from tessera_runtime.server.errors import ApiError, invalid

JSON = b"application/json"
BODY_SECONDS = 60.0
"""How long a client may take to send its body."""
REQUEST_ID_LIMIT = 128


class ClientGone(Exception):
    """The client has closed the connection."""


class Exchange:
    """Given to a handler, which replies exactly once."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.started = False
        """Whether the status has been sent."""
        self.status = 0
        self.began = time.monotonic()
        self.writing_since: float | None = None
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = self._request_id()
        self.tenant: str = scope.get("tessera.tenant", "")
        self.model = ""
        """Filled in by handlers, for the log."""
        self._receive = receive
        self._send = send

    @property
    def path(self) -> str:
        return str(self.scope["path"])

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    def parameter(self, name: str) -> str:
        """A part of the path that the route names."""
        return str(self.scope["path_params"][name])

    async def body(self, limit: int) -> bytes:
        """The body; a 413 if it is longer than the limit, as soon as that is known."""
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > limit:
            raise _too_large(limit)
        try:
            return await asyncio.wait_for(self._read(limit), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise ApiError(
                408, f"The request body did not arrive within {BODY_SECONDS:g} s.", headers={"Connection": "close"}
            ) from None

    async def _read(self, limit: int) -> bytes:
        pieces: list[bytes] = []
        length = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            length += len(piece)
            if length > limit:
                raise _too_large(limit)
            if piece:
                pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)

    async def json_body(self, limit: int) -> bytes:
        """The body of a request that must be JSON."""
        kind = self.headers.get(b"content-type", JSON).partition(b";")[0].strip().lower()
        if kind != JSON and not kind.endswith(b"+json"):
            raise ApiError(415, f"The content type must be application/json, not {kind[:100].decode('latin-1')!r}.")
        data = await self.body(limit)
        if not data:
            raise invalid("The request has no body; it should be a JSON object.")
        return data

    async def disconnected(self) -> None:
        """Returns when the client has closed the connection. Only after the body has been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def reply(
        self, body: bytes, *, status: int = 200, kind: bytes = JSON, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """The whole response."""
        await self._start(status, [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers])
        await self._write(b"" if self.method == "HEAD" else body, more=False)

    async def reply_json(self, value: Any, *, status: int = 200) -> None:
        await self.reply(msgspec.json.encode(value), status=status)

    async def reply_error(self, error: ApiError) -> None:
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in error.headers.items()]
        await self.reply(error.body(), status=error.status, headers=headers)

    async def start_events(self) -> None:
        """Begins a stream of server-sent events."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._start(200, headers)

    async def write(self, data: bytes) -> None:
        """Events; waits while the client does not read."""
        await self._write(data, more=True)

    async def end(self) -> None:
        await self._write(b"", more=False)

    def abort_connection(self) -> None:
        """Cuts the connection: for clients that do not read."""
        abort: Callable[[], None] | None = self.scope.get("state", {}).get("abort_connection")
        if abort is not None:
            abort()

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        self.status = status
        headers.append((b"x-request-id", self.request_id.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _write(self, data: bytes, *, more: bool) -> None:
        self.writing_since = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self.writing_since = None

    def _request_id(self) -> str:
        given = self.headers.get(b"x-request-id", b"")
        if 0 < len(given) <= REQUEST_ID_LIMIT and given.isascii() and given.decode().isprintable():
            return given.decode()
        return secrets.token_hex(12)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, f"The request body is larger than {limit} bytes, the most this server takes.", code="request_too_large"
    )
