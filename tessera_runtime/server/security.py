"""Who may use `/v1`: those who send one of the API keys, if there are any."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from tessera_runtime.server.errors import ApiError
from tessera_runtime.server.exchange import Exchange

PROTECTED = "/v1"
OPEN = frozenset({"/v1/healthz"})
"""Health stays open, as its siblings outside of /v1 are."""
TENANT_LENGTH = 16


class ApiKeys:
    """Keys are kept and compared as hashes, so neither a log of this process nor the time of a comparison tells one."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = tuple(_digest(key.encode()) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def tenant(self, authorization: bytes) -> str | None:
        """A name for the owner of the key in an Authorization header; None if it is no key of ours."""
        scheme, _, key = authorization.partition(b" ")
        given = _digest(key.strip())
        found = None
        for digest in self._digests:  # all of them, whichever matches
            if hmac.compare_digest(digest, given):
                found = digest.hex()[:TENANT_LENGTH]
        return found if scheme.lower() == b"bearer" else None


class RequireKey:
    """Middleware. The path it judges is the one that is routed; no header has a say in it."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and _is_protected(scope["path"]):
            exchange = Exchange(scope, receive, send)
            given = exchange.headers.get(b"authorization", b"")
            tenant = self._keys.tenant(given)
            if tenant is None:
                await exchange.reply_error(_refusal(bool(given)))
                return
            scope["tessera.tenant"] = tenant
        await self._app(scope, receive, send)


def _is_protected(path: str) -> bool:
    return (path == PROTECTED or path.startswith(PROTECTED + "/")) and path not in OPEN


def _refusal(given: bool) -> ApiError:
    message = (
        "The API key is not one of this server's."
        if given
        else "This server needs an API key: send it as 'Authorization: Bearer KEY'."
    )
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
