"""Checks the inputs of a step before an executor sees them: native code reads memory wherever they point."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.errors import StepInvalid, StepTooLarge
from tessera_runtime.executor.interface import ExecutorLimits, StepBatch


def check_batch(batch: StepBatch, limits: ExecutorLimits, blocks: int, seats: int = 0) -> None:
    """Raises StepTooLarge or StepInvalid unless every index stays within the program's limits and `blocks`.

    With `seats`, token ids may be `-1 - seat`: what was drawn last for that seat.
    """
    for name, dimensions in (
        ("token_ids", 1),
        ("positions", 1),
        ("sequences", 1),
        ("block_tables", 2),
        ("logit_rows", 1),
    ):
        array = getattr(batch, name)
        if array.dtype != np.int32 or array.ndim != dimensions or not array.flags.c_contiguous:
            raise StepInvalid(
                f"A step's {name} should be a C-contiguous int32 array of {dimensions} dimension(s), "
                f"not {array.dtype} of shape {array.shape}."
            )
    tokens = len(batch.token_ids)
    if not 1 <= tokens <= limits.max_tokens:
        raise StepTooLarge(
            f"A step has 1 to {limits.max_tokens} tokens, and this one has {tokens}.",
            hint="Split it into several steps.",
        )
    if len(batch.positions) != tokens or len(batch.sequences) != tokens:
        raise StepInvalid(
            f"A step of {tokens} tokens needs as many positions and sequences, "
            f"and has {len(batch.positions)} and {len(batch.sequences)}."
        )
    if len(batch.logit_rows) > tokens:
        raise StepInvalid(f"A step of {tokens} tokens has no {len(batch.logit_rows)} rows of logits.")
    _check_range("token_ids", batch.token_ids, limits.vocab_size, -seats)
    _check_range("sequences", batch.sequences, len(batch.block_tables))
    _check_range("logit_rows", batch.logit_rows, tokens)
    positions = batch.positions
    if int(positions.max()) >= limits.max_model_len:
        raise StepTooLarge(
            f"Positions reach {int(positions.max())}, and the program ends at {limits.max_model_len - 1}.",
            hint="Pack the model with a larger --max-model-len.",
        )
    _check_range("positions", positions, limits.max_model_len)
    if tokens > 1 and np.any((batch.sequences[1:] == batch.sequences[:-1]) & (positions[1:] <= positions[:-1])):
        raise StepInvalid("The tokens of a sequence must stand in ascending position.")
    _check_tables(batch, limits.block_tokens, blocks)


def _check_tables(batch: StepBatch, block_tokens: int, blocks: int) -> None:
    tables = batch.block_tables
    width, furthest = tables.shape[1], int(batch.positions.max())
    if furthest // block_tokens >= width:
        raise StepInvalid(
            f"The block tables have {width} entries per sequence, and position {furthest} needs entry "
            f"{furthest // block_tokens}."
        )
    if not _reach_past(tables, blocks):
        return
    # Entries behind a sequence's last are not read, and may be anything.
    last = np.full(len(tables), -1, np.int32)
    np.maximum.at(last, batch.sequences, batch.positions // block_tokens)
    read = tables[np.arange(width, dtype=np.int32) <= last[:, None]]
    if len(read) and not 0 <= int(read.min()) <= int(read.max()) < blocks:
        wrong = int(read.min()) if read.min() < 0 else int(read.max())
        raise StepInvalid(f"The block tables name block {wrong}, and the cache has blocks 0 to {blocks - 1}.")


def _reach_past(values: NDArray[np.int32], end: int) -> bool:
    """Whether any lies outside of 0 to `end` - 1. Seen as unsigned, negative numbers are the largest."""
    return values.size > 0 and int(np.maximum.reduce(values.view(np.uint32), axis=None)) >= end


def _check_range(name: str, values: NDArray[np.int32], end: int, start: int = 0) -> None:
    if _reach_past(values if start == 0 else values - np.int32(start), end - start):
        wrong = int(values.min()) if values.min() < start else int(values.max())
        raise StepInvalid(f"A step's {name} must lie in {start} to {end - 1}, and {wrong} does not.")
