"""Tiny random models of many architectures, and what transformers computes with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.graph.evaluator import evaluate_module

transformers_logging.set_verbosity_error()

TOKENS = 37
VOCABULARY = 160

_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCABULARY}
_USUAL = {
    **_SPECIAL,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_GPT2 = {**_SPECIAL, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
_GPT2_LIKE = {"gpt2", "gpt_bigcode", "gptj", "bloom"}
_ALTERNATING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}


@dataclass(frozen=True)
class Case:
    """One configuration: a model type, and what of it differs from the usual tiny one."""

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.kind

    def config(self) -> PreTrainedConfig:
        usual: dict[str, Any] = dict(_GPT2 if self.kind in _GPT2_LIKE else _USUAL)
        if self.kind == "gpt_neox":
            del usual["num_key_value_heads"]
        return AutoConfig.for_model(self.kind, **{**usual, **self.options})


def rope(kind: str, **options: Any) -> dict[str, Any]:
    """Options for a rotary embedding of this type."""
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": kind, **options}}


ARCHITECTURES = [
    Case("llama"),
    Case("mistral", {"sliding_window": 16, "head_dim": 16}),
    Case("qwen2"),
    Case("qwen3", {"head_dim": 16}),
    Case("gemma", {"head_dim": 16}),
    Case("gemma2", {"head_dim": 16, **_ALTERNATING, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    Case("gemma3_text", {"head_dim": 16, **_ALTERNATING}),
    Case("phi3"),
    Case("gpt2"),
    Case(
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "attention_multiplier": 0.1,
        },
    ),
    Case("olmo2"),
    Case("starcoder2", {"sliding_window": 16}),
    Case("phi"),
    Case("gpt_neox"),
    Case("stablelm"),
    Case("cohere"),
    Case("cohere2", _ALTERNATING),
    Case("olmo"),
    Case("olmo3", _ALTERNATING),
    Case("glm", {"head_dim": 16}),
    Case("glm4", {"head_dim": 16}),
    Case("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    Case("smollm3"),
    Case("nemotron"),
    Case("arcee"),
    Case("helium", {"head_dim": 16}),
    Case("apertus"),
    Case("seed_oss"),
    Case("ernie4_5"),
    Case("nanochat"),
    Case("gpt_bigcode"),
    Case("diffllama"),
    Case("minicpm3", {"num_key_value_heads": 4}),
]

_FACTORS = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [3.0 + i for i in range(8)]}
VARIANTS = [
    Case("llama", rope("linear", factor=4.0), "rope-linear"),
    Case(
        "llama",
        rope("llama3", factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=64),
        "rope-llama3",
    ),
    Case("qwen2", rope("yarn", factor=4.0, original_max_position_embeddings=128), "rope-yarn"),
    Case("llama", rope("dynamic", factor=2.0), "rope-dynamic"),
    Case("phi3", {**rope("longrope", **_FACTORS), "original_max_position_embeddings": 64}, "rope-longrope-short"),
    Case("phi3", rope("default", partial_rotary_factor=0.5), "rope-partial"),
    Case("llama", {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope-old-names"),
    Case("llama", {"num_key_value_heads": 1}, "one-key-value-head"),
    Case("gemma", {"num_key_value_heads": 1, "head_dim": 16}, "gemma-one-key-value-head"),
    Case("llama", {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64}, "one-head"),
    Case("llama", {"tie_word_embeddings": True}, "tied"),
    Case("llama", {"attention_bias": True, "mlp_bias": True}, "biased"),
    Case("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}, "gpt2-inverse-layer"),
    Case("gpt2", {"scale_attn_weights": False, "activation_function": "quick_gelu"}, "gpt2-unscaled"),
    Case("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "qwen2-window"),
    Case("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}, "stablelm-qk-norm"),
    Case("cohere", {"use_qk_norm": True}, "cohere-qk-norm"),
    Case("olmo", {"clip_qkv": 1.0}, "olmo-clipped"),
    Case("opt", {"ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False}, "opt-post-norm"),
]


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model whose weights are all random: the usual ones and zeros of norms and biases would hide mistakes."""
    torch.manual_seed(0)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model: PreTrainedModel = model_class._from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.7 if "embed" in name else 0.15))
    return model


def checkpoint(model: PreTrainedModel) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors that `save_pretrained` would write, under its names."""
    return {name: value.numpy() for name, value in revert_weight_conversion(model, model.state_dict()).items()}


def token_ids(count: int = TOKENS) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(3, VOCABULARY, count).astype(np.int32)


def reference_logits(model: PreTrainedModel, count: int = TOKENS) -> np.ndarray[Any, Any]:
    """What transformers computes for one sequence."""
    with torch.no_grad():
        ids = torch.from_numpy(token_ids(count).astype(np.int64))
        return model(input_ids=ids[None], use_cache=False).logits[0].numpy()


def relative_error(
    module: ModuleOp,
    weights: Callable[[str], np.ndarray[Any, Any]],
    reference: np.ndarray[Any, Any],
    rows: tuple[int, ...] = (0, 5, TOKENS - 1),
) -> float:
    """The largest difference of the module's logits to the reference, relative to the largest logit."""
    positions = np.arange(len(reference), dtype=np.int32)
    wanted = np.asarray(rows, dtype=np.int32)
    logits = evaluate_module(module, weights, token_ids(len(reference)), positions, wanted)
    return float(np.max(np.abs(logits - reference[wanted])) / np.max(np.abs(reference)))
