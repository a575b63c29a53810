"""An executor small enough to see through: logits are a fixed function of the tokens so far, which it keeps in a paged
cache.
"""

from __future__ import annotations

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.executor.interface import ExecutorLimits, StepBatch


class ToyExecutor:
    """Implements `interface.Executor`; it reads every token through the block table, as a real one does."""

    description = "toy"

    def __init__(
        self,
        vocab_size: int = 50,
        max_tokens: int = 8,
        max_model_len: int = 64,
        block_tokens: int = 4,
        script: list[int] | None = None,
    ) -> None:
        self.limits = ExecutorLimits(max_tokens, max_model_len, vocab_size, block_tokens, 4 * block_tokens)
        self.steps: list[StepBatch] = []
        self.closed = False
        self.script = script
        """If given: the token after `n` tokens is `script[n]`, with certainty."""
        self._table = np.random.default_rng(7).standard_normal((vocab_size, vocab_size))
        self._cache = np.empty((0, block_tokens), np.int32)

    def allocate_cache(self, blocks: int) -> None:
        self._cache = np.full((blocks, self.limits.block_tokens), -1, np.int32)

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        self.steps.append(batch)
        assert 1 <= len(batch.token_ids) <= self.limits.max_tokens
        assert all(array.dtype == np.int32 for array in vars(batch).values())
        size = self.limits.block_tokens
        tables = batch.block_tables
        for token, position, sequence in zip(batch.token_ids, batch.positions, batch.sequences, strict=True):
            assert position < self.limits.max_model_len
            self._cache[tables[sequence, position // size], position % size] = token
        logits = np.empty((len(batch.logit_rows), self.limits.vocab_size), np.float32)
        for index, row in enumerate(batch.logit_rows):
            position, table = batch.positions[row], tables[batch.sequences[row]]
            prefix = np.array([self._cache[table[p // size], p % size] for p in range(position + 1)])
            assert (prefix >= 0).all()
            logits[index] = self.expected(prefix.tolist())
        return logits

    def expected(self, prefix: list[int]) -> NDArray[np.float32]:
        """The logits after these tokens, without any cache."""
        if self.script is not None:
            scripted: NDArray[np.float32] = np.zeros(self.limits.vocab_size, np.float32)
            scripted[self.script[len(prefix)]] = 50.0
            return scripted
        weights = 0.5 ** np.arange(len(prefix) - 1, -1, -1)
        logits: NDArray[np.float32] = (weights @ self._table[prefix]).astype(np.float32)
        return logits

    def trace(self, batch: StepBatch) -> list[tuple[str, NDArray[np.float32]]]:
        return []

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> ToyExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
