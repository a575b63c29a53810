"""Into what chunks attention cuts a context on processors, and what it takes to keep what they come to."""

from __future__ import annotations

from xdsl.dialects.builtin import MemRefType
from xdsl.ir import Attribute

from tessera_compiler.schedule.physical import BLOCK_TOKENS
from tessera_compiler.tile.panels import LANES
from tessera_compiler.tile.types import BYTES, buffer_type

CHUNK_BLOCKS = 16
CHUNK_POSITIONS = CHUNK_BLOCKS * BLOCK_TOKENS

MOST_TOKENS = 8
"""Tokens of a step whose contexts several instances share; where there are more, they keep all threads busy."""


def partial_width(value_dim: int) -> int:
    """Numbers in a row of partials: the largest score and the sum of the weights, then the sums of the values."""
    return LANES + -(-value_dim // LANES) * LANES


def partial_buffer(value_dim: int) -> MemRefType[Attribute]:
    """A row for each chunk, token and head, chunks outermost."""
    return buffer_type([None, partial_width(value_dim)], "f32")


def partial_bytes(heads: int, value_dim: int, positions: int) -> int:
    """What the partials of contexts of so many positions take."""
    rows = -(-positions // CHUNK_POSITIONS) * MOST_TOKENS * heads
    return rows * partial_width(value_dim) * BYTES["f32"]
