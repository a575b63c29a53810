"""Operations with weights: products with matrices, lookups in tables; and the rounding and quantizing before them."""

from __future__ import annotations

import numpy as np

from tessera_runtime.executor.reference.numbers import Array, round_to_bfloat16
from tessera_runtime.executor.reference.operation import Call, Operation, is_integer
from tessera_runtime.executor.reference.weights import Weight

_EXACT_COLUMNS = 1024
"""Products of int8 and centred uint8 values are at most 127 * 128: 1024 of them add up exactly in float32, in any
order."""


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


def _matmul(call: Call, x: Array, weight: Weight, *quantization: Array) -> tuple[Array, ...]:
    quantized = "group" in call.attributes
    if len(quantization) != (3 if quantized else 0) or (weight.dtype == "u8") != quantized:
        raise ValueError(f"no product of {x.dtype} and {weight.dtype} with {2 + len(quantization)} operands")
    result = np.empty((*x.shape[:-1], weight.shape[0]), np.float32)
    for start, rows in weight.blocks():
        product = _grouped_product(x, rows, quantization[0], call.attributes["group"]) if quantized else x @ rows.T
        result[..., start : start + len(rows)] = product
    # Weights arrive centred on zero, so the sums of x, which the zero point is taken off with, are not needed.
    return (result * quantization[2] if quantized else result,)


def _grouped_product(x: Array, rows: Array, scale: Array, group: int) -> Array:
    """`x @ rows.T`, group of columns by group of columns, each exact and then scaled."""
    if scale.shape[-1] != -(-rows.shape[1] // group):
        raise ValueError(f"{rows.shape[1]} columns in groups of {group} do not have {scale.shape[-1]} scales")
    result = np.zeros((*x.shape[:-1], len(rows)), np.float32)
    for index in range(scale.shape[-1]):
        columns = slice(index * group, (index + 1) * group)
        exact = _exact_product(x[..., columns], rows[:, columns])
        result += exact.astype(np.float32) * scale[..., index : index + 1]
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
    "schedule.matmul": Operation(_matmul, least=2, most=5, optional=_GROUP, weights=(1,)),
    "schedule.lookup": Operation(_lookup, least=2, most=3, attributes={"offset": is_integer}, weights=(1,)),
}
