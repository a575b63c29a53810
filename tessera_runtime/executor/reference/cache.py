"""The KV cache, laid out as docs/spec/program.md says: one pool of blocks, each of which holds all layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.executor.reference.numbers import STORED_AS, Array, narrow, widen


class CachePart:
    """The keys or the values of one layer, in all blocks of a pool."""

    def __init__(self, pool: NDArray[np.uint8], cache: Mapping[str, Any], layer: int, part: str) -> None:
        """`pool` is [blocks, bytes_per_block]; `part` is `key` or `value`. The part is a view of it."""
        description = cache["layers"][layer]
        heads, width = description["heads"], description[f"{part}_dim"]
        self.element: str = description["dtype"]
        self.positions_per_block: int = cache["block_tokens"]
        self._positions_last = part == "key"
        storage = STORED_AS[self.element]
        start = description[f"{part}_offset"]
        size = heads * width * self.positions_per_block * storage.itemsize
        inner = (width, self.positions_per_block) if self._positions_last else (self.positions_per_block, width)
        self._stored = pool[:, start : start + size].view(storage).reshape(len(pool), heads, *inner)

    def write(self, x: Array, positions: Array, sequences: Array, tables: Array) -> None:
        """Stores row t of `x` [T, heads, width] at position `positions[t]` of sequence `sequences[t]`."""
        blocks = tables[sequences, positions // self.positions_per_block]
        places = positions % self.positions_per_block
        stored = narrow(x) if self.element == "bf16" else x
        if self._positions_last:
            self._stored[blocks, :, :, places] = stored
        else:
            self._stored[blocks, :, places] = stored

    def read(self, table: Array, start: int, end: int) -> Array:
        """Positions start..end of the sequence with this block table, as float32 [heads, positions, width]."""
        size = self.positions_per_block
        first = start // size
        found = self._stored[table[first : -(-end // size)]]
        if self._positions_last:
            found = found.transpose(0, 1, 3, 2)
        found = found.transpose(1, 0, 2, 3)
        heads, blocks, _, width = found.shape
        values = found.reshape(heads, blocks * size, width)[:, start - first * size : end - first * size]
        return widen(values) if self.element == "bf16" else values
