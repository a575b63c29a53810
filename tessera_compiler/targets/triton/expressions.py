"""Pieces of Triton source that depend on nothing but an op, a type or a number."""

from __future__ import annotations

import math

from xdsl.dialects.builtin import MemRefType
from xdsl.ir import BlockArgument, SSAValue

from tessera_compiler.targets.triton import functions
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.types import element_name, shape_of

LEAST_OF_PRODUCTS = 16
"""Extent of an axis of more than one element: what the hardware's products take."""


def padded(extent: int, least: int) -> int:
    """The extent of an axis as Triton sees it."""
    return 1 if extent == 1 else max(least, 1 << (extent - 1).bit_length())


def describe(argument: BlockArgument) -> str:
    """A parameter, for people."""
    type_ = argument.type
    assert isinstance(type_, MemRefType)
    shape = ", ".join("?" if size < 0 else str(size) for size in type_.get_shape())
    return f"{element_name(type_)} [{shape}]"


def inside(extent: int, axis: int, least: int) -> str:
    """Which elements of a padded axis there are."""
    index = "[:, None]" if axis == 0 else "[None, :]"
    return f"(tl.arange(0, {padded(extent, least)}) < {extent}){index}"


def times(expression: str, factor: int) -> str:
    """A product; empty if it is zero."""
    if factor == 0:
        return ""
    return expression if factor == 1 else f"{expression} * {factor}"


def is_literal(value: SSAValue) -> bool:
    """Whether a number alone stands for a tile."""
    return isinstance(value.owner, tile.FullOp) and shape_of(value.type) == (1, 1)


def literal_of(op: tile.FullOp) -> str:
    value = op.constant
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    return repr(value) if value >= 0 else f"({value!r})"


def full_expression(op: tile.FullOp, least: int) -> str:
    """A whole tile of one number."""
    rows, columns = (padded(extent, least) for extent in shape_of(op.result.type))
    element = element_name(op.result.type)
    if element == "bf16":
        return f"tl.full(({rows}, {columns}), {literal_of(op)}, tl.float32).to(tl.bfloat16)"
    return f"tl.full(({rows}, {columns}), {literal_of(op)}, {functions.TYPES[element]})"
