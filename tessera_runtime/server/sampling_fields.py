"""Checks what a request asks of sampling and limits, field by field, and says it in the engine's terms."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from tessera_runtime.errors import InvalidRequest
from tessera_runtime.sampling.parameters import SamplingParameters
from tessera_runtime.server.api_requests import SamplingFields
from tessera_runtime.server.errors import ApiError, invalid, unsupported

MAX_N = 128
MAX_BEST_OF = 20
MAX_STOPS = 4
MAX_STOP_LENGTH = 1024
MAX_STOP_IDS = 64
MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5
MAX_SALT = 256
SAMPLED_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("frequency_penalty", "presence_penalty", "logit_bias", "seed"),
)
DEFAULTED_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
LANES = {"p0": 0, "p1": 1, "p2": 2}


@dataclass(frozen=True)
class Wanted:
    """The checked wishes that all answers of a request share."""

    sampling: SamplingParameters
    n: int
    stop: tuple[str, ...]
    stop_ids: tuple[int, ...]
    ignore_eos: bool
    lane: int
    salt: str
    skip_special_tokens: bool
    include_usage: bool


def check_sampling(request: SamplingFields, defaults: dict[str, Any], vocab_size: int) -> Wanted:
    """Raises a 400 that names the field. `defaults` are the model's own, for what the request leaves out."""
    if request.response_format is not None and request.response_format.get("type", "text") != "text":
        raise unsupported("'response_format' other than text is not supported.", "response_format")
    if request.stream_options is not None and not request.stream:
        raise invalid("'stream_options' is only allowed together with 'stream': true.", "stream_options")
    return Wanted(
        sampling=sampling_parameters(request, defaults, vocab_size),
        n=checked_integer("n", request.n, 1, MAX_N, 1),
        stop=_stop(request.stop),
        stop_ids=_stop_ids(request.stop_token_ids, vocab_size),
        ignore_eos=bool(request.ignore_eos),
        lane=_lane(request.priority),
        salt=_salt(request.cache_salt),
        skip_special_tokens=request.skip_special_tokens is not False,
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
    )


def sampling_parameters(request: SamplingFields, defaults: dict[str, Any], vocab_size: int) -> SamplingParameters:
    """A request without a seed gets one here, so that an engine that takes it over draws what the first would have."""
    values = dict(defaults)
    for name in SAMPLED_FIELDS:
        value = getattr(request, name)
        if value is not None:
            values[name] = value
    if values.get("top_k") == -1:  # what other servers write for "all"
        values["top_k"] = 0
    values.setdefault("seed", secrets.randbits(63))
    try:
        parameters = SamplingParameters(**values)
        parameters.check_vocabulary(vocab_size)
    except InvalidRequest as error:
        named = next((name for name in SAMPLED_FIELDS if name in error.message), None)
        raise invalid(str(error), named, "invalid_value") from None
    return parameters


def model_defaults(generation: dict[str, Any]) -> dict[str, Any]:
    """The sampling a model's authors advise, from its generation_config.json; nonsense does not count."""
    if generation.get("do_sample") is False:
        return {}
    found: dict[str, Any] = {}
    for name in DEFAULTED_FIELDS:
        value = generation.get(name)
        try:
            if value is not None:
                SamplingParameters(**{name: value})
                found[name] = value
        except (InvalidRequest, TypeError):
            continue
    return found


def checked_integer(name: str, value: int | None, low: int, high: int, default: int) -> int:
    """The value or its default; a 400 if it is out of range."""
    if value is None:
        return default
    if not low <= value <= high:
        raise invalid(f"'{name}' must be from {low} to {high}, not {_short(value)}.", name, "invalid_value")
    return value


def checked_max_tokens(
    name: str, value: int | None, prompt: int, room: int, *, prompt_field: str, default: int | None
) -> int:
    """How long the answer may be. `room` is what prompt and answer may have together; a 400 if they cannot fit."""
    if value is not None and value < 1:
        raise invalid(f"'{name}' must be at least 1, not {_short(value)}.", name, "invalid_value")
    if prompt >= room:
        raise prompt_too_long(prompt, room, prompt_field)
    if value is None:
        return room - prompt if default is None else min(default, room - prompt)
    if prompt + value > room:
        raise context_exceeded(
            f"The prompt has {prompt} tokens and the answer may have {_short(value)}, together at most {room}."
            f" Shorten the prompt, or lower '{name}' to {room - prompt}.",
            name,
        )
    return value


def prompt_too_long(prompt: int, room: int, field: str) -> ApiError:
    """400: the prompt alone leaves no room for an answer."""
    return context_exceeded(
        f"The prompt has {prompt} tokens, but prompt and answer together may have {room}. Shorten the prompt.", field
    )


def context_exceeded(message: str, param: str) -> ApiError:
    return invalid(message, param, "context_length_exceeded")


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > MAX_STOPS:
        raise invalid(f"'stop' has {len(strings)} strings; at most {MAX_STOPS} are allowed.", "stop", "invalid_value")
    for string in strings:
        if not 0 < len(string) <= MAX_STOP_LENGTH:
            raise invalid(
                f"A string of 'stop' must have 1 to {MAX_STOP_LENGTH} characters, not {len(string)}.",
                "stop",
                "invalid_value",
            )
    return strings


def _stop_ids(ids: list[int] | None, vocab_size: int) -> tuple[int, ...]:
    found = ids or []
    if len(found) > MAX_STOP_IDS:
        message = f"'stop_token_ids' has {len(found)} ids; at most {MAX_STOP_IDS} are allowed."
        raise invalid(message, "stop_token_ids", "invalid_value")
    check_token_ids(found, vocab_size, "stop_token_ids")
    return tuple(found)


def check_token_ids(ids: Any, vocab_size: int, field: str) -> None:
    """Raises a 400 unless every id is one of the model's."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise invalid(
                f"'{field}' has {_short(token)}, but the model's tokens are 0 to {vocab_size - 1}.",
                field,
                "invalid_value",
            )


def _lane(priority: int | str | None) -> int:
    if priority is None:
        return 1
    lane = LANES.get(priority) if isinstance(priority, str) else priority
    if lane not in (0, 1, 2):
        raise invalid("'priority' must be p0, p1 or p2, or 0, 1 or 2.", "priority", "invalid_value")
    return lane


def _salt(salt: str | None) -> str:
    if salt is not None and not 0 < len(salt) <= MAX_SALT:
        raise invalid(f"'cache_salt' must have 1 to {MAX_SALT} characters.", "cache_salt", "invalid_value")
    return salt or ""


def _short(value: int) -> str:
    """A number in a message; a hostile one may have a million digits, which would take long to print."""
    return str(value) if -(1 << 64) < value < 1 << 64 else "a number beyond 64 bits"
