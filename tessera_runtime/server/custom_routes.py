"""Serves with routes of one's own; they pass CORS, the key and the log like all others."""

from __future__ import annotations

from collections.abc import Sequence

from tessera_runtime.server.application import CustomRoute
from tessera_runtime.server.gateway import serve
from tessera_runtime.server.launch import Launch, Report


def serve_custom(started: Launch, report: Report, table: Sequence[CustomRoute]) -> int:
    """`gateway.serve` with more routes, which go before the built-in ones."""
    return serve(started, report, table)
