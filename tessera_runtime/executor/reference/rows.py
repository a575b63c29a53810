"""Operations along the last axis: reductions, norms, softmax; and rotary embeddings."""

from __future__ import annotations

import numpy as np

from tessera_runtime.executor.reference.numbers import Array
from tessera_runtime.executor.reference.operation import Call, Operation, is_number, is_true


def _reduce_sum(call: Call, x: Array) -> tuple[Array, ...]:
    return (np.asarray(np.sum(x, axis=-1, keepdims=True, dtype=np.float32)),)


def _mean(x: Array) -> Array:
    return np.asarray(np.mean(x, axis=-1, keepdims=True, dtype=np.float32))


def _reduce_max(call: Call, x: Array) -> tuple[Array, ...]:
    return (np.max(x, axis=-1, keepdims=True),)


def _softmax(call: Call, x: Array) -> tuple[Array, ...]:
    raised = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return (raised / np.sum(raised, axis=-1, keepdims=True),)


def _rms_norm(call: Call, x: Array, *weight: Array) -> tuple[Array, ...]:
    return (_scaled(call, x * (1 / np.sqrt(_mean(x * x) + np.float32(call.attributes["eps"]))), *weight),)


def _layer_norm(call: Call, x: Array, *parameters: Array) -> tuple[Array, ...]:
    centred = x - _mean(x)
    normed = centred * (1 / np.sqrt(_mean(centred * centred) + np.float32(call.attributes["eps"])))
    scaled = _scaled(call, normed, *parameters[:1])
    return (scaled + parameters[1] if len(parameters) > 1 else scaled,)


def _scaled(call: Call, x: Array, *weight: Array) -> Array:
    return x * (weight[0] + np.float32(call.attributes["weight_offset"])) if weight else x


def _rope_table(call: Call, positions: Array, inverse_frequencies: Array) -> tuple[Array, ...]:
    angles = positions.astype(np.float32)[:, None] * inverse_frequencies
    scale = np.float32(call.attributes["scale"])
    return np.cos(angles) * scale, np.sin(angles) * scale


def _rope(call: Call, x: Array, cos: Array, sin: Array) -> tuple[Array, ...]:
    """Column i turns with column i + half, or 2 i with 2 i + 1 if interleaved; columns from 2 half on stay."""
    half = cos.shape[-1]
    first, second = slice(0, half), slice(half, 2 * half)
    if call.attributes.get("interleaved"):
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    cos, sin = cos[:, None, :], sin[:, None, :]
    a, b = x[..., first], x[..., second]
    result = x.copy()
    result[..., first] = a * cos - b * sin
    result[..., second] = b * cos + a * sin
    return (result,)


_NORM = {"eps": is_number, "weight_offset": is_number}

OPERATIONS: dict[str, Operation] = {
    "graph.reduce_sum": Operation(_reduce_sum),
    "graph.reduce_mean": Operation(lambda call, x: (_mean(x),)),
    "graph.reduce_max": Operation(_reduce_max),
    "graph.softmax": Operation(_softmax),
    "graph.rms_norm": Operation(_rms_norm, most=2, attributes=_NORM),
    "graph.layer_norm": Operation(_layer_norm, most=3, attributes=_NORM),
    "graph.rope_table": Operation(_rope_table, least=2, most=2, attributes={"scale": is_number}, results=2),
    "graph.rope": Operation(_rope, least=3, most=3, optional={"interleaved": is_true}),
}
