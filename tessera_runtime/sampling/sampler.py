"""Chooses the next token of every row of a step's logits.

Whatever a row's token depends on is in the row and in its `SampledSequence`: every row is worked on by itself, by
operations that know nothing of the others, with one uniform number of its own. So the batch cannot change an answer.

The draw inverts the cumulative distribution over the tokens left, in order of their ids. To be fast over large
vocabularies it is found in two stages: weights of all tokens in float32 with sums of runs of them (`weighing`), then,
in float64, the few tokens that matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.sampling.errors import LogitsNotFinite
from tessera_runtime.sampling.sequence import SampledSequence
from tessera_runtime.sampling.weighing import Rows, RowSampler, Weigh, Weights, weigh_in_numpy

SMALLEST_TEMPERATURE = 1e-6
"""Below this a temperature is as good as this, and float32 could not divide by it."""
_HEAVY_RUNS = 16
"""Runs among which a nucleus is looked for first."""
_SAMPLED = 32
_RESERVE = 0.8
_SLACK = 1e-4
"""Candidates are chosen by float32 sums a little more generously than needed; float64 then decides."""


Runs: TypeAlias = "tuple[NDArray[np.float32], int]"
"""The largest logit of each run of a row, or of each row, NaN where one of them is; and how long runs are."""


def sample(
    logits: NDArray[np.float32],
    sequences: Sequence[SampledSequence],
    peaks: Runs | None = None,
    weigh: Weigh | None = None,
    row_sampler: RowSampler | None = None,
) -> NDArray[np.int64]:
    """The next token of each row of `logits` [rows, vocabulary]; row i belongs to `sequences[i]`. `logits` is left as
    it is. With `peaks`, of all rows, the answer is the same, and only the runs of logits that matter are read.
    `weigh` and `row_sampler` are what an executor has for this (`interface.WeighingExecutor`).

    Raises `LogitsNotFinite` if rows hold NaN or +Inf (before or after the penalties) or nothing but -Inf; it carries
    the other rows' tokens.
    """
    # The first of the highest; argmax stops at the first NaN, so a NaN in the row shows up here.
    tokens = np.argmax(logits, axis=1).astype(np.int64) if peaks is None else _highest(logits, peaks)
    highest = logits[np.arange(len(logits)), tokens]
    tokens[~np.isfinite(highest)] = -1
    drawing = [
        index
        for index, sequence in enumerate(sequences)
        if (sequence.changes_logits or not sequence.parameters.greedy) and tokens[index] >= 0
    ]
    if drawing:
        with np.errstate(all="ignore"):
            if row_sampler is not None:
                drawing = _draw_together(logits, highest, sequences, drawing, row_sampler, tokens)
            for index in drawing:
                runs = None if peaks is None else (peaks[0][index], peaks[1])
                tokens[index] = _sample_row(
                    logits[index], int(tokens[index]), sequences[index], runs, weigh or weigh_in_numpy
                )
    if tokens.min(initial=0) < 0:
        failed = np.flatnonzero(tokens < 0)
        raise LogitsNotFinite(
            f"The model's logits are not finite for {len(failed)} of {len(logits)} sequences.",
            hint="Verify the package with `tessera verify`.",
            rows=tuple(failed.tolist()),
            tokens=tokens,
        )
    return tokens


def _draw_together(
    logits: NDArray[np.float32],
    highest: NDArray[np.float32],
    sequences: Sequence[SampledSequence],
    drawing: Sequence[int],
    row_sampler: RowSampler,
    tokens: NDArray[np.int64],
) -> list[int]:
    """Fills in the tokens of those rows that an executor can do at once, and returns the others."""

    def rows(indices: list[int]) -> Rows:
        chosen = np.array(indices)
        temperatures = np.array([sequences[index].parameters.temperature for index in indices], np.float64)
        return Rows(logits, chosen, highest[chosen], np.maximum(temperatures, SMALLEST_TEMPERATURE))

    whole, nuclei, left = [], [], []
    for index in drawing:
        sequence = sequences[index]
        if sequence.changes_logits:
            left.append(index)
        elif sequence.parameters.draws_from_all:
            whole.append(index)
        elif sequence.parameters.draws_from_nucleus:
            nuclei.append(index)
        else:
            left.append(index)
    if whole:
        tokens[whole] = row_sampler.draw(rows(whole), np.array([sequences[index].draw() for index in whole]))
    if nuclei:
        left += _draw_from_nuclei(rows(nuclei), [sequences[index] for index in nuclei], row_sampler, tokens)
    return left


def _draw_from_nuclei(
    rows: Rows, sequences: Sequence[SampledSequence], row_sampler: RowSampler, tokens: NDArray[np.int64]
) -> list[int]:
    found, totals = row_sampler.nuclei(rows, np.array([sequence.parameters.top_p for sequence in sequences]))
    lengths = np.array([0 if each is None else len(each[0]) for each in found])
    values = np.concatenate([each[1] for each in found if each is not None] or [rows.peaks[:0]], dtype=np.float64)
    peaks = rows.peaks.astype(np.float64)
    exact = np.exp((values - np.repeat(peaks, lengths)) / np.repeat(rows.temperatures, lengths))
    left = []
    start = 0
    for row, (sequence, candidates) in enumerate(zip(sequences, found, strict=True)):
        index = int(rows.indices[row])
        if candidates is None:
            left.append(index)
            continue
        ids = candidates[0]
        end = start + len(ids)
        tokens[index] = _draw_among(ids, exact[start:end], float(totals[row]), sequence)
        start = end
    return left


def _highest(logits: NDArray[np.float32], peaks: Runs) -> NDArray[np.int64]:
    highest, width = peaks
    runs, rows = np.argmax(highest, axis=1), np.arange(len(logits))
    if logits.shape[1] % width == 0 and logits.flags.c_contiguous:
        within = np.argmax(logits.reshape(len(logits), -1, width)[rows, runs], axis=1)
    else:
        starts = runs * width
        within = np.array(
            [np.argmax(logits[row, start : start + width]) for row, start in zip(rows, starts, strict=True)]
        )
    return (runs * width + within).astype(np.int64)


def _ids_from(row: NDArray[np.float32], border: np.float32, runs: Runs | None) -> NDArray[np.int64]:
    """The ids, ascending, of the logits that reach a border."""
    if runs is None:
        return np.flatnonzero(row >= border)
    peaks, width = runs
    chosen = np.flatnonzero(peaks >= border)
    ids = (chosen[:, None] * width + np.arange(width)).reshape(-1)
    if len(ids) and ids[-1] >= row.size:
        ids = ids[ids < row.size]
    return ids[row[ids] >= border]


def _sample_row(row: NDArray[np.float32], best: int, sequence: SampledSequence, runs: Runs | None, weigh: Weigh) -> int:
    """A token, or -1. `best` is the row's highest."""
    if sequence.changes_logits:
        row, runs = row.copy(), None
        sequence.penalize(row)
        best = int(np.argmax(row))
        if not np.isfinite(row[best]):
            return -1
    if sequence.parameters.greedy:
        return best
    return _draw(row, row[best], sequence, runs, weigh)


