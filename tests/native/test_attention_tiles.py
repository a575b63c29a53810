"""How a step's tokens are cut for attention."""

from __future__ import annotations

import numpy as np
import pytest

from tessera_runtime.executor.cpu.attention_tiles import TILE_TOKENS, attention_tiles


def tiles_of(positions: list[int], sequences: list[int]) -> list[list[int]]:
    found = attention_tiles(np.array(positions, np.int32), np.array(sequences, np.int32))
    assert found.dtype == np.int32 and found.flags.c_contiguous
    return found.tolist()


@pytest.mark.parametrize(
    ("positions", "sequences", "expected"),
    [
        ([7], [0], [[0, 1]]),
        ([0, 1, 2], [0, 0, 0], [[0, 3]]),
        ([3, 4, 5, 6], [0, 0, 1, 1], [[2, 2], [0, 2]]),
        ([3, 5, 6], [0, 0, 0], [[1, 2], [0, 1]]),
        (list(range(40)), [2] * 40, [[32, 8], [16, 16], [0, 16]]),
        ([9, 200, 9], [0, 1, 2], [[1, 1], [0, 1], [2, 1]]),
    ],
)
def test_tiles(positions: list[int], sequences: list[int], expected: list[list[int]]) -> None:
    assert tiles_of(positions, sequences) == expected


def test_every_token_is_in_one_tile_of_consecutive_tokens() -> None:
    random = np.random.default_rng(3)
    for _ in range(50):
        lengths = random.integers(1, 40, random.integers(1, 6))
        starts = random.integers(0, 100, len(lengths))
        positions = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
        sequences = np.repeat(random.permutation(len(lengths)), lengths)
        seen = []
        for first, count in tiles_of(positions.tolist(), sequences.tolist()):
            assert 1 <= count <= TILE_TOKENS
            tokens = slice(first, first + count)
            assert len(set(sequences[tokens])) == 1 and (np.diff(positions[tokens]) == 1).all()
            seen += range(first, first + count)
        assert sorted(seen) == list(range(len(positions)))
