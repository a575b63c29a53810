"""Hugging Face checkpoints: their configuration, and their model as Graph IR.

The model's own code in transformers is the definition of the model; it is exported, never rewritten. Code that comes
with a checkpoint is never run. The rotary frequencies are those of one maximum length; see `buffers.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.errors import InvalidCheckpoint, UnsupportedModel
from tessera_compiler.frontends.aten import HANDLERS
from tessera_compiler.frontends.export import ExportedModel, export
from tessera_compiler.frontends.importer import Importer

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class ImportedModel:
    """A model as Graph IR, with what the rest of the compiler must know about it."""

    module: ModuleOp
    vocab_size: int
    max_model_len: int
    config: dict[str, Any]
    """The configuration, as `config.json` would hold it."""
    layer_paths: tuple[str, ...]
    """Module path of each decoder layer, such as `model.layers.0`, in the order of their attention."""
    weights: Mapping[str, tuple[int, ...]]
    """Name and shape of each tensor that is needed of the checkpoint."""
    aliases: Mapping[str, tuple[str, ...]]
    """Other names under which a checkpoint may hold a needed tensor (tied weights)."""
    base_prefix: str
    """The prefix that older checkpoints leave out or add; for `resolve_weight_names`."""


def load_config(path: Path) -> PreTrainedConfig:
    """Reads the configuration of a checkpoint: a directory with `config.json`, or that file.

    Raises InvalidCheckpoint if it cannot be read, UnsupportedModel if transformers itself has no code for it.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(
            f"{file} is not a readable JSON file ({error}); point to a directory that save_pretrained wrote."
        ) from error
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise InvalidCheckpoint(f"{file} names no model_type; point to a directory that save_pretrained wrote.")
    kind = fields["model_type"]
    if kind not in CONFIG_MAPPING:
        own = " The code that its auto_map names is never run." if "auto_map" in fields else ""
        raise UnsupportedModel(f"transformers has no model of type {kind!r}; only those that it has are compiled.{own}")
    try:
        config: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict(fields)
    except Exception as error:
        # Each configuration class checks its fields in its own way.
        raise InvalidCheckpoint(f"{file} is no configuration of a {kind!r} model: {_sentence(error)}") from error
    return config


def import_checkpoint(directory: Path, max_model_len: int | None = None) -> ImportedModel:
    """Imports the model that a checkpoint's `config.json` describes; the weights are not read.

    Raises UnsupportedModel, UnsupportedOperation, ExportFailed or InvalidCheckpoint.
    """
    return import_model(load_config(directory), max_model_len)


def import_model(config: PreTrainedConfig, max_model_len: int | None = None) -> ImportedModel:
    """Imports the model of a configuration; `max_model_len` defaults to what the model was made for."""
    model_class = causal_model_class(config)
    length = checked_length(config, max_model_len)
    exported = export(model_class, config, length)
    importer = Importer(exported, HANDLERS)
    module = importer.run()
    if not importer.attention_modules:
        raise UnsupportedModel(f"{model_class.__name__} has no attention; only decoders with attention are compiled.")
    return ImportedModel(
        module=module,
        vocab_size=int(config.vocab_size),
        max_model_len=length,
        config=config.to_dict(),
        layer_paths=_layer_paths(importer.attention_modules),
        weights=dict(importer.weights),
        aliases=_aliases(exported),
        base_prefix=model_class.base_model_prefix,
    )


def causal_model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of transformers that implements a configuration as a causal language model."""
    kind = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        own = " The code that its auto_map names is never run." if getattr(config, "auto_map", None) else ""
        raise UnsupportedModel(
            f"{kind!r} is not a causal language model in transformers; only those are compiled.{own}"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{kind!r} is an encoder-decoder; only decoder-only language models are compiled.")
    if config.get_text_config() is not config:
        raise UnsupportedModel(f"{kind!r} takes more than text; compile its language model on its own.")
    if getattr(config, "quantization_config", None):
        raise UnsupportedModel(f"the weights of this {kind!r} model are stored quantized; start from unquantized ones.")
    if any((getattr(config, name, None) or 0) > 1 for name in _EXPERTS):
        raise UnsupportedModel(f"{kind!r} is a mixture of experts, which is not compiled; dense models are.")
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model_class: type[PreTrainedModel] = found
    if not model_class._can_set_attn_implementation():
        raise UnsupportedModel(
            f"{model_class.__name__} does not use transformers' attention interface, so its attention cannot be told "
            "apart from the rest; models that do are compiled."
        )
    return model_class


def checked_length(config: PreTrainedConfig, max_model_len: int | None) -> int:
    """The maximum number of tokens of a sequence: what is asked for, or what the model was made for.

    For `longrope` the default is the original length, up to which the model uses its short factors.
    """
    made_for = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [each for each in rope.values() if isinstance(each, dict)] or [rope]
    kinds = {each.get("rope_type") for each in nested}
    if max_model_len is None:
        original = nested[0].get("original_max_position_embeddings") if "longrope" in kinds else None
        length = min(filter(None, (original, made_for)), default=None)
        if not length:
            raise UnsupportedModel("the configuration has no max_position_embeddings; say max_model_len.")
        return int(length)
    if max_model_len < 1:
        raise UnsupportedModel(f"max_model_len must be at least 1; found {max_model_len}.")
    if made_for and max_model_len > made_for and "dynamic" not in kinds:
        raise UnsupportedModel(
            f"max_model_len is {max_model_len}, but the model was made for {made_for} positions; ask for at most that."
        )
    return max_model_len


def _layer_paths(attention_modules: list[str]) -> tuple[str, ...]:
    paths = [re.sub(r"^(.*?\.\d+)\..*$", r"\1", path) for path in attention_modules]
    return tuple(dict.fromkeys(paths))


def _aliases(exported: ExportedModel) -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for name, kept in exported.shared.items():
        if name != kept:
            groups.setdefault(exported.checkpoint_names[kept], []).append(exported.checkpoint_names.get(name, name))
    return {kept: tuple(names) for kept, names in groups.items()}


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith(".") else f"{text}."
