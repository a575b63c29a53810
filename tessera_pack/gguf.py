"""A GGUF file becomes a Hugging Face checkpoint directory, which is then packed like any other.

transformers' own GGUF reader decides what the file means: the configuration, the names of the tensors, how
llama.cpp's layouts are undone, the tokenizer. Its loader is not used, because it wants the whole model in memory and
refuses to save it; the tensors are dequantized by the `gguf` package one at a time and written where they belong.

What transformers leaves out and a right answer needs is added here: rotary scaling (`gguf_rope`), the split of text
before byte-pair merges where transformers does not know the file's, and all tokens that end a turn.
"""

from __future__ import annotations

import errno
import json
import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tessera_pack.errors import CheckpointNotFound, DependencyMissing, DiskFull, GgufInvalid, OutputExists
from tessera_pack.gguf_rope import rope_parameters
from tessera_pack.gguf_shards import ShardWriter

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_ROPE_DIVISORS = "rope_freqs.weight"
_END_OF_TURN_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")

_GPT2_SPLITS = {None, "default", "gpt-2"}
"""Names under which llama.cpp keeps GPT-2's split, which is also what transformers falls back to."""

_DIGIT_SPLITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""Names whose split is GPT-2's after every digit has been set apart."""

# What a malformed file makes the two readers raise; they have no exception of their own.
_READER_ERRORS = (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError, AttributeError, struct.error)


