"""Runs a handler of an application in a thread, and sends what it gives as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.serving.calls import Call, current_call
from tessera.serving.replies import Form, form_for
from tessera.serving.requests import CHAT, TEXT, parse_request
from tessera_runtime.errors import TesseraError

if TYPE_CHECKING:
    from tessera_runtime.server.exchange import Exchange
    from tessera_runtime.server.gateway import Gateway

Function = Callable[..., Any]


def make_handler(
    path: str,
    method: str,
    function: Function,
    *,
    stream: bool,
    names: Mapping[Path, str],
    pool: ThreadPoolExecutor,
) -> Callable[[Gateway, Exchange], Awaitable[None]]:
    """The gateway's kind of handler around a user's function. `names` says under which name each package is served."""

    async def handler(gateway: Gateway, exchange: Exchange) -> None:
        with gateway.admission.enter():
            body = await exchange.json_body(gateway.settings.max_body) if method == "POST" else b""
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in exchange.headers.items()}
            request = parse_request(gateway, path, body, headers)
            call = Call(gateway, exchange, asyncio.get_running_loop(), names)
            openai = path in (CHAT, TEXT)
            as_events = stream and (bool(request.get("stream")) if openai else True)
            sender = _Sender(call, form_for(path, request, call), as_events)
            watch = asyncio.ensure_future(_watch(call)) if method == "POST" else None
            try:
                await call.loop.run_in_executor(pool, copy_context().run, _run, call, function, request, stream, sender)
                await sender.finish()
            except Exception as error:
                await sender.fail(error)
            finally:
                if watch is not None:
                    watch.cancel()

    return handler


def _run(call: Call, function: Function, request: Any, stream: bool, sender: _Sender) -> None:
    """In the handler's thread."""
    current_call.set(call)
    given = function(request)
    values: Iterable[Any] = given if stream else (given,)
    try:
        for value in values:
            sender.send_from_thread(value)
    finally:
        # What the function generates ends when nobody listens any more.
        close = getattr(values, "close", None)
        if close is not None:
            close()


async def _watch(call: Call) -> None:
    await call.exchange.disconnected()
    call.gone = True


class _Sender:
    """One response. Events are written as they come, which makes the handler wait while its client does not read."""

    def __init__(self, call: Call, form: Form, as_events: bool) -> None:
        self._call = call
        self._form = form
        self._as_events = as_events
        self._values: list[Any] = []

    def send_from_thread(self, value: Any) -> None:
        from tessera_runtime.server.exchange import ClientGone

        if self._call.gone:
            raise ClientGone
        if self._as_events:
            event = self._form.delta(value)
            self._call.wait_for(lambda: self._write([event]))
        else:
            self._values.append(value)

    async def finish(self) -> None:
        if self._as_events:
            await self._write(self._form.closing())
            await self._end()
        else:
            await self._call.exchange.reply_json(self._form.whole(self._values))

    async def fail(self, error: Exception) -> None:
        """Before the first event an error is a response of its own, which the endpoint makes; later, it is an event."""
        from tessera_runtime.server.errors import ApiError, from_tessera, internal
        from tessera_runtime.server.exchange import ClientGone

        exchange = self._call.exchange
        if not exchange.started or isinstance(error, ClientGone):
            raise error
        if isinstance(error, ApiError):
            failure = error
        elif isinstance(error, TesseraError):
            failure = from_tessera(error)
        else:
            self._call.gateway.log.defect("handler_failed", error, id=exchange.request_id)
            failure = internal("The application has a defect; this request met it.")
        await exchange.write(b"data: %b\n\n" % failure.body())
        await self._end()
        exchange.status = failure.status

    async def _write(self, events: list[bytes]) -> None:
        exchange = self._call.exchange
        if not exchange.started:
            await exchange.start_events()
            events = self._form.opening() + events
        if events:
            await exchange.write(b"".join(b"data: %b\n\n" % event for event in events))

    async def _end(self) -> None:
        await self._call.exchange.write(b"data: [DONE]\n\n")
        await self._call.exchange.end()
