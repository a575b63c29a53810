"""Tiny random models as compiled programs, for every area of the tests that needs whole ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from transformers import AutoConfig
from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.driver import CompileOptions, compile_module
from tessera_compiler.frontends.huggingface import import_model
from tessera_compiler.graph.pipeline import simplify
from tessera_compiler.module import CompiledModule
from tessera_pack.checkpoint import Checkpoint
from tessera_pack.weights import pack_weights
from tessera_runtime.executor.cpu.executor import CpuExecutor
from tessera_runtime.executor.cpu.memory import zeroed_memory
from tessera_runtime.executor.interface import StepBatch

Array = NDArray[Any]
MAX_MODEL_LEN = 160
LONGEST = 640
"""What the programs are compiled for: longer than the models were made for, so that contexts have several chunks."""

_USUAL: dict[str, Any] = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_MODEL_LEN,
    "head_dim": 16,
}
_RAGGED = {
    "hidden_size": 66,
    "intermediate_size": 101,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 22,
    "vocab_size": 301,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**_USUAL, **_RAGGED},
    "gemma2": {
        **_USUAL,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gpt2": {
        **{name: _USUAL[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id", "vocab_size")},
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": MAX_MODEL_LEN,
    },
    "qwen3": _USUAL,
    "glm": _USUAL,
    "cohere": {**_USUAL, "head_dim": 64},
    "granite": {**_USUAL, "attention_bias": True, "mlp_bias": True},
}
"""A ragged Llama (no size is a multiple of anything), softcaps and windows, LayerNorm with biases, per-head norms,
rotary embeddings that are partial and interleaved, with heads that are whole groups of columns, and biases on both
sides of a gate."""


@dataclass(frozen=True)
class TinyModel:
    """A graph as it is imported and simplified, neither to be changed, and random weights for it."""

    name: str
    imported: ModuleOp
    simplified: ModuleOp
    weights: dict[str, Array]
    vocab_size: int

    def graph(self) -> ModuleOp:
        """A copy of the simplified graph, to lower."""
        return self.simplified.clone()

    def options(self, dtype: str, classes: Sequence[str]) -> CompileOptions:
        """`dtype` is that of the weights, or of these and the KV cache: `int8+int8`."""
        weights, _, kept = dtype.partition("+")
        return CompileOptions(
            weights, LONGEST, self.vocab_size, kv_dtype=kept or "auto", max_tokens=128, classes=tuple(classes)
        )


@cache
def tiny_model(name: str) -> TinyModel:
    imported = import_model(AutoConfig.for_model(name, **MODELS[name]))
    simplified = imported.module.clone()
    simplify(simplified)
    random = np.random.default_rng(list(name.encode()))
    weights = {}
    for weight, shape in sorted(imported.weights.items()):
        values = random.standard_normal(shape) * (0.15 if len(shape) > 1 else 0.2)
        weights[weight] = (values + (0 if len(shape) > 1 else 1)).astype(np.float32)
    return TinyModel(name, imported.module, simplified, weights, imported.vocab_size)


@cache
def compiled(name: str, dtype: str, classes: tuple[str, ...]) -> CompiledModule:
    model = tiny_model(name)
    return compile_module(model.imported.clone(), model.options(dtype, classes))


def slow_from(count: int, parameters: Sequence[Any]) -> list[Any]:
    """Parameters of a test, of which only the first `count` run in a fast run."""
    slow = [
        pytest.param(*(each if isinstance(each, tuple) else (each,)), marks=pytest.mark.slow)
        for each in parameters[count:]
    ]
    return [*parameters[:count], *slow]


def packed_weights(result: CompiledModule, weights: dict[str, Array], folder: Path) -> dict[str, Array]:
    """The tensors that a package of these weights would hold, where native code may read them."""
    save_file(weights, folder / "model.safetensors")
    tensors = {}
    for tensor in pack_weights(result.weights, Checkpoint(folder)):
        memory = zeroed_memory(tensor.array.nbytes).view(tensor.array.dtype).reshape(tensor.array.shape)
        memory[...] = tensor.array
        tensors[tensor.name] = memory
    return tensors


def open_executor(
    result: CompiledModule, tensors: dict[str, Array], cpu_class: str, folder: Path, threads: int = 1
) -> CpuExecutor:
    target = next(target for target in result.targets if target.name == "cpu")
    path = folder / f"{cpu_class}.so"
    if not path.exists():
        path.write_bytes(target.files[path.name])
    return CpuExecutor(target.program, path, tensors, threads)


def make_batch(
    tokens: Sequence[tuple[int, int, int]], tables: Any, logit_rows: Sequence[int] | None = None
) -> StepBatch:
    """A step of (token id, position, sequence), with the logits of all rows unless said."""
    ids, positions, sequences = np.array(tokens, np.int32).T
    rows = range(len(tokens)) if logit_rows is None else logit_rows
    return StepBatch(
        np.ascontiguousarray(ids),
        np.ascontiguousarray(positions),
        np.ascontiguousarray(sequences),
        np.ascontiguousarray(np.atleast_2d(np.asarray(tables, np.int32))),
        np.asarray(rows, np.int32),
    )
