"""The tokenizer, chat template and settings that go into a package beside its weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from tessera_pack.errors import TokenizerMissing
from tessera_pack.writer import PackageWriter

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_ASSETS = ("config.json", "generation_config.json")


def write_text_files(writer: PackageWriter, directory: Path) -> None:
    """Copies what the runtime needs for text; a tokenizer of another kind is converted. Raises `TokenizerMissing`."""
    if (directory / "tokenizer.json").is_file():
        _copy_tokenizer(writer, directory)
    else:
        with tempfile.TemporaryDirectory(prefix="tessera-tokenizer-") as scratch:
            _convert_tokenizer(directory, Path(scratch))
            _copy_tokenizer(writer, Path(scratch))
    for name in _ASSETS:
        if (directory / name).is_file():
            writer.copy_file(f"assets/{name}", directory / name)
    for path in sorted(directory.glob("LICENSE*")):
        if path.is_file():
            writer.copy_file(f"assets/{path.name}", path)


def _copy_tokenizer(writer: PackageWriter, directory: Path) -> None:
    try:
        Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:
        # The library raises bare Exception for whatever is wrong with the file.
        raise TokenizerMissing(
            f"'{directory / 'tokenizer.json'}' cannot be read: {str(error).splitlines()[0]}.",
            hint="Save the tokenizer again with save_pretrained.",
        ) from None
    for name in _TOKENIZER_FILES:
        if (directory / name).is_file():
            writer.copy_file(f"tokenizer/{name}", directory / name)


def _convert_tokenizer(directory: Path, scratch: Path) -> None:
    from transformers import AutoTokenizer

    reason = "it has no tokenizer files"
    if any((directory / name).is_file() for name in ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")):
        try:
            AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False).save_pretrained(str(scratch))
            reason = "its tokenizer has no fast form"
        except Exception as error:
            # Anything can go wrong in the tokenizer classes of a hundred models.
            reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    if not (scratch / "tokenizer.json").is_file():
        raise TokenizerMissing(
            f"'{directory}' has no tokenizer that can be packed: {reason}.",
            hint="Put the model's tokenizer.json and tokenizer_config.json beside its weights.",
        )