def convert_gguf(path: Path, out_directory: Path) -> Path:
    """Writes the checkpoint in `path` as fp32 safetensors with config and tokenizer, and returns `out_directory`.

    `out_directory` must not exist or be empty, and is removed if the conversion fails. A `tokenizer.json` beside the
    GGUF file is preferred to the vocabulary inside it.

    Raises `CheckpointNotFound`, `GgufInvalid`, `OutputExists`, `DiskFull` or `DependencyMissing`.
    """
    path, out_directory = Path(path), Path(out_directory)
    if not path.is_file():
        raise CheckpointNotFound(f"There is no GGUF file at '{path}'.", hint="Check the path given to --from-gguf.")
    if out_directory.exists() and any(out_directory.iterdir()):
        raise OutputExists(f"'{out_directory}' is not empty.", hint="Name a folder that does not exist yet.")
    reader = _open(path)
    metadata = {name: _value(field) for name, field in reader.fields.items() if len(field.data) < 64}
    config = _config(path, metadata)
    _complete_config(config, metadata, reader, path)
    tokenizer = _tokenizer(path, metadata)
    try:
        out_directory.mkdir(parents=True, exist_ok=True)
        _write_weights(reader, config, out_directory, path)
        _write_config(config, out_directory)
        _write_generation_config(metadata, out_directory)
        tokenizer.save_pretrained(str(out_directory))
    except BaseException as error:
        # Nothing was in this folder before, so nothing but a half-written checkpoint is removed.
        shutil.rmtree(out_directory, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DiskFull(
                f"The disk is full: '{path.name}' needs {_fp32_bytes(reader) / 1e9:.1f} GB at '{out_directory}'.",
                hint="Free some space or name another folder.",
            ) from error
        raise
    return out_directory


def _open(path: Path) -> GGUFReader:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise DependencyMissing(
            "Reading a GGUF file needs the 'gguf' package, which is not installed.",
            hint="Install it with: pip install 'tessera[compile]'",
        ) from error
    try:
        return GGUFReader(path)
    except _READER_ERRORS as error:
        raise GgufInvalid(
            f"'{path.name}' cannot be read as GGUF: {_sentence(error)}", hint="Download the file again."
        ) from error


def _value(field: Any) -> Any:
    return field.contents()


def _config(path: Path, metadata: dict[str, Any]) -> PretrainedConfig:
    from transformers import AutoConfig

    architecture = metadata.get("general.architecture")
    if architecture is None:
        raise GgufInvalid(f"'{path.name}' does not say its architecture.", hint="Download the file again.")
    try:
        return AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
    except _READER_ERRORS as error:
        raise GgufInvalid(
            f"transformers cannot make a configuration for the GGUF architecture '{architecture}': {_sentence(error)}",
            hint="Pack the original checkpoint with --from-hf.",
        ) from error


def _complete_config(config: PretrainedConfig, metadata: dict[str, Any], reader: GGUFReader, path: Path) -> None:
    """Adds what transformers does not take from the file."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    divisors = next((_dequantized(tensor, path) for tensor in reader.tensors if tensor.name == _ROPE_DIVISORS), None)
    theta = float((getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0))
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dimensions = int(metadata.get(f"{metadata['general.architecture']}.rope.dimension_count", head))
    rope = rope_parameters(metadata, divisors, theta, dimensions)
    if rope is not None:
        config.rope_parameters = {**(getattr(config, "rope_parameters", None) or {}), **rope}
    config.dtype = "float32"
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if not isinstance(model_class, str):
        raise GgufInvalid(f"transformers has no text generation model for '{config.model_type}'.")
    config.architectures = [model_class]


def _tokenizer(path: Path, metadata: dict[str, Any]) -> PreTrainedTokenizerBase:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    beside = (path.parent / "tokenizer.json").is_file()
    split = metadata.get("tokenizer.ggml.pre")
    try:
        tokenizer = (
            AutoTokenizer.from_pretrained(str(path.parent), trust_remote_code=False)
            if beside
            else AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
        )
    except _READER_ERRORS as error:
        raise GgufInvalid(
            f"transformers cannot make a tokenizer from '{path.name}': {_sentence(error)}",
            hint="Put the original model's tokenizer.json beside the GGUF file.",
        ) from error
    if beside or metadata.get("tokenizer.ggml.model") != "gpt2":
        return tokenizer
    if split in _DIGIT_SPLITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif split not in _GPT2_SPLITS and split not in _splits_of_transformers():
        raise GgufInvalid(
            f"'{path.name}' splits text the way '{split}' does, which is not known here; prompts would be cut into the "
            "wrong tokens.",
            hint="Put the original model's tokenizer.json beside the GGUF file.",
        )
    return tokenizer


def _splits_of_transformers() -> frozenset[str]:
    """The names of splits that transformers' reader applies by itself; older versions have no such table."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return frozenset()
    return frozenset(GGUF_PRE_TOKENIZER_SPLITS)


def _write_weights(reader: GGUFReader, config: PretrainedConfig, out_directory: Path, path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {}) if config.tie_word_embeddings else set()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
    with ShardWriter(out_directory, shapes) as writer:
        for name, values in _converted(reader, model, config, path):
            if name in tied:
                continue
            if name not in shapes or shapes[name] != values.shape:
                raise GgufInvalid(
                    f"'{path.name}' gives '{name}' the shape {list(values.shape)}, and the model expects "
                    f"{list(shapes[name]) if name in shapes else 'no such tensor'}.",
                    hint="Pack the original checkpoint with --from-hf.",
                )
            writer.write(name, values)
        missing = writer.missing()
        if missing:
            raise GgufInvalid(
                f"'{path.name}' lacks {len(missing)} of the model's {len(shapes)} tensors, among them '{missing[0]}'.",
                hint="Download the file again, or pack the original checkpoint with --from-hf.",
            )


def _converted(
    reader: GGUFReader, model: Any, config: PretrainedConfig, path: Path
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor of the file under its Hugging Face name, dequantized, one at a time.

    transformers collects tensors that are merged from several (experts) in a dictionary of its own; they are handed on
    as soon as the last of their parts has been read.
    """
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    architecture = _value(reader.fields["general.architecture"])
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    try:
        names = get_gguf_hf_weights_map(model, processor)
    except NotImplementedError as error:
        raise GgufInvalid(
            f"The 'gguf' package does not know the architecture '{architecture}'.",
            hint="Pack the original checkpoint with --from-hf.",
        ) from error
    merged: dict[str, Any] = {}
    collected = {"tensors": merged}
    targets = {
        tensor.name: names.get(tensor.name, names.get(tensor.name.removesuffix(".weight"))) for tensor in reader.tensors
    }
    waiting = Counter(targets.values())
    for tensor in reader.tensors:
        if tensor.name == _ROPE_DIVISORS:
            continue
        target = targets[tensor.name]
        if target is None:
            raise GgufInvalid(
                f"'{path.name}' holds a tensor '{tensor.name}' that has no place in the model '{config.model_type}'.",
                hint="Pack the original checkpoint with --from-hf.",
            )
        waiting[target] -= 1
        result = processor.process(
            weights=_dequantized(tensor, path),
            name=tensor.name,
            tensor_key_mapping=names,
            parsed_parameters=collected,
        )
        if result.name is not None:
            yield names.get(result.name, result.name), np.ascontiguousarray(result.weights, dtype=np.float32)
        elif waiting[target] == 0 and target in merged:
            yield target, np.ascontiguousarray(merged.pop(target).numpy(), dtype=np.float32)
    for name in sorted(merged):
        yield name, np.ascontiguousarray(merged[name].numpy(), dtype=np.float32)


def _dequantized(tensor: Any, path: Path) -> NDArray[np.float32]:
    from gguf import dequantize

    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except (NotImplementedError, ValueError) as error:
        raise GgufInvalid(
            f"'{path.name}' stores '{tensor.name}' as {tensor.tensor_type.name}, which cannot be dequantized here.",
            hint="Use a file quantized another way, or pack the original checkpoint with --from-hf.",
        ) from error
    return np.asarray(values, dtype=np.float32)


def _write_config(config: PretrainedConfig, out_directory: Path) -> None:
    document = json.loads(config.to_json_string(use_diff=True))
    # The name is where the file came from, or a leftover of training; neither is part of the model.
    for key in ("_name_or_path", "_model_name_or_path"):
        document.pop(key, None)
    document["dtype"] = "float32"
    _write_json(out_directory / "config.json", document)


def _write_generation_config(metadata: dict[str, Any], out_directory: Path) -> None:
    """The ids by which generation starts, pads and stops; llama.cpp stops at any of the tokens that end a turn."""
    ends = [metadata[f"tokenizer.ggml.{key}"] for key in _END_OF_TURN_KEYS if f"tokenizer.ggml.{key}" in metadata]
    ends = list(dict.fromkeys(int(token) for token in ends))
    document: dict[str, Any] = {}
    if ends:
        document["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    for name, key in (("bos_token_id", "bos_token_id"), ("pad_token_id", "padding_token_id")):
        if f"tokenizer.ggml.{key}" in metadata:
            document[name] = int(metadata[f"tokenizer.ggml.{key}"])
    _write_json(out_directory / "generation_config.json", document)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")


def _fp32_bytes(reader: GGUFReader) -> int:
    return sum(4 * int(np.prod(tensor.shape, dtype=np.int64)) for tensor in reader.tensors)


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith(".") else f"{text}."
