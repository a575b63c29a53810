"""The sampler's short cuts against the definition, written out over the whole vocabulary in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tessera_runtime.sampling.errors import LogitsNotFinite
from tessera_runtime.sampling.logprobs import token_logprobs
from tessera_runtime.sampling.parameters import SamplingParameters
from tessera_runtime.sampling.random_numbers import uniform, uniforms
from tessera_runtime.sampling.sampler import Runs, sample
from tessera_runtime.sampling.sequence import SampledSequence, TokenTally
from tessera_runtime.sampling.weighing import RUN, Weigh, Weights


def by_definition(row: NDArray[np.float32], parameters: SamplingParameters, index: int) -> int:
    exact = row.astype(np.float64)
    weights = np.exp((exact - exact.max()) / parameters.temperature)
    order = np.lexsort((np.arange(len(row)), -exact))
    kept = order[: parameters.top_k] if parameters.top_k else order
    if parameters.top_p < 1.0:
        sums = np.cumsum(weights[kept])
        kept = kept[: int(np.searchsorted(sums, parameters.top_p * sums[-1])) + 1]
    kept = np.sort(kept[weights[kept] >= parameters.min_p])
    sums = np.cumsum(weights[kept])
    point = uniform(parameters.seed, parameters.stream, index) * sums[-1]
    return int(kept[min(int(np.searchsorted(sums, point, side="right")), len(kept) - 1)])


FILTERS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.0, "top_p": 0.9},
    {"top_p": 0.1},
    {"top_p": 0.999},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.02},
    {"min_p": 0.05, "temperature": 0.7},
    {"top_p": 0.95, "min_p": 0.001},
]


def peaks_of(logits: NDArray[np.float32], columns: int | None) -> Runs | None:
    if columns is None:
        return None
    return np.maximum.reduceat(logits, np.arange(0, logits.shape[1], columns), axis=1), columns


def weigh_in_short_runs(row: NDArray[np.float32], peak: float, temperature: float) -> Weights:
    """What an executor may have: other runs, and sums that NumPy would not make."""
    weights = np.exp((row - np.float32(peak)) / np.float32(temperature), dtype=np.float32)
    return weights, np.add.reduceat(weights.astype(np.float64), np.arange(0, row.size, 16)).astype(np.float32), 16


@pytest.mark.parametrize("columns", [None, 64, 10])
@pytest.mark.parametrize("weigh", [None, weigh_in_short_runs])
@pytest.mark.parametrize("size", [5, RUN - 1, 3 * RUN, 5 * RUN + 7, 19 * RUN])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_a_draw_is_the_one_of_the_definition(
    size: int, filters: dict[str, float], columns: int | None, weigh: Weigh | None
) -> None:
    random = np.random.default_rng(size)
    for index, spread in enumerate([0.0, 0.1, 1.0, 3.0, 8.0, 30.0] * 4):
        row = (random.standard_normal(size) * spread).astype(np.float32)
        if index % 4 == 3:
            row = np.round(row)  # many equal values
        parameters = SamplingParameters(seed=index, **filters)  # type: ignore[arg-type]
        sequence = SampledSequence(parameters)
        sequence.generated = index
        found = sample(row[None], [sequence], peaks_of(row[None], columns), weigh)
        assert found[0] == by_definition(row, parameters, index)


@pytest.mark.parametrize("size", [64 * 12, 64 * 12 + 5])
def test_peaks_lead_to_the_first_of_the_highest_and_to_what_is_not_finite(size: int) -> None:
    random = np.random.default_rng(size)
    logits = np.round(random.standard_normal((40, size))).astype(np.float32)
    logits[3] = -np.inf
    greedy = [SampledSequence(SamplingParameters(temperature=0.0)) for _ in logits]
    logits[3, size - 1] = 1.0
    found = sample(logits, greedy, peaks_of(logits, 64))
    assert found.tolist() == np.argmax(logits, axis=1).tolist()
    logits[7, size - 1] = np.nan
    logits[9, 70] = np.inf
    with pytest.raises(LogitsNotFinite) as caught:
        sample(logits, greedy, peaks_of(logits, 64))
    assert caught.value.rows == (7, 9)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6, 1e-3])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}], ids=str)
def test_a_tiny_temperature_takes_the_best(temperature: float, filters: dict[str, float]) -> None:
    row = np.random.default_rng(0).standard_normal((1, 3000)).astype(np.float32)
    sequence = SampledSequence(SamplingParameters(temperature=temperature, **filters))  # type: ignore[arg-type]
    assert sample(row, [sequence])[0] == row.argmax()


def test_draws_made_in_advance_are_those_of_their_index() -> None:
    for seed, stream, start in ((0, 0, 0), (7, 3, 1), (2**64 - 1, 1, 60), (-5, 0, 2**40)):
        expected = [uniform(seed, stream, start + index) for index in range(10)]
        assert uniforms(seed, stream, start, 10).tolist() == expected
    sequence = SampledSequence(SamplingParameters(seed=9))
    for index in (0, 1, 63, 64, 200, 5):
        sequence.generated = index
        assert sequence.draw() == uniform(9, 0, index)


def test_a_tally_counts() -> None:
    tally = TokenTally([5, 7, 5])
    for token in range(100, 300):
        tally.add(token)
    tally.add(7)
    counts = dict(zip(tally.tokens.tolist(), tally.times.tolist(), strict=True))
    assert counts == {5: 2.0, 7: 2.0, **dict.fromkeys(range(100, 300), 1.0)}


def test_of_equally_likely_tokens_the_lowest_ids_are_named() -> None:
    row = np.zeros(500, np.float32)
    row[300:] = 1.0
    logprob, top = token_logprobs(row, 299, 20)
    normalizer = float(np.log(300 + 200 * np.e))
    assert [token for token, _ in top] == list(range(300, 320))
    assert logprob == pytest.approx(-normalizer) and top[0][1] == pytest.approx(1 - normalizer)
    assert len(token_logprobs(row[:3], 0, 20)[1]) == 3
