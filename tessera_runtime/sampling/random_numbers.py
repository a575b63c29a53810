"""Random numbers that are a function of (seed, stream, index) and of nothing else.

A generator with a state would tie a request's draws to what ran before or beside it. A counter-based one has none: draw
number `index` can be made at any time, on any machine, after any restart. This is Philox-4x64 with 10 rounds (Salmon et
al., SC 2011).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_MULTIPLIER_0 = 0xD2E7470EE14C6C93
_MULTIPLIER_1 = 0xCA5A826395121157
_WEYL_0 = 0x9E3779B97F4A7C15
_WEYL_1 = 0xBB67AE8584CAA73B
_ROUNDS = 10

Block = tuple[int, int, int, int]


def philox(counter: Block, key: tuple[int, int]) -> Block:
    """Four 64-bit words for a 256-bit counter under a 128-bit key; both have their lowest word first."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0 = _MULTIPLIER_0 * c0
        product_1 = _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (product_1 >> 64) ^ c1 ^ k0,
            product_1 & _MASK,
            (product_0 >> 64) ^ c3 ^ k1,
            product_0 & _MASK,
        )
        k0 = (k0 + _WEYL_0) & _MASK
        k1 = (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, stream: int, index: int) -> float:
    """A number in [0, 1), a multiple of 2**-53: the draw for token number `index` of an answer."""
    return (philox((index, 0, 0, 0), (seed & _MASK, stream))[0] >> 11) * 2.0**-53


def uniforms(seed: int, stream: int, index: int, count: int) -> NDArray[np.float64]:
    """`uniform` for `count` indices in a row, made by NumPy's generator, which is the same Philox."""
    # NumPy's counts up before its first block.
    before = [(index - 1 >> shift) & _MASK for shift in (0, 64, 128, 192)]
    generator = np.random.Philox(counter=np.array(before, np.uint64), key=np.array([seed & _MASK, stream], np.uint64))
    words: NDArray[np.uint64] = generator.random_raw(4 * count)
    return (words[::4] >> np.uint64(11)) * 2.0**-53
