"""What is read from the files beside a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_zoo import byte_level, save

from tessera_runtime.errors import InvalidRequest, TokenizerInvalid
from tessera_runtime.text.assets import TextAssets, read_text_assets
from tessera_runtime.text.tokenizer import Tokenizer


def read(package: Path, **files: Any) -> TextAssets:
    folder = save(byte_level(), package / "tokenizer")
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / (name if "." in name else f"{name}.json")).write_text(text)
    return read_text_assets(folder, Tokenizer(folder))


def test_a_bare_tokenizer_has_no_chat_and_no_end(tmp_path: Path) -> None:
    assets = read(tmp_path)
    assert assets.eos_ids == frozenset() and assets.bos_id is None and assets.special_tokens == {}
    with pytest.raises(InvalidRequest, match="no chat template"):
        assets.chat_template()


def test_the_generation_config_decides_the_ends_as_in_transformers(tmp_path: Path) -> None:
    config = {"eos_token": "</s>", "bos_token": {"content": "<s>", "lstrip": False}}
    assets = read(tmp_path / "a", tokenizer_config=config, generation_config={"eos_token_id": [4, 7]})
    assert assets.eos_ids == {4, 7} and assets.bos_id == 0
    assert assets.special_tokens == {"eos_token": "</s>", "bos_token": "<s>"}
    assert read(tmp_path / "b", tokenizer_config=config).eos_ids == {1}
    assert read(tmp_path / "c", tokenizer_config=config, generation_config={"eos_token_id": 9}).eos_ids == {9}
    assert read(tmp_path / "d", special_tokens_map={"eos_token": "<|im_end|>"}).eos_ids == {4}


def test_templates_come_from_the_config_or_a_file_and_the_file_wins(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    assets = read(tmp_path / "a", tokenizer_config={"chat_template": named})
    with assets.chat_template() as plain, assets.chat_template(with_tools=True) as tools:
        assert (plain.render([]), tools.render([])) == ("plain", "tools")
    files = {"tokenizer_config": {"chat_template": "old"}, "chat_template.jinja": "new {{ eos_token }}"}
    assert read(tmp_path / "b", **files).chat_templates == {"default": "new {{ eos_token }}"}


def test_generation_config_may_lie_in_assets(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "generation_config.json").write_text('{"eos_token_id": 3, "temperature": 0.6}')
    assets = read(tmp_path)
    assert assets.eos_ids == {3}
    assert assets.generation["temperature"] == 0.6


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config", "{"),
        ("tokenizer_config", "[]"),
        ("generation_config", "[" * 100_000),
        ("generation_config", '{"eos_token_id": "two"}'),
        ("generation_config", '{"eos_token_id": [-1]}'),
    ],
)
def test_malformed_files_are_refused_by_name(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(TokenizerInvalid, match=name):
        read(tmp_path, **{name: content})