def _draw(
    row: NDArray[np.float32], peak: np.float32, sequence: SampledSequence, runs: Runs | None, weigh: Weigh
) -> int:
    parameters = sequence.parameters
    temperature = max(parameters.temperature, SMALLEST_TEMPERATURE)
    if 0 < parameters.top_k < row.size:
        ids = _top_of_row(row, parameters.top_k, runs)
        total = 0.0
    elif parameters.top_p < 1.0:
        weights = weigh(row, float(peak), temperature)
        total = float(weights[1].sum(dtype=np.float64))
        ids = _nucleus_candidates(weights, parameters.top_p, total)
    elif parameters.min_p > 0.0:
        border = float(peak) + temperature * float(np.log(parameters.min_p))
        ids = _ids_from(row, np.float32(border - _SLACK * (1.0 + abs(border))), runs)
        total = 0.0
    else:
        return _draw_any(weigh(row, float(peak), temperature), sequence.draw())
    exact = np.exp((row[ids].astype(np.float64) - float(peak)) / temperature)
    return _draw_among(ids, exact, total, sequence)


def _draw_among(ids: NDArray[np.int64], exact: NDArray[np.float64], total: float, sequence: SampledSequence) -> int:
    """One of `ids`, ascending, by their weights; `total` is that of all the vocabulary, or 0 if these are all that
    count."""
    parameters = sequence.parameters
    if parameters.top_p < 1.0:
        kept = _nucleus(exact, parameters.top_p * (total or float(exact.sum())))
        ids, exact = ids[kept], exact[kept]
    if parameters.min_p > 0.0:
        # The likeliest token has weight 1 and survives every filter.
        kept = np.flatnonzero(exact >= parameters.min_p)
        ids, exact = ids[kept], exact[kept]
    return int(ids[_invert(exact, sequence.draw() * float(exact.sum()))])


