"""What the gateway refuses: mistakes in how a server is started, and mistakes in what a client sends.

TesseraError
└── ServerError                the server cannot start
    ├── ConfigurationInvalid   a key or value of tis.yaml, an environment variable or a flag
    ├── NotYetActive           a setting that is known but that this version cannot honour
    ├── AddressUnavailable     the address or port cannot be listened on
    └── EngineStartFailed      an engine process ended before it was ready
ApiError                       an answer with status 4xx or 5xx, in OpenAI's form
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tessera_runtime.errors import TesseraError


class ServerError(TesseraError):
    """The server cannot start."""

    code = "server-error"


class ConfigurationInvalid(ServerError):
    """A setting has an unknown name or a value out of its range; the message names it and where it stands."""

    code = "configuration-invalid"


class NotYetActive(ServerError):
    """A setting is valid, but this version cannot honour it and running without it would be unsafe or pointless."""

    code = "not-yet-active"


class AddressUnavailable(ServerError):
    """The server cannot listen where it was told to."""

    code = "address-unavailable"


class EngineStartFailed(ServerError):
    """An engine process refused its package or ended before it was ready."""

    code = "engine-start-failed"


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error object; all four keys are always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct, frozen=True):
    error: ErrorBody


class ApiError(Exception):
    """Why a request gets no answer. `headers` are added to the response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The JSON of the error. Text that is no valid Unicode (it may quote the request) is shown as `?`."""
        message = self.message.encode("utf-8", "replace").decode()
        param = None if self.param is None else self.param.encode("utf-8", "replace").decode()
        return msgspec.json.encode(ErrorResponse(ErrorBody(message, self.kind, param, self.code)))


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request itself is wrong."""
    return ApiError(400, message, param=param, code=code)


def unsupported(message: str, param: str) -> ApiError:
    """400: the request is well-formed, but asks for what this server does not do."""
    return ApiError(400, message, param=param, code="unsupported_parameter")


def overloaded(message: str, retry_after: int) -> ApiError:
    """429: the queue is full."""
    return ApiError(
        429,
        message,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(retry_after)},
    )


def unavailable(message: str, code: str, retry_after: int) -> ApiError:
    """503: not now."""
    return ApiError(503, message, kind="server_error", code=code, headers={"Retry-After": str(retry_after)})


def internal(message: str, code: str = "internal_error") -> ApiError:
    """500: our own fault."""
    return ApiError(500, message, kind="server_error", code=code)


CLIENT_FAULTS = {
    "invalid-request": 400,
    "context-length-exceeded": 400,
    "template-error": 400,
}
"""Codes of `tessera_runtime.errors` that the client caused, and their HTTP status."""


def from_code(code: str, message: str) -> ApiError:
    """The answer for an error of the vocabulary: its code with underscores, as OpenAI writes codes."""
    status = CLIENT_FAULTS.get(code)
    name = code.replace("-", "_")
    return internal(message, name) if status is None else ApiError(status, message, code=name)


def from_tessera(error: TesseraError, param: str | None = None) -> ApiError:
    """The answer for an error raised while a request was prepared."""
    if error.code not in CLIENT_FAULTS:
        return internal("The server could not prepare the request.", error.code.replace("-", "_"))
    answer = from_code(error.code, str(error))
    answer.param = param
    return answer
