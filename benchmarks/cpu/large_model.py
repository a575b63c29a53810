"""A model of Qwen2.5-1.5B's shape with random weights, as a checkpoint and as a GGUF file. Speed does not need sense.

It borrows SmolLM2's tokenizer: token ids beyond that are never seen, but the head computes all of them.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from benchmarks.cpu.prepare import Source

CONFIG = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PACKAGES = ("int4", "int8", "bf16")
"""Weights outweigh the cache of a few users so far that what it holds does not show; each takes a minute to pack."""
TITLE = "Qwen2.5-1.5B's shape, random weights"
_SEED = 20
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")

Bits = NDArray[np.uint16]


def make(folder: Path, small: Source) -> Source:
    """The model in `folder`, written unless it is there."""
    checkpoint, file = folder / "qwen2.5-1.5b-random", folder / "qwen2.5-1.5b-random.source.gguf"
    if not (checkpoint / "config.json").exists():
        _write_checkpoint(checkpoint, small.checkpoint)
    if not file.exists():
        partial = file.with_suffix(".partial")
        _write_gguf(partial, small.gguf)
        partial.rename(file)
    return Source("qwen2.5-1.5b-random", TITLE, checkpoint, file)


def tensors() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Hugging Face's name, llama.cpp's name and the shape, in the order in which the weights are drawn."""
    hidden, inner, vocabulary = (int(str(CONFIG[name])) for name in ("hidden_size", "intermediate_size", "vocab_size"))
    narrow = 2 * 128
    yield "model.embed_tokens.weight", "token_embd.weight", (vocabulary, hidden)
    for layer in range(int(str(CONFIG["num_hidden_layers"]))):
        ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
        for name, short, rows in (("q", "q", hidden), ("k", "k", narrow), ("v", "v", narrow)):
            yield f"{ours}.self_attn.{name}_proj.weight", f"{theirs}.attn_{short}.weight", (rows, hidden)
            yield f"{ours}.self_attn.{name}_proj.bias", f"{theirs}.attn_{short}.bias", (rows,)
        yield f"{ours}.self_attn.o_proj.weight", f"{theirs}.attn_output.weight", (hidden, hidden)
        yield f"{ours}.mlp.gate_proj.weight", f"{theirs}.ffn_gate.weight", (inner, hidden)
        yield f"{ours}.mlp.up_proj.weight", f"{theirs}.ffn_up.weight", (inner, hidden)
        yield f"{ours}.mlp.down_proj.weight", f"{theirs}.ffn_down.weight", (hidden, inner)
        yield f"{ours}.input_layernorm.weight", f"{theirs}.attn_norm.weight", (hidden,)
        yield f"{ours}.post_attention_layernorm.weight", f"{theirs}.ffn_norm.weight", (hidden,)
    yield "model.norm.weight", "output_norm.weight", (hidden,)


def _numbers(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> Bits:
    """bfloat16 bits: norms are one, all else is noise of the width a trained matrix has."""
    if "norm" in name:
        values = np.ones(shape, np.float32)
    else:
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _write_checkpoint(folder: Path, tokenizer: Path) -> None:
    partial = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in _TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, partial / name)
    header: dict[str, Any] = {}
    size = 0
    for name, _, shape in tensors():
        end = size + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [size, end]}
        size = end
    text = json.dumps(header).encode()
    random = np.random.default_rng(_SEED)
    with (partial / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, _, shape in tensors():
            file.write(_numbers(random, name, shape).tobytes())
    (partial / "config.json").write_text(json.dumps(CONFIG, indent=1), encoding="utf-8")
    partial.rename(folder)


def _write_gguf(path: Path, tokenizer: Path) -> None:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(int(str(CONFIG["max_position_embeddings"])))
    writer.add_embedding_length(int(str(CONFIG["hidden_size"])))
    writer.add_block_count(int(str(CONFIG["num_hidden_layers"])))
    writer.add_feed_forward_length(int(str(CONFIG["intermediate_size"])))
    writer.add_head_count(int(str(CONFIG["num_attention_heads"])))
    writer.add_head_count_kv(int(str(CONFIG["num_key_value_heads"])))
    writer.add_rope_freq_base(float(str(CONFIG["rope_theta"])))
    writer.add_layer_norm_rms_eps(float(str(CONFIG["rms_norm_eps"])))
    writer.add_vocab_size(int(str(CONFIG["vocab_size"])))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    _add_tokenizer(writer, gguf.GGUFReader(tokenizer))
    random = np.random.default_rng(_SEED)
    for name, theirs, shape in tensors():
        bits = _numbers(random, name, shape)
        if len(shape) == 1:
            writer.add_tensor(theirs, (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            writer.add_tensor(theirs, bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, reader: gguf.GGUFReader) -> None:
    """SmolLM2's, with tokens that nobody can write up to the size of the vocabulary."""
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.ggml.")}
    tokens = list(fields["tokenizer.ggml.tokens"])
    kinds = list(fields["tokenizer.ggml.token_type"])
    missing = int(str(CONFIG["vocab_size"])) - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(fields["tokenizer.ggml.pre"])
    writer.add_token_list(tokens + [f"<|unused_{index}|>" for index in range(missing)])
    writer.add_token_types(kinds + [int(gguf.TokenType.UNUSED)] * missing)
    writer.add_token_merges(fields["tokenizer.ggml.merges"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
