"""A client for one HTTP/1.1 request at a time that costs as little as possible while many streams are open.

It notes when bytes arrive and hands events on undecoded. Made for measuring: no redirects, no proxies, no retries.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tessera.errors import ServerUnreachable

MAX_HEAD = 1 << 16


@dataclass(frozen=True)
class Address:
    """Where a server is."""

    host: str
    port: int
    secure: bool
    path: str
    """What stands before `/v1` in the URL; usually nothing."""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Reads `http://host:port`, with or without `/v1` behind it. Raises `ServerUnreachable` for anything else."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ServerUnreachable(f"{url!r} is not a URL: {error}.") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ServerUnreachable(f"A server is named like http://127.0.0.1:8080, not {url!r}.")
        secure = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if secure else 80), secure, parts.path.rstrip("/").removesuffix("/v1"))

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.path}"


class ResponseParser:
    """Takes the bytes of a response as they come and gives those of its body."""

    def __init__(self) -> None:
        self.status = 0
        self.complete = False
        self._buffer = bytearray()
        self._in_head = True
        self._left: int | None = None
        """Bytes to come of the body, or of the chunk at hand; None: until the connection ends."""
        self._chunked = False

    def feed(self, data: bytes) -> bytes:
        """Raises `ServerUnreachable` for what is no HTTP response."""
        self._buffer += data
        if self._in_head and not self._read_head():
            return b""
        if self._chunked:
            return self._read_chunks()
        body = bytes(self._buffer if self._left is None else self._buffer[: self._left])
        self._buffer.clear()
        if self._left is not None:
            self._left -= len(body)
            self.complete = self._left == 0
        return body

    def end(self) -> None:
        """The connection has ended."""
        if (self._in_head or self._chunked or self._left) and not self.complete:
            raise ServerUnreachable("The server closed the connection in the middle of its response.")
        self.complete = True

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise ServerUnreachable("The server's response has no end of headers; is this an HTTP server?")
            return False
        lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        version, _, rest = lines[0].partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise ServerUnreachable("The server does not answer in HTTP/1.1.")
        self.status = int(rest[:3])
        if 100 <= self.status < 200:
            return self._read_head()
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        self._chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        length = headers.get(b"content-length", b"")
        self._left = 0 if self._chunked else int(length) if length.isdigit() else None
        self._in_head = False
        return True

    def _read_chunks(self) -> bytes:
        body = b""
        buffer = self._buffer
        while not self.complete:
            if self._left:
                piece = bytes(buffer[: self._left])
                del buffer[: len(piece)]
                body += piece
                self._left -= len(piece)
                if self._left:
                    break
            if buffer[:2] == b"\r\n":
                del buffer[:2]
            end = buffer.find(b"\r\n")
            if end < 0:
                break
            try:
                self._left = int(bytes(buffer[:end]).partition(b";")[0], 16)
            except ValueError:
                raise ServerUnreachable("The server's response is not chunked as it says.") from None
            del buffer[: end + 2]
            self.complete = self._left == 0
        return body


@dataclass
class Response:
    """What came of a request."""

    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    """All of it, unless `on_event` took it."""


class _Call(asyncio.Protocol):
    def __init__(self, request: bytes, on_event: Callable[[float, bytes], None] | None) -> None:
        self.response = Response()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._on_event = on_event
        self._parser = ResponseParser()
        self._rest = b""
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        try:
            body = self._parser.feed(data)
        except ServerUnreachable as error:
            self._finish(error)
            return
        if self._on_event is not None and self._parser.status == 200:
            *events, self._rest = (self._rest + body).split(b"\n\n")
            for event in events:
                self._on_event(now, event)
        else:
            self.response.body += body
        if self._parser.complete:
            self._finish(None)

    def connection_lost(self, error: Exception | None) -> None:
        try:
            self._parser.end()
        except ServerUnreachable as incomplete:
            self._finish(incomplete)
        else:
            self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        self.response.status = self._parser.status
        if not self.ended.done():
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)
        if self._transport is not None:
            self._transport.close()


async def call(
    address: Address,
    method: str,
    path: str,
    *,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    on_event: Callable[[float, bytes], None] | None = None,
    seconds: float = 600.0,
) -> Response:
    """Makes one request over a connection of its own.

    `on_event` gets every server-sent event of a response with status 200, with the time (`time.perf_counter`) at which
    its last byte arrived. Raises `ServerUnreachable` when there is no answer, or none within `seconds`.
    """
    lines = [f"{method} {address.path}{path} HTTP/1.1", f"host: {address.authority}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    request = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context() if address.secure else None
    try:
        _, protocol = await asyncio.wait_for(
            loop.create_connection(lambda: _Call(request, on_event), address.host, address.port, ssl=context), 30.0
        )
        await asyncio.wait_for(protocol.ended, seconds)
    except (asyncio.TimeoutError, TimeoutError):
        raise ServerUnreachable(f"The server at {address} did not answer within the time it has.") from None
    except OSError as error:
        # asyncio puts the address into the text of the error, which the message has already.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        raise ServerUnreachable(
            f"There is no answer from {address}: {reason}.", hint="Is `tessera run` running there?"
        ) from None
    return protocol.response
