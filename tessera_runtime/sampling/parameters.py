"""What a request may ask of the sampler, and the ranges it must stay within (OpenAI's, where OpenAI has the
parameter).
"""

from __future__ import annotations

import math

import msgspec

from tessera_runtime.errors import InvalidRequest

LOGIT_BIAS_LIMIT = 1024
"""Entries of `logit_bias`."""
SEED_BITS = 64


class SamplingParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the next token is chosen. Made with a value out of its range, it raises `InvalidRequest`.

    They apply in this order: `logit_bias`, the penalties, `temperature`, `top_k`, `top_p`, `min_p`; a token survives
    only if each of the last three lets it. With `temperature` 0 the highest logit wins (the lowest id among equals) and
    the last three have no effect.
    """

    temperature: float = 1.0
    """0 to 2."""
    top_k: int = 0
    """Only the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Only the fewest most likely tokens whose probabilities reach this sum; above 0, to 1."""
    min_p: float = 0.0
    """Only tokens at least this fraction as likely as the likeliest; 0 to 1."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in the prompt or the answer; above 0, to 10."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time a token stands in the answer; -2 to 2."""
    presence_penalty: float = 0.0
    """Subtracted if a token stands in the answer; -2 to 2."""
    logit_bias: dict[int, float] = {}
    """Added to the logits of these token ids; -100 to 100."""
    seed: int = 0
    """Decides all draws of the request, together with `stream`. Any integer of 64 bits, signed or not."""
    stream: int = 0
    """Which of several answers to one request (`n`) this is."""

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_p", self.top_p, 0.0, 1.0, above=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above=True)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_integer("top_k", self.top_k, 0, (1 << 31) - 1)
        _check_integer("seed", self.seed, -(1 << (SEED_BITS - 1)), (1 << SEED_BITS) - 1)
        _check_integer("stream", self.stream, 0, (1 << 31) - 1)
        if len(self.logit_bias) > LOGIT_BIAS_LIMIT:
            raise InvalidRequest(
                f"logit_bias has {len(self.logit_bias)} entries; at most {LOGIT_BIAS_LIMIT} are allowed."
            )
        for token, bias in self.logit_bias.items():
            _check_integer("a token id in logit_bias", token, 0, (1 << 31) - 1)
            _check_range(f"logit_bias of token {token}", bias, -100.0, 100.0)

    @property
    def greedy(self) -> bool:
        """Whether the highest logit wins, with no draw."""
        return self.temperature == 0.0

    @property
    def draws_from_all(self) -> bool:
        """Whether a token is drawn, and any of the vocabulary may be."""
        return self.temperature > 0.0 and not self.top_k and self.top_p >= 1.0 and self.min_p <= 0.0

    @property
    def draws_from_nucleus(self) -> bool:
        """Whether a token is drawn, and `top_p` is the first to say which may be."""
        return self.temperature > 0.0 and not self.top_k and self.top_p < 1.0

    @property
    def penalizes(self) -> bool:
        """Whether what has been said so far changes the logits."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises `InvalidRequest` if `logit_bias` names a token that the model does not have."""
        unknown = next((token for token in self.logit_bias if token >= vocab_size), None)
        if unknown is not None:
            raise InvalidRequest(f"logit_bias names token {unknown}, but the model has tokens 0 to {vocab_size - 1}.")


def _check_range(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < low or value > high or (above and value == low):
        kind = "above" if above else "from"
        raise InvalidRequest(f"{name} must be a number {kind} {low:g} to {high:g}, not {value!r}.")


def _check_integer(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be an integer from {low} to {high}, not {value!r}.")
