"""Writes keys and values to the KV cache: the same for row kernels and for the epilogues of linear maps.

`places_of` says where some tokens lie; `write_head` stores one head of each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.ir import BlockArgument, SSAValue

from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.physical import BLOCK_TOKENS
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.context import SCALE, GroupArguments
from tessera_compiler.tile.lowering.quantizing import scales_of
from tessera_compiler.tile.types import shape_of


@dataclass(frozen=True)
class Places:
    """Where tokens lie in the cache: their physical blocks, and their places there. Tokens from number `count` on are
    not there."""

    blocks: tuple[SSAValue, ...]
    slots: tuple[SSAValue, ...]
    count: SSAValue | None


@dataclass(frozen=True)
class Piece:
    """Columns `first`, `first + step`, … of a head, in f32: a row for each token."""

    value: SSAValue
    first: int
    step: int = 1


def places_of(
    builder: KernelBuilder, op: schedule.CacheWriteOp, first: SSAValue, rows: int = 1, limit: SSAValue | None = None
) -> Places:
    """The places of tokens `first`, `first + 1`, … (`rows` of them, those from `limit` on left out)."""
    blocks, slots = [], []
    last = None if limit is None else builder.index("sub", limit, 1)
    for row in range(rows):
        token = builder.index("add", first, row)
        if last is not None:
            token = builder.index("min", token, last)
        position = builder.load_index(_input(builder, op.positions), token)
        sequence = builder.load_index(_input(builder, op.sequences), token)
        entry = builder.index(
            "add", builder.index("mul", sequence, builder.table_width), builder.index("div", position, BLOCK_TOKENS)
        )
        blocks.append(builder.load_index(_input(builder, op.block_tables), entry))
        slots.append(builder.index("rem", position, BLOCK_TOKENS))
    count = None if limit is None else builder.index("sub", limit, first)
    return Places(tuple(blocks), tuple(slots), count)


def write_head(
    builder: KernelBuilder,
    arguments: GroupArguments,
    op: schedule.CacheWriteOp,
    places: Places,
    head: SSAValue,
    pieces: Sequence[Piece],
) -> None:
    """Stores head number `head` of each token as the cache holds it; `pieces` together are the whole head."""
    part, cache = op.part.data, op.cache.value.data
    layer = arguments.cache_layer(cache)
    buffer = builder.buffers[arguments.cache_parameter(part, cache)]
    along = "n" if part == "key" else "k"
    start = builder.index("mul", head, layer.head_step(part))
    width = sum(shape_of(piece.value.type)[1] for piece in pieces)
    assert width == type_of(op.x).get_shape()[-1], "a head is written as a whole"
    if layer.quantized:
        pieces, scale = _quantized(builder, pieces, schedule.ZERO_POINT if part == "key" else 0)
        scales = builder.buffers[arguments.cache_parameter(part + SCALE, cache)]
        first = builder.index("mul", head, layer.head_step(part + SCALE))
        builder.store_panel(scale, scales, places.blocks, first, places.slots, packed=1, along="n", count=places.count)

    def store(value: SSAValue, first: int, step: int) -> None:
        builder.store_panel(
            value,
            buffer,
            places.blocks,
            start,
            places.slots,
            first=first,
            step=step,
            packed=layer.packed,
            along=along,
            count=places.count,
        )

    for piece in pieces:
        store(piece.value, piece.first, piece.step)
    # What is multiplied with the padding is zero; only an infinity there would be anything else afterwards.
    if part == "key" and width % layer.packed and not layer.quantized:
        store(builder.full(0.0, (len(places.blocks), layer.packed - width % layer.packed)), width, 1)


def _quantized(builder: KernelBuilder, pieces: Sequence[Piece], zero_point: int) -> tuple[list[Piece], SSAValue]:
    """The bytes of heads, still as f32, and their scales."""
    largest: SSAValue | None = None
    for piece in pieces:
        part = builder.reduce("max", builder.unary("abs", piece.value))
        largest = part if largest is None else builder.binary("maximum", largest, part)
    assert largest is not None, "a head has columns"
    inverse, scale = scales_of(builder, largest)

    def numbers(value: SSAValue) -> SSAValue:
        rounded = builder.unary("round", builder.binary("mul", value, inverse))
        return builder.binary("add", rounded, zero_point) if zero_point else rounded

    return [Piece(numbers(piece.value), piece.first, piece.step) for piece in pieces], scale


def _input(builder: KernelBuilder, value: SSAValue) -> SSAValue:
    assert isinstance(value, BlockArgument)
    return builder.buffers[value.index]
