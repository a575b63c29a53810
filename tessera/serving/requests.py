"""What a handler of an application is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera_runtime.server.gateway import Gateway

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
ONE_ANSWER = ("n", "best_of", "logprobs", "top_logprobs", "echo", "suffix")
"""Fields of OpenAI's that ask for what a handler's text cannot carry."""


class Request:
    """The body of a request; its fields are attributes.

    On OpenAI's routes these are OpenAI's fields, checked; one that the client left out is None. On other routes they
    are those of the JSON object, and reading one that is not there answers the client with a 400 that names it.
    """

    def __init__(self, fields: Mapping[str, Any], headers: Mapping[str, str], *, complete: bool) -> None:
        self._fields = dict(fields)
        self._complete = complete
        self.headers = dict(headers)
        """With names in lower case."""

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or `default` if the client did not send it."""
        value = self._fields.get(name)
        return default if value is None else value

    def as_dict(self) -> dict[str, Any]:
        """All fields."""
        return dict(self._fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._fields:
            return self._fields[name]
        if self._complete:
            raise AttributeError(f"A request of this route has no field {name!r}; `get` reads what may be missing.")
        from tessera_runtime.server.errors import invalid

        raise invalid(f"'{name}' is required and missing.", name, "missing_required_parameter")


def parse_request(gateway: Gateway, path: str, body: bytes, headers: Mapping[str, str]) -> Request:
    """Raises a 400 that names the field that is wrong."""
    from tessera_runtime.server.api_requests import ChatCompletionRequest, CompletionRequest
    from tessera_runtime.server.decoding import check_messages, decode_body

    if path == CHAT:
        chat = decode_body(body, ChatCompletionRequest)
        fields = _fields(chat)
        fields["messages"] = check_messages(chat.messages)
        if chat.max_completion_tokens is not None:
            fields["max_tokens"] = chat.max_completion_tokens
    elif path == TEXT:
        fields = _fields(decode_body(body, CompletionRequest))
    else:
        return Request(_object(body), headers, complete=False)
    _check_one_answer(fields)
    if fields["model"] is not None:
        gateway.model(fields["model"])
    return Request(fields, headers, complete=True)


def _fields(request: Any) -> dict[str, Any]:
    import msgspec

    return {each.name: getattr(request, each.name) for each in msgspec.structs.fields(request)}


def _check_one_answer(fields: Mapping[str, Any]) -> None:
    from tessera_runtime.server.errors import unsupported

    for name in ONE_ANSWER:
        value = fields.get(name)
        if value not in (None, False, 0, 1) or (name == "logprobs" and value is True):
            raise unsupported(f"'{name}' is not supported here: an application gives one answer, as text.", name)


def _object(body: bytes) -> dict[str, Any]:
    import msgspec

    from tessera_runtime.server.errors import invalid

    if not body:
        return {}
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"The request body is not valid JSON: {error}.".replace("..", ".")) from None
    if not isinstance(value, dict):
        raise invalid("The request body must be a JSON object.")
    return value
