"""What a package says about text besides its tokenizer: special tokens, chat template, when an answer ends, usual
sampling.

All of it comes from the files Hugging Face checkpoints carry, which a package holds in `tokenizer/`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera_runtime.errors import InvalidRequest, TokenizerInvalid
from tessera_runtime.text.chat_template import ChatTemplate, TemplateLimits
from tessera_runtime.text.tokenizer import Tokenizer

SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
JSON_LIMIT = 64 << 20


@dataclass(frozen=True)
class TextAssets:
    """The settings of a package's `tokenizer/` folder, read once."""

    special_tokens: dict[str, str]
    """`bos_token`, `eos_token`, …: those that the model has."""
    eos_ids: frozenset[int]
    """An answer ends at any of these."""
    bos_id: int | None
    chat_templates: dict[str, str]
    """By name; the usual one is `default`, and some models have another named `tool_use`."""
    generation: dict[str, Any]
    """`generation_config.json` as it is; empty if there is none."""

    def chat_template(self, *, with_tools: bool = False, limits: TemplateLimits | None = None) -> ChatTemplate:
        """The template for a conversation; `InvalidRequest` if the model has none, as base models do."""
        name = "tool_use" if with_tools and "tool_use" in self.chat_templates else "default"
        source = self.chat_templates.get(name)
        if source is None:
            raise InvalidRequest(
                "This model has no chat template: it continues text but was not trained to chat.",
                hint="Use a plain prompt instead.",
            )
        return ChatTemplate(source, self.special_tokens, limits)


def read_text_assets(folder: Path, tokenizer: Tokenizer) -> TextAssets:
    """Reads `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json`, `chat_template.jinja`; all
    are optional.

    `folder` is the package's `tokenizer/`; `generation_config.json` and `chat_template.jinja` may also lie in `assets/`
    beside it.
    """
    folders = (folder, folder.parent / "assets")
    settings = _read_json(_first(folders[:1], "tokenizer_config.json"))
    named = _read_json(_first(folders[:1], "special_tokens_map.json"))
    generation = _read_json(_first(folders, "generation_config.json"))
    special: dict[str, str] = {}
    for name in SPECIAL_TOKEN_NAMES:
        content = _token_content(settings.get(name)) or _token_content(named.get(name))
        if content is not None:
            special[name] = content
    eos_ids = _as_ids(generation.get("eos_token_id"), "eos_token_id")
    if not eos_ids and "eos_token" in special:
        # As in transformers, generation_config decides; the tokenizer's own end stands in only where that says nothing.
        own = tokenizer.token_id(special["eos_token"])
        eos_ids = set() if own is None else {own}
    bos_token = special.get("bos_token")
    bos_id = tokenizer.token_id(bos_token) if bos_token is not None else None
    if bos_id is None:
        bos_id = next(iter(sorted(_as_ids(generation.get("bos_token_id"), "bos_token_id"))), None)
    return TextAssets(special, frozenset(eos_ids), bos_id, _read_templates(folders, settings), generation)


def _first(folders: tuple[Path, ...], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _read_json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise TokenizerInvalid(f"{path.name} is larger than {JSON_LIMIT >> 20} MiB.", hint="Pack the model again.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerInvalid(f"{path.name} cannot be read: {error}.", hint="Pack the model again.") from None
    if not isinstance(value, dict):
        raise TokenizerInvalid(f"{path.name} holds no JSON object.", hint="Pack the model again.")
    return value


def _token_content(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _as_ids(value: object, name: str) -> set[int]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    for item in values:
        if not isinstance(item, int) or isinstance(item, bool) or item < 0:
            raise TokenizerInvalid(
                f"{name} in generation_config.json is {item!r}, not a token id.", hint="Pack the model again."
            )
    return set(values)


def _read_templates(folders: tuple[Path, ...], settings: dict[str, Any]) -> dict[str, str]:
    """A file beside the tokenizer wins over the text inside tokenizer_config.json, as in transformers."""
    templates: dict[str, str] = {}
    inline = settings.get("chat_template")
    if isinstance(inline, str):
        templates["default"] = inline
    elif isinstance(inline, list):
        for entry in inline:
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                templates[str(entry.get("name", "default"))] = entry["template"]
    path = _first(folders, "chat_template.jinja")
    if path is not None:
        try:
            templates["default"] = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise TokenizerInvalid(f"{path.name} cannot be read: {error}.", hint="Pack the model again.") from None
    return templates
