"""Operations that touch the KV cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tessera_runtime.executor.reference.cache import CachePart
from tessera_runtime.executor.reference.numbers import STORED_AS, Array, narrow, quantize, widen
from tessera_runtime.executor.reference.operation import Call, Operation, is_integer, is_number

_SCORES_AT_ONCE = 1 << 24
"""Scores held at a time: 64 MiB."""


def _cache_write(
    call: Call, x: Array, positions: Array, sequences: Array, tables: Array, part: CachePart
) -> tuple[Array, ...]:
    part.write(x, positions, sequences, tables)
    return ()


def _attend(
    call: Call, query: Array, positions: Array, sequences: Array, tables: Array, keys: CachePart, values: CachePart
) -> tuple[Array, ...]:
    """The tokens of a sequence are computed together, and those of different sequences apart."""
    result = np.empty((*query.shape[:2], call.attributes["value_dim"]), np.float32)
    for sequence in np.unique(sequences):
        tokens = np.flatnonzero(sequences == sequence)
        for part in _portions(tokens, query.shape[1] * (int(positions[tokens].max()) + 1)):
            _attend_one(call, query, positions, tables[sequence], keys, values, part, result)
    return (result,)


def _portions(tokens: Array, scores_of_a_token: int) -> Iterator[Array]:
    size = max(1, _SCORES_AT_ONCE // scores_of_a_token)
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size]


def _attend_one(
    call: Call,
    query: Array,
    positions: Array,
    table: Array,
    keys: CachePart,
    values: CachePart,
    tokens: Array,
    result: Array,
) -> None:
    """Attention of some tokens of one sequence, into their rows of `result`."""
    window, softcap, heads = (call.attributes[key] for key in ("window", "softcap", "key_heads"))
    places = positions[tokens]
    start = max(0, int(places.min()) - window + 1) if window else 0
    end = int(places.max()) + 1
    contents = values.read(table, start, end)
    if len(tokens) > 1 and not np.isfinite(contents).all():
        # What a token does not see is multiplied by zero, which hides it only if it is finite. Alone, it is cut off.
        for token in tokens:
            _attend_one(call, query, positions, table, keys, values, token[None], result)
        return
    count, shared = len(tokens), query.shape[1] // heads
    scale = call.attributes["scale"] * (1.0 if softcap else math.log2(math.e))
    grouped = (
        _as_stored(query[tokens] * np.float32(scale), keys.element)
        .reshape(count, heads, shared, -1)
        .transpose(1, 2, 0, 3)
    )
    context = keys.read(table, start, end).transpose(0, 2, 1)
    scores = grouped.reshape(heads, shared * count, -1) @ context
    if softcap:
        scores = np.float32(softcap * math.log2(math.e)) * np.tanh(scores / np.float32(softcap))
    distance = places[:, None] - np.arange(start, end)
    visible = (distance >= 0) & (distance < window) if window else distance >= 0
    scores = np.where(np.tile(visible, (shared, 1)), scores, np.float32(-np.inf))
    raised = _rounded(np.exp2(scores - np.max(scores, axis=-1, keepdims=True)), keys.element)
    attended = (raised @ contents) / np.sum(raised, axis=-1, keepdims=True)
    result[tokens] = attended.reshape(heads, shared, count, -1).transpose(2, 0, 1, 3).reshape(count, query.shape[1], -1)


def _as_stored(queries: Array, element: str) -> Array:
    """Queries as the cache would hold keys."""
    if element != "i8":
        return _rounded(queries, element)
    numbers, scales = quantize(queries)
    return np.asarray(numbers * scales[..., None])


def _rounded(values: Array, element: str) -> Array:
    """What a product with numbers of the cache takes: values as the cache would hold them."""
    return widen(narrow(values)) if element == "bf16" else values


def _is_element(value: Any) -> bool:
    return isinstance(value, str) and value in STORED_AS


def _written_part(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    return (attributes["part"],)


def _both_parts(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    return ("key", "value")


# Which layer of the cache is meant, the launch says: one group may serve many.
_LAYER = {"cache": is_integer}
_ATTEND = {
    "key_heads": is_integer,
    "value_dim": is_integer,
    "scale": is_number,
    "window": is_integer,
    "softcap": is_number,
    "element": _is_element,
}

OPERATIONS: dict[str, Operation] = {
    "schedule.cache_write": Operation(
        _cache_write,
        least=4,
        most=4,
        attributes={"part": lambda value: value in ("key", "value"), "element": _is_element},
        optional=_LAYER,
        results=0,
        caches=_written_part,
    ),
    "schedule.attend": Operation(_attend, least=4, most=4, attributes=_ATTEND, optional=_LAYER, caches=_both_parts),
}
