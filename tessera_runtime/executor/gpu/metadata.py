"""Everything that a step needs from the host, in one block of memory: one copy per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.executor.drawing import DRAW, idle_draws
from tessera_runtime.executor.gpu.driver import Bytes
from tessera_runtime.executor.gpu.grid import StepSizes
from tessera_runtime.executor.gpu.program import INPUTS
from tessera_runtime.executor.gpu.tiles import cut_tiles
from tessera_runtime.executor.interface import StepBatch

_ALIGNMENT = 64


@dataclass(frozen=True)
class StepInputs:
    """A step as the device gets it, before padding."""

    batch: StepBatch
    tiles: NDArray[np.int32]
    singles: NDArray[np.int32]
    draws: NDArray[Any]

    @classmethod
    def of(cls, batch: StepBatch, draws: NDArray[Any] | None, tile_tokens: int) -> StepInputs:
        tiles, singles = cut_tiles(batch.sequences, batch.positions, tile_tokens)
        rows = len(batch.logit_rows)
        return cls(batch, tiles, singles, idle_draws(rows) if draws is None else draws)

    def sizes(self, block_tokens: int, chunk_tokens: int) -> StepSizes:
        rows, width = self.batch.block_tables.shape
        return StepSizes(
            tokens=len(self.batch.token_ids),
            logit_rows=len(self.batch.logit_rows),
            table_rows=rows,
            table_width=width,
            tiles=len(self.tiles),
            singles=len(self.singles),
            chunks=-(-width * block_tokens // chunk_tokens),
        )


@dataclass(frozen=True)
class MetadataLayout:
    """Where each input of a step of some sizes lies in the block."""

    sizes: StepSizes
    offsets: dict[str, int]
    size: int

    @classmethod
    def of(cls, sizes: StepSizes) -> MetadataLayout:
        words = {
            "token_ids": sizes.tokens,
            "positions": sizes.tokens,
            "sequences": sizes.tokens,
            "logit_rows": sizes.logit_rows,
            "tiles": 2 * sizes.tiles,
            "singles": sizes.singles,
            "draws": DRAW.itemsize // 4 * sizes.logit_rows,
            "block_tables": sizes.table_rows * sizes.table_width,
        }
        offsets, end = {}, 0
        for name in INPUTS:
            offsets[name] = end
            end += -(-4 * words[name] // _ALIGNMENT) * _ALIGNMENT
        return cls(sizes, offsets, max(end, _ALIGNMENT))

    def write(self, block: Bytes, inputs: StepInputs, block_tokens: int, spare_block: int) -> None:
        """Writes a step and its padding. `spare_block` belongs to no sequence."""
        sizes, batch = self.sizes, inputs.batch
        last_row = sizes.table_rows - 1
        self._write(block, "token_ids", batch.token_ids, sizes.tokens, 0)
        self._write(block, "positions", batch.positions, sizes.tokens, 0)
        self._write(block, "sequences", batch.sequences, sizes.tokens, last_row)
        self._write(block, "logit_rows", batch.logit_rows, sizes.logit_rows, 0)
        self._write(block, "tiles", inputs.tiles.reshape(-1), 2 * sizes.tiles, 0)
        self._write(block, "singles", inputs.singles, sizes.singles, -1)
        draws = self._words(block, "draws", 16 * sizes.logit_rows).view(DRAW)
        draws[: len(inputs.draws)] = inputs.draws
        if len(inputs.draws) < len(draws):
            draws[len(inputs.draws) :] = idle_draws(len(draws) - len(inputs.draws))
        tables = self._words(block, "block_tables", sizes.table_rows * sizes.table_width)
        tables.fill(spare_block)
        rows, width = batch.block_tables.shape
        last = np.full(rows, -1, np.int32)
        np.maximum.at(last, batch.sequences, batch.positions // block_tokens)
        # Entries past a sequence's end may hold anything, and no kernel is to read outside of the pool.
        used = np.arange(width, dtype=np.int32) <= last[:, None]
        np.copyto(tables.reshape(sizes.table_rows, sizes.table_width)[:rows, :width], batch.block_tables, where=used)

    def _write(self, block: Bytes, name: str, values: NDArray[np.int32], count: int, padding: int) -> None:
        words = self._words(block, name, count)
        words[: len(values)] = values
        words[len(values) :] = padding

    def _words(self, block: Bytes, name: str, count: int) -> NDArray[np.int32]:
        start = self.offsets[name]
        return block[start : start + 4 * count].view(np.int32)
