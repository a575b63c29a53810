"""The error function of float32 arrays, without SciPy.

Around each node of a fine grid it is its Taylor polynomial, whose coefficients come from `math.erf` and from
derivatives known in closed form. With nodes 1/64 apart and six terms the error is below 1e-12, far under the rounding
to float32.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.executor.reference.numbers import Array

_PER_UNIT = 64
_END = 4.0
"""Beyond it, 1 - erf(x) is less than half the spacing of float32 below 1."""


def _coefficients() -> NDArray[np.float64]:
    """[6, nodes]: the n-th derivative at each node, divided by n!."""
    nodes = np.arange(int(_END * _PER_UNIT) + 1) / _PER_UNIT
    values = np.array([math.erf(node) for node in nodes])
    slope = 2 / math.sqrt(math.pi) * np.exp(-nodes * nodes)
    # The derivatives of exp(-x²) are exp(-x²) times Hermite polynomials, signs alternating: H0..H4.
    square = nodes * nodes
    hermite = (
        np.ones_like(nodes),
        -2 * nodes,
        4 * square - 2,
        -(8 * square - 12) * nodes,
        (16 * square - 48) * square + 12,
    )
    terms = [values] + [slope * each / math.factorial(order) for order, each in enumerate(hermite, start=1)]
    return np.stack(terms)


_TERMS = _coefficients()


def erf(x: Array) -> NDArray[np.float32]:
    """The error function of each element; NaN stays NaN."""
    magnitude = np.minimum(np.abs(x).astype(np.float64), _END)
    known = np.where(np.isnan(magnitude), 0.0, magnitude)
    node = np.rint(known * _PER_UNIT).astype(np.int64)
    distance = known - node / _PER_UNIT
    result = np.zeros_like(known)
    for term in _TERMS[::-1]:
        result = result * distance + term[node]
    signed = np.copysign(result, x)
    return np.where(np.isnan(x), np.float32(np.nan), signed.astype(np.float32))
