"""Chooses the next token of every row of a step's logits.

Whatever a row's token depends on is in the row and in its `SampledSequence`: greedy rows share one argmax, and every
drawn row is handled by itself with one uniform number of its own, so batch composition cannot change an answer. The
draw inverts the cumulative distribution over the tokens left, in order of their ids, in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.sampling.errors import LogitsNotFinite
from tessera_runtime.sampling.parameters import SamplingParameters
from tessera_runtime.sampling.random_numbers import uniform


class SampledSequence:
    """What the sampler has to know of one answer: its parameters and the tokens so far."""

    def __init__(
        self, parameters: SamplingParameters, prompt_ids: Iterable[int] = (), output_ids: Iterable[int] = ()
    ) -> None:
        self.parameters = parameters
        self.generated = 0
        """Tokens drawn so far, and so the index of the next draw."""
        self._counts: dict[int, int] = {}
        self._prompt = frozenset(prompt_ids) if parameters.repetition_penalty != 1.0 else frozenset()
        for token in output_ids:
            self.append(token)

    def append(self, token: int) -> None:
        """Notes a token of the answer. Every drawn token must be appended before the next is drawn."""
        self.generated += 1
        if self.parameters.penalizes:
            self._counts[token] = self._counts.get(token, 0) + 1

    def penalize(self, row: NDArray[np.float32]) -> None:
        """Applies logit_bias and the penalties to a row, in place."""
        parameters = self.parameters
        if parameters.logit_bias:
            tokens = np.fromiter(parameters.logit_bias.keys(), np.int64)
            row[tokens] += np.fromiter(parameters.logit_bias.values(), np.float32)
        if not parameters.penalizes:
            return
        if parameters.repetition_penalty != 1.0:
            seen = np.fromiter(sorted(self._prompt.union(self._counts)), np.int64)
            seen = seen[seen < row.size]
            values = row[seen]
            factor = np.float32(parameters.repetition_penalty)
            row[seen] = np.where(values < 0, values * factor, values / factor)
        if self._counts and (parameters.frequency_penalty or parameters.presence_penalty):
            said = np.fromiter(self._counts.keys(), np.int64)
            times = np.fromiter(self._counts.values(), np.float32)
            row[said] -= np.float32(parameters.frequency_penalty) * times + np.float32(parameters.presence_penalty)

    @property
    def changes_logits(self) -> bool:
        return bool(self.parameters.logit_bias) or self.parameters.penalizes


def sample(logits: NDArray[np.float32], sequences: Sequence[SampledSequence]) -> NDArray[np.int64]:
    """The next token of each row of `logits` [rows, vocabulary]; row i belongs to `sequences[i]`. `logits` is left as
    it is.

    Raises `LogitsNotFinite` if rows hold NaN or +Inf (before or after the penalties) or nothing but -Inf; it carries
    the other rows' tokens.
    """
    best = np.argmax(logits, axis=1).astype(np.int64)
    peaks = logits[np.arange(len(logits)), best]  # argmax stops at the first NaN, so a NaN in the row shows up here
    bad = ~np.isfinite(peaks)
    tokens: NDArray[np.int64] = best
    for index, sequence in enumerate(sequences):
        if bad[index] or (sequence.parameters.greedy and not sequence.changes_logits):
            continue
        row = logits[index]
        if sequence.changes_logits:
            row = row.copy()
            sequence.penalize(row)
            peak = int(np.argmax(row))
            if not np.isfinite(row[peak]):
                bad[index] = True
                continue
            tokens[index] = peak
        if not sequence.parameters.greedy:
            tokens[index] = _draw(row, sequence)
    if bad.any():
        tokens[bad] = -1
        rows = tuple(int(row) for row in np.flatnonzero(bad))
        raise LogitsNotFinite(
            f"The model's logits are not finite for {len(rows)} of {len(logits)} sequences.",
            hint="Verify the package with `tessera verify`.",
            rows=rows,
            tokens=tokens,
        )
    return tokens


def _draw(row: NDArray[np.float32], sequence: SampledSequence) -> int:
    parameters = sequence.parameters
    ids: NDArray[np.int64] | None = None  # None: all tokens
    if 0 < parameters.top_k < row.size:
        ids = _top(row, parameters.top_k)
        row = row[ids]
    scaled = (row.astype(np.float64) - float(row.max())) / parameters.temperature
    weights = np.exp(scaled)
    if parameters.top_p < 1.0:
        kept = _nucleus(row, weights, parameters.top_p)
        ids = kept if ids is None else ids[kept]
        weights = weights[kept]
    if parameters.min_p > 0.0:
        # The likeliest token has weight 1 and survives every filter.
        kept = np.flatnonzero(weights >= parameters.min_p)
        ids = kept if ids is None else ids[kept]
        weights = weights[kept]
    cumulative = np.cumsum(weights)
    point = uniform(parameters.seed, parameters.stream, sequence.generated) * cumulative[-1]
    chosen = min(int(np.searchsorted(cumulative, point, side="right")), len(cumulative) - 1)
    while weights[chosen] == 0.0:  # only by rounding at the far end can a token of probability 0 be hit
        chosen -= 1
    return chosen if ids is None else int(ids[chosen])


def _top(row: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The ids of the `count` highest values, ascending; of equal ones at the border, the lowest ids."""
    border = np.partition(row, row.size - count)[row.size - count]
    above = np.flatnonzero(row > border)
    equal = np.flatnonzero(row == border)[: count - len(above)]
    kept: NDArray[np.int64] = np.sort(np.concatenate([above, equal]))
    return kept


def _nucleus(row: NDArray[np.float32], weights: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """The ids, ascending, of the fewest likeliest tokens that hold `top_p` of the probability.

    Of equal ones the lowest ids come first. Only values are sorted: how many are needed does not depend on whose they
    are.
    """
    cumulative = np.cumsum(np.sort(weights)[::-1])
    count = int(np.searchsorted(cumulative, top_p * cumulative[-1], side="left")) + 1
    return _top(row, min(count, row.size))
