"""The sampler: what each parameter does, that a seed decides everything, and that rows do not know of one another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tessera_runtime.errors import InvalidRequest, NumericalError
from tessera_runtime.sampling.errors import LogitsNotFinite
from tessera_runtime.sampling.parameters import SamplingParameters
from tessera_runtime.sampling.random_numbers import philox, uniform
from tessera_runtime.sampling.sampler import sample
from tessera_runtime.sampling.sequence import SampledSequence


def row(*values: float) -> NDArray[np.float32]:
    return np.array([values], np.float32)


def draw(logits: NDArray[np.float32], count: int = 400, **parameters: Any) -> set[int]:
    """The tokens that turn up in many draws with the same logits."""
    sequence = SampledSequence(SamplingParameters(**parameters))
    found = set()
    for _ in range(count):
        found.add(int(sample(logits, [sequence])[0]))
        sequence.generated += 1
    return found


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    greedy = SampledSequence(SamplingParameters(temperature=0))
    assert sample(row(1, 3, 3, 2), [greedy]).tolist() == [1]


def test_filters_keep_what_they_should() -> None:
    logits = row(*np.log([0.4, 0.3, 0.2, 0.1]))
    assert draw(logits) == {0, 1, 2, 3}
    assert draw(logits, top_k=2) == {0, 1}
    assert draw(logits, top_p=0.35) == {0}
    assert draw(logits, top_p=0.65) == {0, 1}
    assert draw(logits, top_p=0.75) == {0, 1, 2}
    assert draw(logits, min_p=0.6) == {0, 1}
    assert draw(logits, min_p=1.0) == {0}
    assert draw(logits, top_k=3, top_p=0.75) == {0, 1}  # of the three left, two hold 7/9
    assert draw(logits, temperature=0.001) == {0}


def test_among_equals_at_the_border_the_lowest_ids_stay() -> None:
    assert draw(row(0, 5, 5, 5, 5), top_k=2) == {1, 2}
    assert draw(row(5, 5, 5, 5), top_p=0.5) == {0, 1}
    many = np.tile(np.array([0, 1], np.float32), (1, 40))
    assert draw(many, count=2000, top_p=0.365) == set(range(1, 41, 2))


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_of_a_large_vocabulary_is_the_definition(top_p: float) -> None:
    logits = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum()
    order = np.argsort(-logits, kind="stable")
    keep = set(order[: int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1].tolist())
    found = draw(logits[None], count=300, top_p=top_p)
    assert found <= keep
    assert len(found) > min(len(keep), 300) * 0.3


def test_draws_follow_the_probabilities() -> None:
    probabilities = np.array([0.5, 0.25, 0.15, 0.1])
    logits = np.log(probabilities).astype(np.float32)[None]
    sequence = SampledSequence(SamplingParameters(seed=3))
    counts = np.zeros(4)
    for _ in range(20_000):
        counts[sample(logits, [sequence])[0]] += 1
        sequence.generated += 1
    deviation = np.abs(counts / 20_000 - probabilities) / np.sqrt(probabilities * (1 - probabilities) / 20_000)
    assert deviation.max() < 4.5


def test_penalties_and_bias_are_the_definitions() -> None:
    values = np.array([2.0, -1.0, 0.5, 0.0, 1.0], np.float32)
    parameters = SamplingParameters(
        repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25, logit_bias={4: -3.0}
    )
    sequence = SampledSequence(parameters, prompt_ids=[0, 1], output_ids=[2, 2])
    changed = values.copy()
    sequence.penalize(changed)
    assert changed.tolist() == [1.0, -2.0, 0.25 - 0.5 * 2 - 0.25, 0.0, -2.0]


def test_penalties_apply_to_greedy_answers_and_leave_the_logits_alone() -> None:
    logits = row(3, 2, 1)
    sequence = SampledSequence(SamplingParameters(temperature=0, presence_penalty=1.5), output_ids=[0])
    assert sample(logits, [sequence]).tolist() == [1]
    assert logits.tolist() == [[3, 2, 1]]
    biased = SampledSequence(SamplingParameters(temperature=0, logit_bias={2: 100.0}))
    assert sample(logits, [biased]).tolist() == [2]


MANY = [
    SamplingParameters(temperature=0),
    SamplingParameters(seed=1),
    SamplingParameters(seed=1, top_p=0.8),
    SamplingParameters(seed=2, top_k=7, temperature=1.7),
    SamplingParameters(seed=3, min_p=0.1, repetition_penalty=1.3, frequency_penalty=0.2),
    SamplingParameters(temperature=0, logit_bias={5: 2.0}, presence_penalty=1.0),
]


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(len(MANY))), count=st.integers(1, len(MANY)), index=st.integers(0, 1000))
def test_a_row_is_drawn_the_same_in_any_company(order: list[int], count: int, index: int) -> None:
    logits = np.random.default_rng(index).standard_normal((len(MANY), 333)).astype(np.float32)

    def sequence(which: int) -> SampledSequence:
        made = SampledSequence(MANY[which], [1, 2], [3, 3])
        made.generated = index
        return made

    alone = [int(sample(logits[which : which + 1], [sequence(which)])[0]) for which in range(len(MANY))]
    chosen = order[:count]
    together = sample(logits[chosen], [sequence(which) for which in chosen])
    assert together.tolist() == [alone[which] for which in chosen]


def test_a_seed_is_a_stream_of_its_own_that_can_be_resumed_anywhere() -> None:
    logits = np.zeros((1, 1000), np.float32)

    def answer(seed: int, stream: int = 0) -> list[int]:
        sequence = SampledSequence(SamplingParameters(seed=seed, stream=stream))
        tokens = []
        for _ in range(20):
            tokens.append(int(sample(logits, [sequence])[0]))
            sequence.append(tokens[-1])
        return tokens

    whole = answer(5)
    assert whole == answer(5)
    assert whole != answer(6) and whole != answer(5, stream=1)
    assert answer(-1) == answer(2**64 - 1)
    resumed = SampledSequence(SamplingParameters(seed=5), output_ids=whole[:7])
    assert int(sample(logits, [resumed])[0]) == whole[7]


@pytest.mark.parametrize("key", [(0, 0), (1, 2), (2**64 - 1, 2**64 - 1), (123456789, 0)])
@pytest.mark.parametrize("index", [0, 1, 77, 2**40])
def test_the_generator_is_philox(key: tuple[int, int], index: int) -> None:
    generator = np.random.Philox(counter=np.array([index, 0, 0, 0], np.uint64), key=np.array(key, np.uint64))
    # NumPy's counts up before its first block.
    assert list(philox((index + 1, 0, 0, 0), key)) == generator.random_raw(4).tolist()


def test_uniform_numbers_are_in_range_and_spread() -> None:
    numbers = [uniform(9, 0, index) for index in range(2000)]
    assert min(numbers) >= 0.0
    assert max(numbers) < 1.0
    assert abs(sum(numbers) / 2000 - 0.5) < 0.03


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_fails_alone(bad: float, temperature: float) -> None:
    logits = np.array([[0, 9, 0], [0, bad, 0], [9, 0, 0], [-math.inf] * 3], np.float32)
    sequences = [SampledSequence(SamplingParameters(temperature=temperature, top_k=1)) for _ in range(4)]
    with pytest.raises(LogitsNotFinite) as caught:
        sample(logits, sequences)
    assert isinstance(caught.value, NumericalError)
    assert caught.value.rows == (1, 3)
    assert caught.value.tokens.tolist() == [1, -1, 0, -1]


def test_masked_tokens_are_never_drawn() -> None:
    logits = row(-math.inf, 0, -math.inf, 0, -math.inf)
    assert draw(logits, temperature=2.0) == {1, 3}


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": math.nan},
        {"temperature": "hot"},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_k": -1},
        {"top_k": 1.5},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": 2.5},
        {"presence_penalty": -2.5},
        {"logit_bias": {1: 101.0}},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": dict.fromkeys(range(2000), 1.0)},
        {"seed": 1 << 64},
        {"seed": True},
        {"stream": -1},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        SamplingParameters(**wrong)


def test_a_bias_on_a_token_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="token 50"):
        SamplingParameters(logit_bias={50: 1.0}).check_vocabulary(50)
