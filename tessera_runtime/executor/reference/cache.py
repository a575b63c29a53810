"""The KV cache, laid out as docs/spec/program.md says: one pool of blocks, each of which holds all layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.executor.reference.numbers import STORED_AS, Array, narrow, quantize, widen


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
        self._scales: NDArray[np.float32] | None = None
        if self.element == "i8":
            first = description["key_offset"]
            per_head = pool[:, first : first + heads * description["head_bytes"]].reshape(len(pool), heads, -1)
            start, size = start - first, size // heads
            self._stored = per_head[:, :, start : start + size].view(storage).reshape(len(pool), heads, *inner)
            start, size = description[f"{part}_scale_offset"] - first, self.positions_per_block * 4
            self._scales = per_head[:, :, start : start + size].view(np.float32)
        else:
            self._stored = pool[:, start : start + size].view(storage).reshape(len(pool), heads, *inner)

    def write(self, x: Array, positions: Array, sequences: Array, tables: Array) -> None:
        """Stores row t of `x` [T, heads, width] at position `positions[t]` of sequence `sequences[t]`."""
        blocks = tables[sequences, positions // self.positions_per_block]
        places = positions % self.positions_per_block
        stored = narrow(x) if self.element == "bf16" else x
        if self._scales is not None:
            stored, scales = quantize(x)
            self._scales[blocks, :, places] = scales
        if self._positions_last:
            self._stored[blocks, :, :, places] = stored
        else:
            self._stored[blocks, :, places] = stored

    def read(self, table: Array, start: int, end: int) -> Array:
        """Positions start..end of the sequence with this block table, as float32 [heads, positions, width]."""
        size = self.positions_per_block
        first = start // size
        chosen = table[first : -(-end // size)]
        found = self._stored[chosen]
        if self._positions_last:
            found = found.transpose(0, 1, 3, 2)
        found = found.transpose(1, 0, 2, 3)
        heads, blocks, _, width = found.shape
        here = slice(start - first * size, end - first * size)
        values = found.reshape(heads, blocks * size, width)[:, here]
        if self._scales is not None:
            scales = self._scales[chosen].transpose(1, 0, 2).reshape(heads, blocks * size)[:, here]
            return np.asarray(values * scales[..., None])
        return widen(values) if self.element == "bf16" else values
