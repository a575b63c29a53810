"""Text of a growing answer, piece by piece, never half a character.

Decoding token by token is wrong: a character may span several tokens, and a decoder may treat the first token of a text
unlike all others. So a few tokens are decoded twice, once with and once without the new ones, in front of the same
context; the difference is new text. It is held back while it could still change, that is while it ends in the
replacement character (an unfinished UTF-8 sequence) or in a raw byte token (tokenizers decide on a run of those as a
whole). The pieces joined are the decode of all ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
CONTEXT_TOKENS = 6
"""Tokens in front of the new ones that are decoded again, so that the new ones are never taken for the start of a
text.
"""


class Decodes(Protocol):
    """What the detokenizer needs of a tokenizer."""

    @property
    def byte_ids(self) -> frozenset[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...


class Detokenizer:
    """The text of one answer. `push` every token, then call `finish` once."""

    def __init__(self, tokenizer: Decodes, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._ids: list[int] = []
        self._context = 0
        """First token of the context."""
        self._done = 0
        """Tokens before this one have had their text handed out."""
        self._in_run = False
        self._pieces: list[str] = []

    @property
    def ids(self) -> list[int]:
        return self._ids

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before; often one word, sometimes nothing."""
        self._ids.append(token_id)
        if self._run_goes_on(token_id):
            return ""
        old = self._decode(self._context, self._done)
        new = self._decode(self._context, len(self._ids))
        if new.endswith(REPLACEMENT) or not new.startswith(old):
            return ""
        piece = new[len(old) :]
        self._advance()
        if piece:
            self._pieces.append(piece)
        return piece

    def _run_goes_on(self, token_id: int) -> bool:
        """Whether the ids end in raw bytes; a token without text between two bytes does not part them."""
        if token_id in self._tokenizer.byte_ids:
            self._in_run = True
        elif self._in_run:
            end = len(self._ids)
            self._in_run = not self._decode(end - 1, end)
        return self._in_run

    def finish(self) -> str:
        """The rest: text that was held back because more tokens might have changed it."""
        given = "".join(self._pieces)
        whole = self._decode(0, len(self._ids))
        self._context = self._done = len(self._ids)
        rest = whole[len(given) :] if whole.startswith(given) else ""
        if rest:
            self._pieces.append(rest)
        return rest

    def _advance(self) -> None:
        self._done = len(self._ids)
        start = max(self._done - CONTEXT_TOKENS, self._context)
        # A context that decodes to nothing is no context: what follows it would be taken for the start of a text.
        while start > self._context and not self._decode(start, self._done):
            start = max(start - CONTEXT_TOKENS, self._context)
        self._context = start

    def _decode(self, start: int, end: int) -> str:
        if start == end:
            return ""
        return self._tokenizer.decode(self._ids[start:end], skip_special_tokens=self._skip_special_tokens)
