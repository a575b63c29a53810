"""Encoding and decoding through the package's tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizer_zoo import byte_fallback, byte_level, save

from tessera_runtime.errors import InvalidRequest, TokenizerInvalid
from tessera_runtime.text.tokenizer import Tokenizer


def test_special_tokens_are_added_where_the_post_processor_adds_them(tmp_path: Path) -> None:
    with_bos = Tokenizer(save(byte_fallback(), tmp_path / "a"))
    without = Tokenizer(save(byte_level(), tmp_path / "b"))
    assert with_bos.encode("The cap")[0] == 0
    assert with_bos.encode("The cap", add_special_tokens=False) == with_bos.encode("The cap")[1:]
    assert without.encode("The cap") == without.encode("The cap", add_special_tokens=False)
    assert with_bos.leading_special_ids() == (0,)
    assert without.leading_special_ids() == ()


def test_special_tokens_in_the_text_become_tokens_and_are_skipped_when_decoding(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save(byte_level(), tmp_path))
    ids = tokenizer.encode("<|im_start|>hi<|im_end|>")
    assert ids[0] == tokenizer.token_id("<|im_start|>") and ids[-1] == tokenizer.token_id("<|im_end|>")
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>hi<|im_end|>"
    assert tokenizer.token(ids[0]) == "<|im_start|>" and tokenizer.token(10**6) is None
    assert tokenizer.vocab_size > 256


def test_truncation_and_padding_of_a_training_run_are_dropped(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    tokenizer = Tokenizer(save(backend, tmp_path))
    assert len(tokenizer.encode("The capital of France is Paris.")) > 4
    assert len(tokenizer.encode("a")) == 1


def test_unknown_ids_decode_to_nothing_and_impossible_ones_are_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save(byte_level(), tmp_path))
    assert tokenizer.decode([10**6]) == ""
    with pytest.raises(InvalidRequest):
        tokenizer.decode([-1])
    with pytest.raises(InvalidRequest, match="surrogate"):
        tokenizer.encode("\ud800")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "BPE"}}', json.dumps({"version": "1.0"})])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerInvalid, match="not a tokenizer"):
        Tokenizer(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerInvalid, match=r"There is no tokenizer\.json"):
        Tokenizer(tmp_path)
