"""A real package: a tiny random Llama, compiled for this machine's processor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizer_zoo import byte_level

from tessera.runtime import capabilities
from tessera_compiler.targets.cpu.object_code import CPU_CLASSES
from tessera_pack.packing import PackOptions, pack

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}: {{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
HEADS, KEY_HEADS, VOCABULARY = 4, 2, 336


def write_compiled(folder: Path) -> Path:
    """Makes the checkpoint and packs it; takes some seconds."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    config = {
        **SIZES,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": KEY_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 4,
        "torch_dtype": "float32",
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": 4}))
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    byte_level().save(str(checkpoint / "tokenizer.json"))
    save_file(_weights(), checkpoint / "model.safetensors")
    options = PackOptions(
        folder / "compiled.tspkg", from_hf=str(checkpoint), dtype="fp32", verify=False, cpu_classes=_classes()
    )
    return pack(options, progress=lambda phase, done, total: None).out


def _classes() -> tuple[str, ...]:
    """Only what this machine runs best: compiling for others would take as long again."""
    suited = capabilities().classes[-1]
    return (suited,) if suited in CPU_CLASSES else ("x86-64-v3",)


def _weights() -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(11)
    hidden, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    width = hidden // HEADS * KEY_HEADS

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return (random.standard_normal((rows, columns)) * 0.3).astype(np.float32)

    weights = {
        "model.embed_tokens.weight": matrix(VOCABULARY, hidden),
        "model.norm.weight": np.ones(hidden, np.float32),
    }
    for layer in range(SIZES["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        for part, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", width, hidden),
            ("self_attn.v_proj", width, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            weights[f"{name}.{part}.weight"] = matrix(rows, columns)
        for part in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{name}.{part}.weight"] = np.ones(hidden, np.float32)
    return weights
