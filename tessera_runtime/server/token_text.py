"""Log-probabilities as OpenAI's API shows them: each token as text and as bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tessera_runtime.engine.protocol import TokenLogprob
from tessera_runtime.server.api_responses import ChatLogprobs, ChatTokenLogprob, CompletionLogprobs, TopLogprob
from tessera_runtime.text.tokenizer import Tokenizer

LOWEST = -9999.0
"""Stands for a probability of zero, whose logarithm JSON cannot write."""


def _byte_alphabet() -> dict[str, int]:
    """The letters that byte-level BPE writes bytes with: printable ones stand for themselves, the rest come after."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + index): byte for index, byte in enumerate(others)},
    }


_BYTES = _byte_alphabet()


def token_bytes(tokenizer: Tokenizer, token_id: int, text: str) -> list[int]:
    """The bytes that a token stands for, also where they are half a character, which its text cannot show."""
    if "\ufffd" in text:
        raw = tokenizer.token(token_id) or ""
        if raw.startswith("<0x") and raw.endswith(">") and len(raw) == 6:
            return [int(raw[3:5], 16)]
        if raw and all(letter in _BYTES for letter in raw):
            return [_BYTES[letter] for letter in raw]
    return list(text.encode("utf-8", "replace"))


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """What the token says by itself; special tokens are spelled out."""
    return tokenizer.decode([token_id], skip_special_tokens=False)


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob], top: int) -> ChatLogprobs:
    return ChatLogprobs([_chat_entry(tokenizer, entry, top) for entry in entries])


def _chat_entry(tokenizer: Tokenizer, entry: TokenLogprob, top: int) -> ChatTokenLogprob:
    text = token_text(tokenizer, entry.token_id)
    shown = []
    for token, logprob in entry.top[:top]:
        other = token_text(tokenizer, token)
        shown.append(TopLogprob(other, _finite(logprob), token_bytes(tokenizer, token, other)))
    return ChatTokenLogprob(text, _finite(entry.logprob), token_bytes(tokenizer, entry.token_id, text), shown)


class CompletionLogprobsBuilder:
    """Collects the four lists of a text completion's log-probabilities, piece by piece; offsets go on across pieces."""

    def __init__(self, tokenizer: Tokenizer, top: int) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._offset = 0
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._tops: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def add_first(self, token_id: int) -> None:
        """The first token of a prompt, which nothing predicts."""
        self._add(token_text(self._tokenizer, token_id), None, None)

    def add(self, entries: Sequence[TokenLogprob]) -> None:
        for entry in entries:
            text = token_text(self._tokenizer, entry.token_id)
            top = {token_text(self._tokenizer, token): _finite(value) for token, value in entry.top[: self._top]}
            # As with OpenAI, the chosen token is among them even where it is not among the likeliest.
            top.setdefault(text, _finite(entry.logprob))
            self._add(text, _finite(entry.logprob), top)

    def take(self) -> CompletionLogprobs:
        """What was added since the last call."""
        tops = self._tops if self._top else None
        taken = CompletionLogprobs(self._tokens, self._logprobs, tops, self._offsets)
        self._tokens, self._logprobs, self._tops, self._offsets = [], [], [], []
        return taken

    def _add(self, text: str, logprob: float | None, top: dict[str, float] | None) -> None:
        self._tokens.append(text)
        self._logprobs.append(logprob)
        self._tops.append(top)
        self._offsets.append(self._offset)
        self._offset += len(text)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else LOWEST
