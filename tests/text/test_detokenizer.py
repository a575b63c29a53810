"""Incremental text: no half characters, and the pieces joined are the whole."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_zoo import KINDS, TEXTS, save

from tessera_runtime.text.detokenizer import REPLACEMENT, Detokenizer
from tessera_runtime.text.tokenizer import Tokenizer


@functools.cache
def tokenizer_of(kind: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer(save(KINDS[kind](), Path(folder)))


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*[detokenizer.push(token) for token in ids], detokenizer.finish()]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_pieces_of_any_ids_join_to_the_full_decode(kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab Th你好🙂é\u0301👩\u200d👧ж\n", max_size=30))
def test_no_piece_of_a_text_holds_half_a_character(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    pieces = pieces_of(tokenizer, tokenizer.encode(text))
    assert all(REPLACEMENT not in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("text", [*TEXTS[:3], " leading", "two  spaces", "👩‍👩‍👧👩‍👩‍👧", "é" * 20, "你好世界" * 10])
def test_lossless_tokenizers_give_back_the_text(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert "".join(pieces_of(tokenizer, tokenizer.encode(text))) == text


def test_words_come_as_soon_as_they_are_known() -> None:
    tokenizer = tokenizer_of("byte_level")
    ids = tokenizer.encode("The capital of France")
    detokenizer = Detokenizer(tokenizer)
    assert all(detokenizer.push(token) for token in ids)
    assert detokenizer.finish() == ""


def test_an_unfinished_character_comes_out_at_the_end_as_a_full_decode_shows_it() -> None:
    tokenizer = tokenizer_of("byte_fallback")
    first = tokenizer.token_id("<0xE4>")
    assert first is not None
    assert pieces_of(tokenizer, [first]) == ["", REPLACEMENT]


def test_a_run_of_raw_bytes_that_turns_out_invalid_takes_nothing_back() -> None:
    tokenizer = tokenizer_of("byte_fallback")
    ids = [tokenizer.token_id(f"<0x{byte:02X}>") or 0 for byte in "你".encode() + b"\xff"]
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


def test_special_tokens_in_the_middle_do_not_swallow_the_space_after_them() -> None:
    tokenizer = tokenizer_of("byte_fallback")
    end = tokenizer.token_id("</s>") or 0
    the = tokenizer.token_id("▁The") or 0
    ids = [the, *[end] * 10, the]
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids) == "The The"
