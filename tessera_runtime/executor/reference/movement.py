"""Operations that move elements and compute nothing."""

from __future__ import annotations

import numpy as np

from tessera_runtime.executor.reference.numbers import HELD_AS, Array
from tessera_runtime.executor.reference.operation import Call, Operation, is_integer, is_integers


def _is_values(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(type(item) in (int, float, bool) for item in value)


def _constant(call: Call) -> tuple[Array, ...]:
    sizes = [size for size in call.shapes[0] if size is not None]
    return (np.array(call.attributes["value"], HELD_AS[call.dtypes[0]]).reshape(sizes),)


def _select_rows(call: Call, x: Array, rows: Array) -> tuple[Array, ...]:
    return (x[rows],)


def _reshape(call: Call, x: Array) -> tuple[Array, ...]:
    return (np.reshape(x, call.sizes(x)),)


def _broadcast(call: Call, x: Array) -> tuple[Array, ...]:
    return (np.broadcast_to(x, call.sizes(x)),)


def _transpose(call: Call, x: Array) -> tuple[Array, ...]:
    return (np.transpose(x, call.attributes["permutation"]),)


def _slice(call: Call, x: Array) -> tuple[Array, ...]:
    axis, start, size, step = (call.attributes[key] for key in ("axis", "start", "size", "step"))
    if min(axis, start, size - 1, step - 1) < 0:
        raise ValueError(f"no axis {axis} has {size} elements from {start} in steps of {step}")
    return (x[(slice(None),) * axis + (slice(start, start + (size - 1) * step + 1, step),)],)


def _concat(call: Call, *parts: Array) -> tuple[Array, ...]:
    return (np.concatenate(parts, axis=call.attributes["axis"]),)


def _copy(call: Call, x: Array) -> tuple[Array, ...]:
    return (np.ascontiguousarray(x),)


OPERATIONS: dict[str, Operation] = {
    "graph.constant": Operation(_constant, least=0, most=0, attributes={"value": _is_values}),
    "graph.select_rows": Operation(_select_rows, least=2, most=2),
    "graph.reshape": Operation(_reshape),
    "graph.broadcast": Operation(_broadcast),
    "graph.transpose": Operation(_transpose, attributes={"permutation": is_integers}),
    "graph.slice": Operation(_slice, attributes=dict.fromkeys(("axis", "start", "size", "step"), is_integer)),
    "graph.concat": Operation(_concat, most=1 << 16, attributes={"axis": is_integer}),
    "schedule.copy": Operation(_copy),
}
