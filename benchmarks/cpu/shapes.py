"""Multiply-adds and bytes of a model, from its configuration."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.cpu.results import Shape


def shape_of(checkpoint: Path) -> Shape:
    """Of a decoder with grouped heads and a gated feed-forward."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    narrow = config["num_key_value_heads"] * width
    attention = 2 * hidden * heads * width + 2 * hidden * narrow
    layers = config["num_hidden_layers"]
    return Shape(
        layer_multiply_adds=layers * (attention + 3 * hidden * config["intermediate_size"]),
        head_multiply_adds=hidden * config["vocab_size"],
    )


def bytes_per_second(rate: float, weights: int, context_bytes: int, context: float) -> float:
    """What one user's decode reads: all weights and, of `context` tokens, keys and values for every token."""
    return rate * (weights + context_bytes * context)


def multiply_adds_per_second(rate: float, tokens: int, shape: Shape) -> float:
    """Of the matrices in a prefill whose head is computed for the last token only; attention is not counted."""
    return rate / tokens * (tokens * shape.layer_multiply_adds + shape.head_multiply_adds)
