"""Operations with weights: products with matrices, lookups in tables; and the rounding and quantizing before them."""

from __future__ import annotations

import numpy as np

from tessera_runtime.executor.reference.numbers import Array, round_to_bfloat16
from tessera_runtime.executor.reference.operation import Call, Operation, is_integer
from tessera_runtime.executor.reference.weights import Weight

_EXACT_COLUMNS = 1024
"""Products of int8 and centred uint8 values are at most 127 * 128: 1024 of them add up exactly in float32, in any
order."""


_ZERO_PARTS = 16
"""Zeros of groups are in sixteenths."""


def _round(call: Call, x: Array) -> tuple[Array, ...]:
    return (round_to_bfloat16(x),)


def _quantize(call: Call, x: Array) -> tuple[Array, ...]:
    """Columns in groups, each with a scale of its own; the last group may be narrower."""
    width, group = x.shape[-1], call.attributes["group"]
    count = -(-width // group)
    grouped = np.zeros((*x.shape[:-1], count * group), np.float32)
    grouped[..., :width] = x
    grouped = grouped.reshape(*x.shape[:-1], count, group)
    largest = np.max(np.abs(grouped), axis=-1, keepdims=True)
    inverse = np.where(largest != 0, np.float32(127) / largest, np.float32(0)).astype(np.float32)
    quantized = np.rint(grouped * inverse).astype(np.int8)
    total = np.asarray(np.sum(quantized, axis=-1, dtype=np.int32))
    scale = (largest * np.float32(1 / 127))[..., 0]
    return quantized.reshape(*x.shape[:-1], -1)[..., :width], scale, total


def _peaks(call: Call, x: Array) -> tuple[Array, ...]:
    return (np.maximum.reduceat(x, np.arange(0, x.shape[-1], call.attributes["group"]), axis=-1),)


def _matmul(call: Call, x: Array, weight: Weight, *quantization: Array) -> tuple[Array, ...]:
    group = call.attributes.get("group")
    if len(quantization) != {"u8": 3, "u4": 5}.get(weight.dtype, 0) or (group is not None) != bool(quantization):
        raise ValueError(f"no product of {x.dtype} and {weight.dtype} with {2 + len(quantization)} operands")
    result = np.empty((*x.shape[:-1], weight.shape[0]), np.float32)
    for start, rows in weight.blocks():
        block = slice(start, start + len(rows))
        if group is None:
            result[..., block] = x @ rows.T
        else:
            parts = [part[block] for part in quantization[3:]]
            result[..., block] = _grouped_product(x, rows, quantization[0], quantization[1], group, parts)
    return (result * quantization[2] if quantization else result,)


def _grouped_product(x: Array, rows: Array, scale: Array, total: Array, group: int, parts: list[Array]) -> Array:
    """`x @ rows.T`, group of columns by group of columns, each exact and then scaled.

    `parts` are the scales and zeros of the groups of `rows`, where they have some; if not, rows arrive centred on zero,
    so that `total` is not needed.
    """
    count = -(-rows.shape[1] // group)
    if scale.shape[-1] != count:
        raise ValueError(f"{rows.shape[1]} columns in groups of {group} do not have {scale.shape[-1]} scales")
    if any(part.shape != (len(rows), count) for part in parts):
        raise ValueError(f"{rows.shape} weights in groups of {group} have other scales and zeros than {count} a row")
    result = np.zeros((*x.shape[:-1], len(rows)), np.float32)
    for index in range(count):
        columns = slice(index * group, (index + 1) * group)
        exact = _exact_product(x[..., columns], rows[:, columns])
        if parts:
            exact = exact - total[..., index : index + 1] * (parts[1][:, index].astype(np.float64) / _ZERO_PARTS)
        scaled = exact.astype(np.float32) * scale[..., index : index + 1]
        result += scaled * parts[0][:, index] if parts else scaled
    return result


def _exact_product(x: Array, rows: Array) -> Array:
    """`x @ rows.T` of small integers, in float64, exact."""
    total = np.zeros((*x.shape[:-1], len(rows)), np.float64)
    values = x.astype(np.float32)
    for start in range(0, rows.shape[1], _EXACT_COLUMNS):
        part = slice(start, start + _EXACT_COLUMNS)
        total += values[..., part] @ rows[:, part].T
    return total


def _lookup(call: Call, ids: Array, table: Weight, *scales: Array) -> tuple[Array, ...]:
    if (table.dtype == "u8") != bool(scales):
        raise ValueError("a table of u8 comes with its scales, any other without")
    places = ids + call.attributes["offset"]
    rows = table.rows(places)
    return (rows * scales[0][places][:, None] if scales else rows,)


_GROUP = {"group": lambda value: is_integer(value) and value > 0}

OPERATIONS: dict[str, Operation] = {
    "schedule.round": Operation(_round),
    "schedule.quantize": Operation(_quantize, attributes=_GROUP, results=3),
    "schedule.peaks": Operation(_peaks, attributes=_GROUP),
    "schedule.matmul": Operation(_matmul, least=2, most=7, optional=_GROUP, weights=(1,)),
    "schedule.lookup": Operation(_lookup, least=2, most=3, attributes={"offset": is_integer}, weights=(1,)),
}
