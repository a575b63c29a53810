"""uvicorn's HTTP protocol with limits it lacks: on the size of headers, the time they take, and bodies nobody reads."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tessera_runtime.server.errors import ApiError

MAX_HEADERS = 64 << 10
HEADER_SECONDS = 15.0
"""How long the headers of a request may take once the connection is made or its first byte is there."""
MAX_DISCARDED = 128 << 20
"""Bytes of a body that are read and thrown away after it was refused, so that the client can read the refusal."""


class GuardedProtocol(HttpToolsProtocol):
    """Refuses with JSON errors; gives handlers `state["abort_connection"]`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._header_bytes = 0
        self._in_headers = True
        self._discarded = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > MAX_HEADERS and not self.transport.is_closing():
            self._refuse(431, f"The request's headers are larger than {MAX_HEADERS} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._discarded = 0
        self.scope["state"]["abort_connection"] = self.transport.abort
        self._start_timer()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_timer()
        if self._header_size() > MAX_HEADERS:
            raise httptools.HttpParserError("headers too large")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > MAX_DISCARDED:
                self.transport.abort()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_headers = True
        self._header_bytes = 0

    def send_400_response(self, msg: str) -> None:
        if max(self._header_bytes, self._header_size()) > MAX_HEADERS:
            self._refuse(431, f"The request's headers are larger than {MAX_HEADERS} bytes.")
        else:
            self._refuse(400, "This is not a valid HTTP request.")

    def _header_size(self) -> int:
        if self.headers is None:  # not even a first line has come
            return 0
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse(self, status: int, message: str) -> None:
        body = ApiError(status, message).body()
        reason = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}[status]
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, reason, len(body), body)
        )
        self.transport.close()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._time_is_over)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_is_over(self) -> None:
        if not self.transport.is_closing():
            self._refuse(408, f"The headers did not arrive within {HEADER_SECONDS:g} s.")
