"""Serves with routes of one's own in front of the built-in ones; they pass CORS, the key and the log like all others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from tessera_runtime.server.application import Endpoint, Handler
from tessera_runtime.server.gateway import _Serving
from tessera_runtime.server.launch import Launch, Report

CustomRoute = tuple[str, str, str, Handler]
"""Method, path, the name in logs and metrics, and what answers."""


class _CustomServing(_Serving):
    def __init__(self, started: Launch, report: Report, table: Sequence[CustomRoute]) -> None:
        super().__init__(started, report)
        self._table = table

    def _uvicorn_config(self) -> uvicorn.Config:
        config = super()._uvicorn_config()
        if isinstance(config.app, Starlette):
            config.app.router.routes[:0] = [
                Route(path, Endpoint(self._gateway, name, handler), methods=[method])
                for method, path, name, handler in self._table
            ]
        return config


def serve_custom(started: Launch, report: Report, table: Sequence[CustomRoute]) -> int:
    """`gateway.serve` with more routes. The first that matches answers, so these go before the built-in ones."""
    try:
        return asyncio.run(_CustomServing(started, report, table).run())
    finally:
        started.abandon()
