"""What `schedule.matmul` multiplies: which pairs of element types, with which operands besides, and what each means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.graph.base import Array
from tessera_compiler.graph.types import Tensor
from tessera_compiler.tile.types import round_to_bfloat16

ZERO_POINT = 128
"""What stands for zero in weights of eight bits."""
ZERO_PARTS = 16
"""Weights of four bits say what stands for zero in sixteenths, group by group."""
MOST_COLUMNS = 512
"""In a group of weights of four bits: sixteenths of so many products fit in the 24 bits of a float32."""

OPERANDS: dict[tuple[str, str], int] = {
    ("f32", "f32"): 2,
    ("bf16", "bf16"): 2,
    ("f16", "f16"): 2,
    ("i8", "u8"): 5,
    ("i8", "u4"): 7,
    ("bf16", "u8"): 3,
    ("bf16", "u4"): 5,
    ("f8_e4m3", "f8_e4m3"): 4,
}
"""How many operands a product of x and a weight of these elements has."""


def verify_product(pair: tuple[str, str], types: Sequence[Tensor], elements: Sequence[str], group: int | None) -> None:
    """Raises `VerifyException` for operands that are none of a product."""
    x, weight = types[:2]
    if OPERANDS.get(pair) != len(types):
        raise VerifyException(f"no product of {pair[0]} and {pair[1]} with {len(types)} operands.")
    if (pair[0] == "i8" or pair[1] == "u4") != (group is not None):
        raise VerifyException("a product of quantized rows says how wide their groups are, any other does not.")
    if x.get_shape()[-1] != weight.get_shape()[1]:
        raise VerifyException(f"the last axis of {x} must have the size of the second of {weight}.")
    if pair[1] == "u4" and group is not None:
        if group > MOST_COLUMNS:
            raise VerifyException(f"groups of more than {MOST_COLUMNS} columns are not summed exactly.")
        groups = -(-weight.get_shape()[1] // group)
        for each, element in zip(types[-2:], elements[-2:], strict=True):
            if each.get_shape() != (weight.get_shape()[0], groups) or element != "u8":
                raise VerifyException(f"a weight of ui4 has a ui8 per row and group; found {each}.")


def product(pair: tuple[str, str], operands: Sequence[Array], values: Mapping[str, Any]) -> Array:
    """`x @ weight.T` as f32, of what the numbers of both stand for."""
    x, weight, *others = operands
    if pair[0] == "i8":
        return _of_quantized_rows(x, weight, others, values["group"])
    if pair == ("bf16", "u8"):
        return (x @ (weight.astype(np.float32) - np.float32(ZERO_POINT)).T) * others[0]
    if pair == ("bf16", "u4"):
        factors, scales, zeros = others
        return (x @ four_bits(weight, scales, zeros, values["group"]).T) * factors
    plain: Array = (x.astype(np.float32) @ weight.astype(np.float32).T).astype(np.float32)
    if pair == ("f8_e4m3", "f8_e4m3"):
        plain = plain * others[0] * others[1]
    return plain


def four_bits(weight: Array, scales: Array, zeros: Array, group: int) -> Array:
    """What numbers of four bits stand for, but for the factors: `(number - zero / 16) * scale`, rounded to bfloat16."""
    columns = weight.shape[1]
    steps, starts = (np.repeat(each.astype(np.float32), group, axis=1)[:, :columns] for each in (scales, zeros))
    return round_to_bfloat16((weight.astype(np.float32) - starts / np.float32(ZERO_PARTS)) * steps)


def _of_quantized_rows(x: Array, weight: Array, others: Sequence[Array], group: int) -> Array:
    scale, total, scales, *parts = others
    result = np.zeros((*x.shape[:-1], len(weight)), np.float32)
    for index in range(scale.shape[-1]):
        columns = slice(index * group, (index + 1) * group)
        # Exact: products of two bytes, at most 2^16 of them, fit in the 53 bits of a double.
        numbers = weight[:, columns].astype(np.float64)
        if parts:
            shift = total[..., index : index + 1] * (parts[1][:, index].astype(np.float64) / ZERO_PARTS)
            exact = x[..., columns].astype(np.float64) @ numbers.T - shift
        else:
            exact = x[..., columns].astype(np.float64) @ (numbers - ZERO_POINT).T
        scaled = exact.astype(np.float32) * scale[..., index : index + 1]
        result = result + (scaled * parts[0][:, index].astype(np.float32) if parts else scaled)
    return result * scales
