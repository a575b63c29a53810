"""Generating one sequence: chunks, ends, limits, stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_executor import ToyExecutor

from tessera_runtime.engine.generation import GeneratedToken, GenerationResult, generate
from tessera_runtime.engine.stop_strings import StopStrings
from tessera_runtime.errors import ContextLengthExceeded, InvalidRequest, NumericalError
from tessera_runtime.sampling.parameters import SamplingParameters

GREEDY = SamplingParameters(temperature=0)
LETTERS = "abcdefghijklmnopqrstuvwxyz .,"


class LetterTokenizer:
    """Token n is the n-th letter."""

    byte_ids: frozenset[int] = frozenset()

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(LETTERS[token] for token in ids)


def run(executor: ToyExecutor, prompt: list[int], **options: Any) -> tuple[list[GeneratedToken], GenerationResult]:
    options = {"parameters": GREEDY, "max_tokens": 10, **options}
    events = list(generate(executor, prompt, **options))
    result = events[-1]
    assert isinstance(result, GenerationResult)
    tokens = [event for event in events[:-1] if isinstance(event, GeneratedToken)]
    assert len(tokens) == len(events) - 1
    assert [token.token_id for token in tokens] == list(result.ids)
    assert "".join(token.text for token in tokens) == result.text
    return tokens, result


def scripted(text: str, **options: Any) -> ToyExecutor:
    """An executor that answers any one-token prompt with these letters."""
    return ToyExecutor(vocab_size=len(LETTERS), script=[0, *[LETTERS.index(letter) for letter in text]], **options)


@pytest.mark.parametrize("max_tokens_of_a_step", [1, 3, 8, 64])
def test_greedy_answers_do_not_depend_on_how_the_prompt_is_cut(max_tokens_of_a_step: int) -> None:
    executor = ToyExecutor(max_tokens=max_tokens_of_a_step)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    _, result = run(executor, prompt)
    expected = list(prompt)
    for _ in range(10):
        expected.append(int(np.argmax(executor.expected(expected))))
    assert list(result.ids) == expected[10:]
    assert result.finish_reason == "length"
    assert result.prompt_ids == tuple(prompt)
    assert result.timing.first_token_s > 0 and result.timing.decode_tok_s > 0


def test_only_the_last_row_of_a_prompt_asks_for_logits_and_the_last_token_is_not_computed() -> None:
    executor = ToyExecutor(max_tokens=4)
    run(executor, list(range(10)), max_tokens=3)
    assert [len(batch.token_ids) for batch in executor.steps] == [4, 4, 2, 1, 1]
    assert [batch.logit_rows.tolist() for batch in executor.steps] == [[], [], [1], [0], [0]]


def test_an_end_token_stops_the_answer_and_is_its_last_id_but_not_in_its_text() -> None:
    _, result = run(scripted("hi.more"), [0], eos_ids={LETTERS.index(".")}, tokenizer=LetterTokenizer())
    assert (result.text, result.finish_reason) == ("hi", "stop")
    assert result.ids[-1] == LETTERS.index(".")


def test_an_answer_ends_where_the_context_does() -> None:
    _, result = run(ToyExecutor(max_model_len=12), [1] * 9, max_tokens=100)
    assert len(result.ids) == 3 and result.finish_reason == "length"
    with pytest.raises(ContextLengthExceeded, match="12 tokens, but the context holds 12"):
        run(ToyExecutor(max_model_len=12), [1] * 12)


def test_an_end_token_at_the_limit_counts_as_a_stop() -> None:
    _, result = run(scripted("hi."), [0], max_tokens=3, eos_ids={LETTERS.index(".")})
    assert result.finish_reason == "stop"


def test_a_stop_string_ends_the_answer_before_it_and_no_part_of_it_is_shown() -> None:
    tokens, result = run(scripted("so the end is near"), [0], tokenizer=LetterTokenizer(), stop=["the end", "zz"])
    assert (result.text, result.finish_reason) == ("so ", "stop")
    assert [token.text for token in tokens][:3] == ["s", "o", " "]


def test_the_beginning_of_a_stop_string_that_does_not_go_on_is_shown_after_all() -> None:
    _, result = run(scripted("so they went"), [0], max_tokens=12, tokenizer=LetterTokenizer(), stop=["them"])
    assert (result.text, result.finish_reason) == ("so they went", "length")
    _, result = run(scripted("so the"), [0], max_tokens=6, tokenizer=LetterTokenizer(), stop=["them"])
    assert (result.text, result.finish_reason) == ("so the", "length")


@given(
    text=st.text("ab", max_size=30),
    cuts=st.lists(st.integers(1, 4)),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_are_found_however_the_text_is_cut(text: str, cuts: list[int], stops: list[str]) -> None:
    matcher = StopStrings(stops)
    shown = ""
    position = 0
    for size in [*cuts, *[1] * len(text)]:
        shown += matcher.push(text[position : position + size])
        position += size
        assert text.startswith(shown)
        if matcher.found:
            break
    shown += matcher.finish()
    assert matcher.found == any(stop in text for stop in stops)
    assert not any(stop in shown for stop in stops)
    if not matcher.found:
        assert shown == text


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "no tokens"),
        ([50], {}, "Token id 50"),
        ([-1], {}, "Token id -1"),
        ([1], {"max_tokens": 0}, "max_tokens"),
        ([1], {"stop": ["x"]}, "tokenizer"),
        ([1], {"stop": [""], "tokenizer": LetterTokenizer()}, "1 to"),
        ([1], {"stop": ["x"] * 17, "tokenizer": LetterTokenizer()}, "17 stop strings"),
        ([1], {"parameters": SamplingParameters(logit_bias={50: 1.0})}, "token 50"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_computed(
    prompt: list[int], options: dict[str, Any], message: str
) -> None:
    executor = ToyExecutor()
    with pytest.raises(InvalidRequest, match=message):
        generate(executor, prompt, **{"parameters": GREEDY, "max_tokens": 5, **options})
    assert executor.steps == []


def test_logits_that_are_not_numbers_end_the_answer_with_an_error() -> None:
    executor = ToyExecutor()
    executor._table[:] = np.nan
    with pytest.raises(NumericalError):
        run(executor, [1, 2])


def test_a_seed_decides_a_sampled_answer() -> None:
    def ids(seed: int) -> tuple[int, ...]:
        return run(ToyExecutor(), [1, 2, 3], parameters=SamplingParameters(seed=seed))[1].ids

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)