def _draw_any(weights: Weights, uniform: float) -> int:
    """A token of the whole vocabulary."""
    values, sums, columns = weights
    ends = np.cumsum(sums, dtype=np.float64)
    point = uniform * float(ends[-1])
    run = min(int(np.searchsorted(ends, point, side="right")), len(ends) - 1)
    while run and ends[run] == ends[run - 1]:  # only by rounding at the far end can a run without weight be hit
        run -= 1
    before = float(ends[run - 1]) if run else 0.0
    first = run * columns
    return first + _invert(values[first : first + columns].astype(np.float64), point - before)


def _invert(weights: NDArray[np.float64], point: float) -> int:
    """The index at which the cumulative sum passes `point`."""
    ends = np.cumsum(weights)
    chosen = min(int(np.searchsorted(ends, point, side="right")), len(ends) - 1)
    while weights[chosen] == 0.0:  # only by rounding at the far end can a token of probability 0 be hit
        chosen -= 1
    return chosen


def _top_of_row(row: NDArray[np.float32], count: int, runs: Runs | None) -> NDArray[np.int64]:
    """`_top` of a row, of which only runs are read that may hold some of them."""
    if runs is None or count >= len(runs[0]):
        return _top(row, count)
    # So many runs have a logit of at least this, so none below is among the highest.
    ids = _ids_from(row, np.partition(runs[0], len(runs[0]) - count)[len(runs[0]) - count], runs)
    return ids[_top(row[ids], count)]


def _top(row: NDArray[np.float32] | NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The ids of the `count` highest values, ascending; of equal ones at the border, the lowest ids."""
    border = np.partition(row, row.size - count)[row.size - count]
    above = np.flatnonzero(row > border)
    equal = np.flatnonzero(row == border)[: count - len(above)]
    kept: NDArray[np.int64] = np.sort(np.concatenate([above, equal]))
    return kept


def _nucleus_candidates(weights: Weights, top_p: float, total: float) -> NDArray[np.int64]:
    """All of the nucleus and few others, ascending."""
    values, sums, columns = weights
    wanted = top_p * total * (1.0 + _SLACK)
    if len(sums) > _HEAVY_RUNS:
        border = np.partition(sums, len(sums) - _HEAVY_RUNS)[len(sums) - _HEAVY_RUNS]
        runs = np.flatnonzero(sums >= border)
        ids = (runs[:, None] * columns + np.arange(columns)).reshape(-1)
        if ids[-1] >= values.size:
            ids = ids[ids < values.size]
        found = values[ids]
        last = _last_of_nucleus(found, wanted)
        # A token weighs no more than its run: whatever is heavier than all other runs has been found.
        if last is not None and last >= border:
            return ids[found >= last]
    tail = (1.0 - top_p) * total * (1.0 - _SLACK)
    # All tokens below the second border together have less than `tail`, so the nucleus is above it for certain. The
    # first is where the tail ends in a sample of the tokens, with some reserve; nearly always the nucleus is above it.
    ordered = np.sort(values[::_SAMPLED])
    lightest = int(np.searchsorted(np.cumsum(ordered, dtype=np.float64), _RESERVE * tail / _SAMPLED))
    for border in (ordered[min(lightest, len(ordered) - 1)], np.float32(tail / values.size)):
        ids = np.flatnonzero(values >= border)
        found = values[ids]
        if (last := _last_of_nucleus(found, wanted)) is not None:
            return ids[found >= last]
    return ids


def _last_of_nucleus(weights: NDArray[np.float32], wanted: float) -> np.float32 | None:
    """A little less than the lightest of the heaviest weights that reach a sum, or None if all do not."""
    ordered = np.sort(weights)[::-1]
    cumulative = np.cumsum(ordered, dtype=np.float64)
    if not len(ordered) or cumulative[-1] < wanted:
        return None
    last = ordered[int(np.searchsorted(cumulative, wanted, side="left"))]
    return np.float32(last * np.float32(1.0 - _SLACK))


def _nucleus(weights: NDArray[np.float64], wanted: float) -> NDArray[np.int64]:
    """The indices, ascending, of the fewest heaviest that reach the sum `wanted`; of equal ones the lowest first."""
    ordered = np.sort(weights)[::-1]
    count = int(np.searchsorted(np.cumsum(ordered), wanted, side="left")) + 1
    if count >= len(weights):
        return np.arange(len(weights))
    kept = np.flatnonzero(weights >= ordered[count - 1])
    return kept if len(kept) == count else _top(weights, count)
