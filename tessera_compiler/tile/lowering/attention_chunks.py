"""Chunks of a context: how what is known of two is put together, and where it lies if instances share a context.

Whoever computes it, a chunk is summed on its own and chunks are folded in ascending order, so no bit depends on that.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.attention_products import VALUE_COLUMNS
from tessera_compiler.tile.lowering.chunk_sizes import MOST_TOKENS
from tessera_compiler.tile.panels import LANES


def pieces_of(value_dim: int) -> list[tuple[int, int]]:
    """The first column and the width of each tile of sums."""
    return [(column, min(VALUE_COLUMNS, value_dim - column)) for column in range(0, value_dim, VALUE_COLUMNS)]


def fold(builder: KernelBuilder, state: Sequence[SSAValue], added: Sequence[SSAValue]) -> list[SSAValue]:
    """What rows have after a chunk more, given what they had before and what the chunk alone comes to."""
    b = builder
    largest = b.binary("largest", state[0], added[0])
    keep, gain = (b.unary("exp2", b.binary("sub", each[0], largest)) for each in (state, added))
    return [
        largest,
        *(
            b.binary("add", b.binary("mul", before, keep), b.binary("mul", here, gain))
            for before, here in zip(state[1:], added[1:], strict=True)
        ),
    ]


class Partials:
    """The buffer of what chunks come to."""

    def __init__(self, builder: KernelBuilder, buffer: SSAValue, heads: int, value_dim: int):
        self._builder = builder
        self._buffer = buffer
        self._heads = heads
        self._value_dim = value_dim

    def store(
        self, state: Sequence[SSAValue], chunk: SSAValue, token: SSAValue, head: SSAValue, *, of_tokens: bool
    ) -> None:
        """Of some tokens or of some heads, from `token` and `head` on."""
        b, row = self._builder, self._row(chunk, token, head)
        step = self._heads if of_tokens else 1
        for column, value in zip(self._columns(), state, strict=True):
            b.store(value, self._buffer, row, b.constant(column), row_step=step)

    def load(self, chunk: SSAValue, token: SSAValue, head: SSAValue, count: int) -> list[SSAValue]:
        """Of `count` heads of one token."""
        b, row = self._builder, self._row(chunk, token, head)
        widths = [1, 1, *(width for _, width in pieces_of(self._value_dim))]
        return [
            b.load(self._buffer, row, b.constant(column), (count, width), row_step=1)
            for column, width in zip(self._columns(), widths, strict=True)
        ]

    def _row(self, chunk: SSAValue, token: SSAValue, head: SSAValue) -> SSAValue:
        b = self._builder
        row = b.index("add", b.index("mul", chunk, MOST_TOKENS), token)
        return b.index("add", b.index("mul", row, self._heads), head)

    def _columns(self) -> list[int]:
        return [0, 1, *(LANES + first for first, _ in pieces_of(self._value_dim))]
