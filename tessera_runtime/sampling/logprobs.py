"""Log-probabilities of the model's own distribution, before temperature, penalties, bias and filters."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.errors import NumericalError

MAX_TOP = 20


def log_normalizer(row: NDArray[np.float32]) -> float:
    """log(sum(exp(row))), summed in float64. Raises `NumericalError` if the row holds NaN, +Inf or nothing but -Inf."""
    peak = float(row.max())
    if not math.isfinite(peak):
        raise NumericalError("The model's logits are not finite.", hint="Verify the package with `tessera verify`.")
    return peak + float(np.log(np.exp(row - np.float32(peak)).sum(dtype=np.float64)))


def token_logprobs(row: NDArray[np.float32], token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """The log-probability of `token`, and the `top` likeliest tokens with theirs: the likeliest first, of equal
    ones the lowest id.
    """
    normalizer = log_normalizer(row)
    chosen = float(row[token]) - normalizer
    if not top:
        return chosen, []
    border = np.partition(row, row.size - top)[row.size - top] if top < row.size else row.min()
    candidates = np.flatnonzero(row >= border)
    best = candidates[np.argsort(-row[candidates], kind="stable")[:top]]
    return chosen, [(token, float(row[token]) - normalizer) for token in best.tolist()]
