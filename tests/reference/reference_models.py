"""Tiny random models, compiled, with the tensors of their packages."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import logging as transformers_logging
from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.driver import CompileOptions, compile_module
from tessera_compiler.frontends.huggingface import import_checkpoint
from tessera_compiler.frontends.weight_names import resolve_weight_names
from tessera_compiler.graph.pipeline import simplify
from tessera_compiler.module import CompiledModule
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.evaluator import Cache, evaluate_program
from tessera_compiler.targets.cpu.object_code import CPU_CLASSES
from tessera_pack.checkpoint import Checkpoint
from tessera_pack.quantize_groups import quantize_groups
from tessera_pack.weights import pack_weights
from tessera_runtime.executor.cpu.memory import zeroed_memory
from tessera_runtime.executor.cpu.processor import choose_class, read_processor
from tessera_runtime.executor.interface import StepBatch

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

VOCABULARY = 104
BLOCKS = 24
_SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_USUAL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_GEMMA2 = {
    "head_dim": 8,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "llama": _USUAL,
    "gemma2": {**_USUAL, **_GEMMA2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
}


def save_model(kind: str, folder: Path) -> PreTrainedModel:
    """A model whose weights are all random: the usual ones and zeros of norms and biases would hide mistakes."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **_SPECIAL, **OPTIONS[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder)
    return model


@dataclass(frozen=True)
class Compiled:
    """A compiled model, its program for the reference as a reader of the package gets it, and the package's tensors."""

    module: ModuleOp
    compiled: CompiledModule
    program: dict[str, Any]
    weights: dict[str, np.ndarray]
    source: Callable[[schedule.WeightOp], np.ndarray]

    def evaluate(self, batch: StepBatch, cache: Cache) -> np.ndarray:
        """What Schedule IR says the step gives."""
        return evaluate_program(self.module, self.source, vars(batch), cache)

    def evaluate_traced(self, batch: StepBatch) -> list[list[np.ndarray]]:
        """The results of each group."""
        results: list[list[np.ndarray]] = []
        evaluate_program(
            self.module, self.source, vars(batch), Cache(BLOCKS), lambda _, group, values: results.append(values)
        )
        return results


def native_class() -> str:
    """The CPU class that this machine runs best."""
    return choose_class(
        {name: {"features": entry.required_flags} for name, entry in CPU_CLASSES.items()}, read_processor()
    )


def compile_checkpoint(folder: Path, dtype: str, classes: tuple[str, ...]) -> Compiled:
    """The checkpoint for the reference, and for these CPU classes, which take most of the time. `dtype` is that of the
    weights, or of these and the KV cache: `fp32+int8`."""
    imported = import_checkpoint(folder)
    simplify(imported.module)
    weights_dtype, _, kept = dtype.partition("+")
    options = CompileOptions(weights_dtype, 128, VOCABULARY, kv_dtype=kept or "auto", max_tokens=64, classes=classes)
    compiled = compile_module(imported.module, options)
    checkpoint = Checkpoint(folder)
    names = resolve_weight_names(imported.weights, checkpoint.names(), imported.base_prefix, imported.aliases)
    weights = {tensor.name: _aligned(tensor.array) for tensor in pack_weights(compiled.weights, checkpoint, names)}
    program = next(target.program for target in compiled.targets if target.name == "reference")

    def source(op: schedule.WeightOp) -> np.ndarray:
        parts = [checkpoint.read(names[each.data]) for each in op.sources]
        whole = np.concatenate([part.T if op.transposed else part for part in parts])
        element = schedule.element_name(op.result.type)
        if element == "bf16":
            return schedule.round_to_bfloat16(whole)
        if element == "f32" and op.scales_of is None:
            return whole
        if op.group is not None:
            numbers, parameters = quantize_groups(whole, op.group.value.data, op.weight_name.data)
            if op.scales_of is None:
                return numbers
            return parameters.factors if op.part is None else getattr(parameters, op.part.data)
        scales = (np.abs(whole).max(axis=1) / np.float32(127)).astype(np.float32)
        return scales if op.scales_of else (np.rint(whole / scales[:, None]) + 128).astype(np.uint8)

    return Compiled(imported.module, compiled, json.loads(json.dumps(program)), weights, source)


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy where native code wants it."""
    memory = zeroed_memory(array.nbytes).view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory


def make_batch(tokens: list[tuple[int, int, int]], tables: Any, rows: list[int] | None = None) -> StepBatch:
    """`tokens` are (id, position, sequence); logits of all of them unless `rows` says of which."""
    ids, positions, sequences = np.array(tokens, np.int32).T
    wanted = range(len(tokens)) if rows is None else rows
    arrays = (ids, positions, sequences, tables, list(wanted))
    return StepBatch(*(np.array(each, np.int32, order="C") for each in arrays))


def one_sequence(ids: np.ndarray, start: int = 0) -> StepBatch:
    """Tokens of one sequence from position `start` on, in blocks that do not stand in order."""
    tokens = [(int(token), start + index, 0) for index, token in enumerate(ids)]
    return make_batch(tokens, [list(range(BLOCKS - 1, -1, -3))])


def random_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, VOCABULARY, count).astype(np.int32)
