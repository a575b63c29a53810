"""An executor whose logits are a hash of the tokens so far, chained through the paged cache.

Every slot of the cache holds the hash of the prefix that ends there, so a block that belongs to somebody else, a slot
that was overwritten or a token that was computed too early or twice elsewhere changes every later answer.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.executor.batch_check import check_batch
from tessera_runtime.executor.interface import ExecutorLimits, StepBatch

_PRIME = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def chain(previous: int, token: int) -> int:
    """The hash of a prefix from that of the prefix before and the last token."""
    value = (previous ^ (token + 1) * _PRIME) & _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    return value ^ value >> 27


class HashExecutor:
    """Implements `interface.Executor`."""

    description = "hash"

    def __init__(self, max_tokens: int = 16, max_model_len: int = 64, vocab_size: int = 40, block_tokens: int = 4):
        self.limits = ExecutorLimits(max_tokens, max_model_len, vocab_size, block_tokens, 8 * block_tokens)
        self.steps = 0
        self.computed = 0
        self.widest = 0
        self.before_step: Callable[[StepBatch], None] = lambda batch: None
        self.after_step: Callable[[StepBatch, NDArray[np.float32]], None] = lambda batch, logits: None
        self._slots: list[list[int]] = []
        self._columns = np.arange(1, vocab_size + 1, dtype=np.uint64) * np.uint64(_PRIME | 1)

    def allocate_cache(self, blocks: int) -> None:
        self._slots = [[0] * self.limits.block_tokens for _ in range(blocks)]

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        check_batch(batch, self.limits, len(self._slots))
        self.before_step(batch)
        size = self.limits.block_tokens
        tables = batch.block_tables.tolist()
        hashes = []
        written: set[tuple[int, int]] = set()
        columns = (batch.token_ids.tolist(), batch.positions.tolist(), batch.sequences.tolist())
        for token, position, sequence in zip(*columns, strict=True):
            table = tables[sequence]
            before = position - 1
            previous = self._slots[table[before // size]][before % size] if position else 0
            place = (table[position // size], position % size)
            assert place not in written, "two tokens of a step share a slot"
            written.add(place)
            hashes.append(chain(previous, token))
            self._slots[place[0]][place[1]] = hashes[-1]
        self.steps += 1
        self.computed += len(hashes)
        self.widest = max(self.widest, len(hashes))
        logits = self.logits([hashes[row] for row in batch.logit_rows])
        self.after_step(batch, logits)
        return logits

    def logits(self, hashes: list[int]) -> NDArray[np.float32]:
        mixed = np.array(hashes, np.uint64)[:, None] * self._columns
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        return ((mixed >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24) * 12).astype(np.float32)

    def trace(self, batch: StepBatch) -> list[tuple[str, NDArray[np.float32]]]:
        return []

    def close(self) -> None:
        return None

    def __enter__(self) -> HashExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
