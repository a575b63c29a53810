"""JSON of a request into one of `api_requests`, and errors that name the field."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, TypeVar

import msgspec

from tessera_runtime.server.api_requests import ChatMessage
from tessera_runtime.server.errors import ApiError, invalid

Kind = TypeVar("Kind", bound=msgspec.Struct)

MAX_ROLE = 64
MAX_MESSAGES = 8192
"""Messages of a conversation, and parts of a message. Checking more would keep others waiting."""
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")
_EXPECTED = re.compile(r"Expected `(?P<expected>[^`]+)`, got `(?P<found>[^`]+)`")
_JSON_NAMES = {"object": "an object", "array": "a list", "str": "a string", "int": "an integer", "float": "a number"}


@cache
def _decoder(kind: type[Kind]) -> msgspec.json.Decoder[Kind]:
    return msgspec.json.Decoder(kind)


def decode_body(body: bytes, kind: type[Kind]) -> Kind:
    """Raises a 400 that says where the body is malformed, or which field has the wrong type."""
    try:
        return _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error), "") from None
    except msgspec.DecodeError as error:
        raise invalid(f"The request body is not valid JSON: {error}.".replace("..", ".")) from None
    except UnicodeDecodeError:
        raise invalid("The request body is not valid UTF-8.") from None
    except RecursionError:
        raise invalid("The request body is nested too deeply.") from None


def check_messages(messages: list[dict[str, Any]], field: str = "messages") -> list[dict[str, Any]]:
    """The messages as a chat template takes them: text parts joined into one string. Raises a 400 for any other."""
    if not messages:
        raise invalid(f"'{field}' is empty: at least one message is needed.", field)
    if len(messages) > MAX_MESSAGES:
        raise invalid(f"'{field}' has {len(messages)} messages; at most {MAX_MESSAGES} are allowed.", field)
    for index, message in enumerate(messages):
        parts = message.get("content")
        if isinstance(parts, list) and len(parts) > MAX_MESSAGES:
            where = f"{field}[{index}].content"
            raise invalid(f"'{where}' has {len(parts)} parts; at most {MAX_MESSAGES} are allowed.", where)
    try:
        typed = msgspec.convert(messages, list[ChatMessage], strict=True)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error), field) from None
    return [
        _plain(raw, message, f"{field}[{index}]")
        for index, (raw, message) in enumerate(zip(messages, typed, strict=True))
    ]


def _plain(raw: dict[str, Any], message: ChatMessage, where: str) -> dict[str, Any]:
    if not 0 < len(message.role) <= MAX_ROLE:
        raise invalid(
            f"'{where}.role' must be a name such as 'user', not {message.role[:MAX_ROLE]!r}.", f"{where}.role"
        )
    result = dict(raw)
    # Templates know `system`; OpenAI's newer name means the same.
    result["role"] = "system" if message.role == "developer" else message.role
    content = message.content
    if isinstance(content, list):
        texts = []
        for index, part in enumerate(content):
            if part.type not in ("text", "input_text") or part.text is None:
                name = f"{where}.content[{index}]"
                raise invalid(f"'{name}' is of type {part.type!r}; this model reads only text.", f"{name}.type")
            texts.append(part.text)
        result["content"] = "\n".join(texts)
    elif content is None:
        if not message.tool_calls and message.role not in ("assistant",):
            raise invalid(f"'{where}.content' is missing: a message needs text.", f"{where}.content")
        result["content"] = ""
    return result


def _wrong_type(text: str, prefix: str) -> ApiError:
    """msgspec's message in words: ``Expected `int | null`, got `str` - at `$.n` ``."""
    message, _, rest = text.partition(" - at ")
    path = "".join(re.findall(r"\$([^`]*)`", rest)).removeprefix(".")
    if prefix:
        path = prefix + (path if path.startswith("[") else f".{path}" if path else "")
    if missing := _MISSING.match(message):
        name = f"{path}.{missing['name']}" if path else missing["name"]
        return invalid(f"'{name}' is required and missing.", name, "missing_required_parameter")
    if expected := _EXPECTED.match(message):
        wanted = " or ".join(
            _JSON_NAMES.get(name, name) for name in expected["expected"].split(" | ") if name != "null"
        )
        found = _JSON_NAMES.get(expected["found"], expected["found"])
        subject = f"'{path}'" if path else "The request body"
        return invalid(f"{subject} must be {wanted}, not {found}.", path or None, "invalid_type")
    return invalid(f"{f'{path!r}: ' if path else ''}{message}.", path or None, "invalid_value")
