"""Text to token ids and back, exactly as the model's own tokenizer does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as _Backend

from tessera_runtime.errors import InvalidRequest, TokenizerInvalid

TOKENIZER_FILE = "tokenizer.json"


class Tokenizer:
    """The tokenizer of one package, read from `folder/tokenizer.json`. Safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise TokenizerInvalid(
                f"There is no {TOKENIZER_FILE} in {folder}.",
                hint="Pack the model again from a checkpoint that has a fast tokenizer.",
            )
        try:
            backend = _Backend.from_file(str(path))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the library panics, outside of Exception, on some malformed files
            raise TokenizerInvalid(
                f"{path} is not a tokenizer: {str(error)[:300]}.", hint="Pack the model again."
            ) from None
        # A tokenizer.json may carry the truncation or padding of a training run, which would cut prompts without a
        # word.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._has_byte_fallback = "ByteFallback" in str(backend.decoder) if backend.decoder is not None else False
        self._byte_ids = self._find_byte_ids()

    def _find_byte_ids(self) -> frozenset[int]:
        if not self._has_byte_fallback:
            return frozenset()
        ids = (self._backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(token for token in ids if token is not None)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. A model's own vocabulary may be padded beyond it."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def byte_ids(self) -> frozenset[int]:
        """The tokens that stand for one raw byte and are decoded together with their neighbours of that kind."""
        return self._byte_ids

    def token_id(self, token: str) -> int | None:
        """The id of a token given as it is written in the vocabulary, such as `<|im_end|>`."""
        found = self._backend.token_to_id(token)
        return None if found is None else int(found)

    def token(self, token_id: int) -> str | None:
        """How the vocabulary writes this token."""
        found = self._backend.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None
        return None if found is None else str(found)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text. Special tokens (such as BOS) are added where the tokenizer's own post-processor adds them.

        Special tokens that are spelled out in the text become those tokens, as in Hugging Face's tokenizers.
        """
        try:
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except (UnicodeEncodeError, TypeError):  # the latter is what the library makes of it
            raise InvalidRequest(
                "The text holds half of a surrogate pair, which is no character.", hint="Send valid Unicode."
            ) from None

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ids; ids beyond the vocabulary (a model's padding) decode to nothing."""
        try:
            return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))
        except OverflowError:
            raise InvalidRequest("A token id is negative or larger than 32 bits.") from None

    def leading_special_ids(self) -> tuple[int, ...]:
        """What the post-processor puts in front of every text: usually BOS, or nothing."""
        empty = self.encode("")
        probe = self.encode("a")
        plain = self.encode("a", add_special_tokens=False)
        added = len(probe) - len(plain)
        for count in range(added, -1, -1):
            if plain and probe[count : count + len(plain)] == plain:
                return tuple(probe[:count])
        return tuple(empty)
