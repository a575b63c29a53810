"""Cuts the tokens of a step into query tiles: neighbours of one sequence that attention works on together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def cut_tiles(
    sequences: NDArray[np.int32], positions: NDArray[np.int32], tile_tokens: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Tiles [Q, 2] of at least two tokens, as (first row, count), and the rows of the single tokens [D].

    Those with the longest contexts come first: what is begun last should not take longest.
    """
    tokens = len(sequences)
    breaks = (sequences[1:] != sequences[:-1]) | (positions[1:] != positions[:-1] + 1)
    starts = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(breaks) + 1])
    lengths = np.diff(np.append(starts, tokens))
    pieces = -(-lengths // tile_tokens)
    run = np.repeat(np.arange(len(starts)), pieces)
    number = np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = starts[run] + number * tile_tokens
    count = np.minimum(lengths[run] - number * tile_tokens, tile_tokens)
    longest = np.argsort(-positions[first], kind="stable")
    first, count = first[longest], count[longest]
    many = count > 1
    tiles = np.stack([first[many], count[many]], axis=1)
    return tiles.astype(np.int32), first[~many].astype(np.int32)
