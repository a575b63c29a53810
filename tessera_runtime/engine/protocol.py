"""What gateway and engine say to each other, over a Unix socket: the one contract between the two processes.

A frame is a length (4 bytes, little-endian) and that many bytes of MessagePack, decoded into exactly these types.
Token ids travel, text never: tokenizing, chat templates, stop strings and detokenizing belong to the gateway.

An engine forgets nothing it has accepted: every `Submit` is answered by `Output`s of which exactly one, the last, is
final (it has a `finish_reason` or an `error`). If the engine dies, the gateway submits what was running again to a
new one, with the ids already received in `resumed_ids`; as a request's draws depend on its seed and on how many
tokens it has, what follows is what would have come.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

from tessera_runtime.sampling.parameters import SamplingParameters

MAX_FRAME = 64 << 20
LENGTH = struct.Struct("<I")
FinishReason = Literal["stop", "length", "abort"]


class Submit(msgspec.Struct, tag="submit", frozen=True, kw_only=True, omit_defaults=True):
    """Asks for a completion. `request_id` is new for every answer (`n` answers are `n` submissions that differ in
    `sampling.stream`)."""

    request_id: str
    prompt_ids: list[int]
    max_tokens: int
    sampling: SamplingParameters
    stop_ids: list[int] = []
    """Any of these ends the answer with `stop`; the id itself is still reported. Includes the end-of-turn ids unless
    `ignore_eos`."""
    lane: int = 1
    """Priority: 0 (first), 1 or 2."""
    tenant: str = ""
    """Whose prefixes may be reused: prompts share cached blocks only within a tenant."""
    logprobs: int | None = None
    """None: no log-probabilities. Else those of the chosen token and of this many most likely ones (0 to 20)."""
    prompt_logprobs: bool = False
    """Also for each prompt token but the first (for `echo`)."""
    resumed_ids: list[int] = []
    """Ids that this answer already has, from an engine that is gone; they count towards `max_tokens` and are not
    reported again."""


class Abort(msgspec.Struct, tag="abort", frozen=True):
    """The client is gone: work on the request stops within a step. Answered by a final output with `abort`, unless
    it ended before."""

    request_id: str


class Ping(msgspec.Struct, tag="ping", frozen=True):
    """Answered by the engine's loop itself, between two steps: silence means that it hangs."""

    number: int


class Shutdown(msgspec.Struct, tag="shutdown", frozen=True):
    """Finish what is running (the gateway sends nothing new), then exit with 0."""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []


class Failure(msgspec.Struct, frozen=True):
    """Why a request could not be answered: a code of docs/spec/errors.md and a sentence for the client."""

    code: str
    message: str


class Output(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """News of one request after a step."""

    request_id: str
    ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] | None = None
    cached_tokens: int = 0
    """Of the prompt, how many were not computed because their blocks were still there; said with the first output."""
    queue_seconds: float | None = None
    """How long the request waited in the engine before the first step that worked on it; said with the first output."""
    finish_reason: FinishReason | None = None
    error: Failure | None = None


class Outputs(msgspec.Struct, tag="outputs", frozen=True):
    """All news of one step."""

    outputs: list[Output]


class EngineCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine planned, for the ready line, `/v1/models` and admission."""

    max_model_len: int
    vocab_size: int
    max_batch_tokens: int
    max_sequences: int
    block_tokens: int
    cache_blocks: int
    cache_bytes: int
    weights_bytes: int
    executor: str


class EngineStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the engine started, and gauges of this moment."""

    running: int
    waiting: int
    used_blocks: int
    """Blocks that requests hold now; at rest 0, whatever the prefix cache keeps."""
    cached_blocks: int
    """Blocks nobody holds that are kept for reuse."""
    total_blocks: int
    steps: int
    computed_tokens: int
    generated_tokens: int
    prefix_queried_tokens: int
    prefix_hit_tokens: int
    preemptions: int
    step_seconds: float
    executor_seconds: float
    """Of `step_seconds`, those spent in the executor: the rest is overhead."""
    numerical_errors: int


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The first message of an engine: the package is loaded and the cache allocated."""

    capacity: EngineCapacity
    phases: list[tuple[str, float]]
    """What loading took: (phase, seconds)."""


class Pong(msgspec.Struct, tag="pong", frozen=True):
    number: int
    statistics: EngineStatistics


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """The engine could not start; it exits after saying why."""

    error: Failure


ToEngine = Submit | Abort | Ping | Shutdown
FromEngine = Ready | Refused | Outputs | Pong

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """A whole frame."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def decode_to_engine(body: bytes | memoryview) -> ToEngine:
    """Raises msgspec.DecodeError (or ValidationError) on anything that is not a message to an engine."""
    return _to_engine.decode(body)


def decode_from_engine(body: bytes | memoryview) -> FromEngine:
    """Raises msgspec.DecodeError (or ValidationError) on anything that is not a message from an engine."""
    return _from_engine.decode(body)
