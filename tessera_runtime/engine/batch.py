"""Turns the scheduler's work into the arrays of a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tessera_runtime.executor.interface import StepBatch
from tessera_runtime.scheduler.scheduler import Work


class BatchBuilder:
    """Keeps the block tables of all seats between steps, so that a step copies only what is new."""

    def __init__(self, max_sequences: int, table_width: int) -> None:
        self._tables = np.zeros((max_sequences, table_width), np.int32)

    def build(self, plan: Sequence[Work]) -> StepBatch:
        """The rows of logits are those of `rows_of` for each work, one after another."""
        ids: list[int] = []
        counts = []
        starts = []
        seats = []
        rows: list[int] = []
        width = 1
        for work in plan:
            sequence, start, count = work.sequence, work.start, work.count
            blocks = sequence.blocks
            if sequence.synced < len(blocks):
                self._tables[sequence.seat, sequence.synced : len(blocks)] = blocks[sequence.synced :]
                sequence.synced = len(blocks)
            width = max(width, len(blocks))
            wanted = rows_of(work)
            rows.extend(range(len(ids) + count - wanted, len(ids) + count))
            if count == 1:
                ids.append(sequence.tokens[start])
            else:
                ids += sequence.tokens[start : start + count]
            counts.append(count)
            starts.append(start)
            seats.append(sequence.seat)
        of_tokens, positions = np.arange(len(plan), dtype=np.int32), np.array(starts, np.int32)
        if len(ids) > len(plan):
            first = np.cumsum(counts, dtype=np.int32) - np.array(counts, np.int32)
            of_tokens = np.repeat(of_tokens, counts)
            positions = np.arange(len(ids), dtype=np.int32) + (positions - first)[of_tokens]
        return StepBatch(
            token_ids=np.array(ids, np.int32),
            positions=positions,
            sequences=of_tokens,
            block_tables=np.ascontiguousarray(self._tables[seats, :width]),
            logit_rows=np.array(rows, np.int32),
        )


def rows_of(work: Work) -> int:
    """How many rows of logits the work needs: its last ones."""
    if work.sequence.every_row:
        return work.count
    return int(work.draws)
