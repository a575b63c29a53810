"""Cuts a step's tokens for attention: tokens of one sequence that follow each other read the same keys and values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TILE_TOKENS = 16
_ONE_TOKEN = np.array([[0, 1]], np.int32)


def attention_tiles(positions: NDArray[np.int32], sequences: NDArray[np.int32]) -> NDArray[np.int32]:
    """The program's input `tiles`: (first token, count) of at most sixteen tokens each that stand next to each other,
    are of one sequence and have positions that follow each other.

    Every token is in one tile. Those with the longest context come first, so that threads that share them end together.
    """
    count = len(positions)
    if count == 1:
        return _ONE_TOKEN
    breaks = np.empty(count, np.bool_)
    breaks[0] = True
    np.not_equal(sequences[1:], sequences[:-1], out=breaks[1:])
    breaks[1:] |= positions[1:] != positions[:-1] + 1
    runs = np.flatnonzero(breaks)
    if len(runs) < count:
        # Within a run, a tile starts at every sixteenth token.
        lengths = np.diff(runs, append=count)
        within = np.arange(count) - np.repeat(runs, lengths)
        runs = np.flatnonzero(within % TILE_TOKENS == 0)
    tiles = np.empty((len(runs), 2), np.int32)
    tiles[:, 0] = runs
    tiles[:-1, 1] = np.diff(runs)
    tiles[-1, 1] = count - runs[-1]
    return np.ascontiguousarray(tiles[np.argsort(-positions[runs], kind="stable")])
