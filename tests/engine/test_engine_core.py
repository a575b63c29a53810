"""The engine's promises, one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from driving import Driver, alone
from hash_executor import HashExecutor, chain
from numpy.typing import NDArray

from tessera_runtime.engine.protocol import Submit
from tessera_runtime.executor.interface import StepBatch
from tessera_runtime.sampling.parameters import SamplingParameters

GREEDY = SamplingParameters(temperature=0)


def prefix_hash(tokens: list[int]) -> int:
    value = 0
    for token in tokens:
        value = chain(value, token)
    return value


def test_the_answer_is_what_the_executor_says() -> None:
    driver = Driver()
    driver.submit("a", [1, 2, 3], 5)
    answer = driver.run()["a"]
    tokens = [1, 2, 3]
    for _ in range(5):
        tokens.append(int(driver.executor.logits([prefix_hash(tokens)])[0].argmax()))
    assert (answer.ids, answer.finish_reason) == (tokens[3:], "length")


def test_answers_end_at_stop_ids_limits_and_the_end_of_the_context() -> None:
    ids = alone(Submit(request_id="x", prompt_ids=[1, 2, 3], max_tokens=61, sampling=GREEDY)).ids
    assert len(ids) == 61
    stop = ids[4]
    driver = Driver()
    driver.submit("stop", [1, 2, 3], 50, stop_ids=[stop])
    driver.submit("length", [1, 2, 3], 2)
    driver.submit("context", [1, 2, 3], 10**9)
    answers = driver.run()
    assert answers["stop"].ids == ids[: ids.index(stop) + 1] and answers["stop"].finish_reason == "stop"
    assert answers["length"].ids == ids[:2] and answers["length"].finish_reason == "length"
    assert answers["context"].ids == ids and answers["context"].finish_reason == "length"


def test_waiting_is_told_once() -> None:
    driver = Driver(max_sequences=1, lane_seats=(1, 1, 1))
    for name in ("first", "second"):
        driver.submit(name, [1, 2, 3], 6)
    (first,), (second,) = (answer.queue_seconds for answer in driver.run().values())
    assert 0 <= first < second


def test_a_prompt_of_20_users_is_computed_once() -> None:
    driver = Driver(
        HashExecutor(max_tokens=128, max_model_len=1100, block_tokens=16),
        max_sequences=32,
        lane_seats=(32, 32, 32),
        cache_blocks=400,
    )
    shared = np.random.default_rng(0).integers(0, 40, 1000).tolist()
    for user in range(20):
        driver.submit(f"u{user}", [*shared, user], 4)
    answers = driver.run()
    # 992 are whole blocks; the other 8, the user's own token and 3 of the answer are everybody's own.
    assert driver.executor.computed == 992 + 20 * (8 + 1 + 3)
    reused = [answer.cached_tokens for answer in answers.values()]
    assert sorted(reused) == [0] + [992] * 19
    assert driver.core.statistics().prefix_hit_tokens == 19 * 992
    without = Driver(
        HashExecutor(max_tokens=128, max_model_len=1100, block_tokens=16), cache_blocks=600, prefix_reuse=False
    )
    for user in range(20):
        without.submit(f"u{user}", [*shared, user], 4)
    assert {name: answer.ids for name, answer in without.run().items()} == {
        name: answer.ids for name, answer in answers.items()
    }
    assert without.executor.computed == 20 * (1001 + 3)


def test_a_prompt_that_is_cached_whole_computes_its_last_block_only() -> None:
    driver = Driver()
    prompt = list(range(16))
    driver.submit("first", prompt, 1)
    driver.run()
    before = driver.executor.computed
    driver.submit("again", prompt, 1)
    answers = driver.run()
    assert answers["again"].ids == answers["first"].ids
    assert answers["again"].cached_tokens == 12
    assert driver.executor.computed - before == 4


def test_an_answer_is_reused_by_the_next_turn() -> None:
    driver = Driver()
    driver.submit("turn", [1, 2, 3], 10)
    answer = driver.run()["turn"].ids
    driver.submit("next", [1, 2, 3, *answer, 9], 2)
    assert driver.run()["next"].cached_tokens == 12  # the last token of an answer was never computed


def test_tenants_do_not_share() -> None:
    driver = Driver()
    prompt = list(range(20))
    for name, tenant in (("a", "one"), ("b", "two"), ("c", "one")):
        driver.submit(name, prompt, 1, tenant=tenant)
        driver.run()
    assert [driver.answers[name].cached_tokens for name in "abc"] == [0, 0, 16]


def test_others_are_untouched_when_logits_are_not_numbers() -> None:
    executor = HashExecutor()
    bad = prefix_hash([7] * 9)
    names = [f"r{index}" for index in range(4)]

    def spoil(batch: StepBatch, logits: NDArray[np.float32]) -> None:
        logits[(logits == executor.logits([bad])).all(axis=1)] = math.nan

    executor.after_step = spoil
    driver = Driver(executor)
    for index, name in enumerate(names):
        driver.submit(name, [7] * 9 if index == 2 else [index] * 9, 6)
    answers = driver.run()
    assert answers["r2"].ids == []
    assert answers["r2"].error is not None and answers["r2"].error.code == "numerical-error"
    for index in (0, 1, 3):
        assert (
            answers[names[index]].ids
            == alone(Submit(request_id="x", prompt_ids=[index] * 9, max_tokens=6, sampling=GREEDY)).ids
        )
    assert driver.core.statistics().numerical_errors == 1
    # What it computed is not there for others.
    driver.submit("after", [7] * 8 + [1, 2], 1)
    assert driver.run()["after"].cached_tokens == 0


@pytest.mark.parametrize("failure", [RuntimeError("broken"), MemoryError(), ValueError("x")])
def test_others_are_untouched_when_the_executor_fails_on_one(failure: Exception) -> None:
    executor = HashExecutor(max_tokens=64)

    def fail(batch: StepBatch) -> None:
        if 33 in batch.token_ids:
            raise failure

    executor.before_step = fail
    driver = Driver(executor)
    for index in range(7):
        driver.submit(f"r{index}", [33 if index == 3 else index] * 5, 6, stop_ids=[33])
    driver.run()
    for index in range(7):
        answer = driver.answers[f"r{index}"]
        if index == 3:
            assert answer.error is not None and answer.error.code == "internal-error"
            assert str(failure) not in answer.error.message or not str(failure)
        else:
            alike = Submit(request_id="x", prompt_ids=[index] * 5, max_tokens=6, sampling=GREEDY, stop_ids=[33])
            assert answer.ids == alone(alike).ids


def test_others_are_untouched_when_sampling_fails_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    for index in range(4):
        driver.submit(f"r{index}", [index] * 5, 3, sampling=SamplingParameters(seed=index, temperature=1.0))

    def broken() -> float:
        raise ZeroDivisionError

    monkeypatch.setattr(driver.core._requests["r1"].sampled, "draw", broken)
    driver.run()
    assert driver.answers["r1"].error is not None
    for index in (0, 2, 3):
        sampling = SamplingParameters(seed=index, temperature=1.0)
        alike = Submit(request_id="x", prompt_ids=[index] * 5, max_tokens=3, sampling=sampling)
        assert driver.answers[f"r{index}"].ids == alone(alike).ids


def test_a_high_lane_goes_first_and_a_low_one_is_not_starved() -> None:
    driver = Driver(max_sequences=1, lane_seats=(1, 1, 1))
    driver.submit("busy", [1], 3)
    driver.step()
    driver.submit("low", [2], 1, lane=2)
    driver.submit("high", [3], 1, lane=0)
    order = []
    for index in range(100):
        driver.step()
        order += [name for name in ("low", "high") if driver.answers[name].over and name not in order]
        driver.submit(f"more{index}", [4], 1, lane=0)
        if "low" in order:
            break
    assert order == ["high", "low"]
    assert index > 20


def test_a_lane_leaves_seats_to_others() -> None:
    driver = Driver(max_sequences=4, lane_seats=(4, 4, 2))
    for index in range(4):
        driver.submit(f"bulk{index}", [index, 1], 20, lane=2)
    for _ in range(3):
        driver.step()
    assert driver.core.statistics().running == 2
    driver.submit("quick", [9, 9], 1, lane=1)
    driver.step()
    assert driver.answers["quick"].over
    driver.run()


def test_the_youngest_of_the_lowest_lane_is_preempted_and_goes_on_as_if_nothing_had_been() -> None:
    driver = Driver(cache_blocks=10, prefix_reuse=False)
    lanes = {"a": 1, "b": 2, "c": 2}
    for token, (name, lane) in enumerate(lanes.items(), 1):
        driver.submit(name, [token] * 4, 24, lane=lane)
    finished = []
    while driver.core.has_work:
        driver.step()
        finished += [name for name in lanes if driver.answers[name].over and name not in finished]
    assert driver.core.statistics().preemptions > 0
    assert finished == ["a", "b", "c"]
    for token, name in enumerate(lanes, 1):
        assert (
            driver.answers[name].ids
            == alone(Submit(request_id="x", prompt_ids=[token] * 4, max_tokens=24, sampling=GREEDY)).ids
        )


def test_decoding_goes_on_beside_a_long_prompt() -> None:
    driver = Driver(HashExecutor(max_tokens=8, max_model_len=64))
    driver.submit("talker", [1], 30)
    driver.step()
    driver.submit("reader", list(range(39)), 1)
    for step in range(1, 6):
        driver.step()
        assert len(driver.answers["talker"].ids) == 1 + step
    assert driver.executor.widest == 8


def test_an_abort_takes_effect_at_once_and_once() -> None:
    driver = Driver()
    driver.submit("a", [1, 2, 3], 50)
    driver.submit("b", [4, 5, 6], 4)
    driver.step()
    driver.core.abort("a")
    driver.core.abort("a")
    driver.core.abort("unknown")
    driver.step()
    assert driver.answers["a"].finish_reason == "abort" and len(driver.answers["a"].ids) == 1
    driver.run()
    driver.core.abort("b")
    assert not driver.core.has_work


def test_logprobs_are_of_the_distribution_before_the_parameters() -> None:
    driver = Driver()
    prompt = list(range(21))
    sampling = SamplingParameters(temperature=1.7, seed=4, logit_bias={5: 50.0})
    driver.submit("a", prompt, 3, sampling=sampling, logprobs=2, prompt_logprobs=True)
    answer = driver.run()["a"]
    assert answer.ids == [5, 5, 5]
    assert answer.prompt_logprobs is not None
    noted = answer.prompt_logprobs + answer.logprobs
    tokens = prompt + answer.ids
    assert [entry.token_id for entry in noted] == tokens[1:]
    for position, entry in enumerate(noted):
        row = driver.executor.logits([prefix_hash(tokens[: position + 1])])[0].astype(np.float64)
        logprobs = row - np.log(np.exp(row).sum())
        assert entry.logprob == pytest.approx(logprobs[tokens[position + 1]], abs=1e-5)
        assert [token for token, _ in entry.top] == np.argsort(-logprobs, kind="stable")[:2].tolist()
        assert [value for _, value in entry.top] == pytest.approx(np.sort(logprobs)[::-1][:2].tolist(), abs=1e-5)


def test_an_answer_that_was_complete_before_the_engine_died_ends_at_once() -> None:
    driver = Driver()
    driver.submit("length", [1, 2], 3, resumed_ids=[4, 5, 6])
    driver.submit("stop", [1, 2], 3, resumed_ids=[4], stop_ids=[4])
    answers = driver.run()
    assert (answers["length"].ids, answers["length"].finish_reason) == ([], "length")
    assert (answers["stop"].ids, answers["stop"].finish_reason) == ([], "stop")
    assert driver.executor.steps == 0


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"prompt_ids": []}, "invalid-request", "no tokens"),
        ({"prompt_ids": [1, 40]}, "invalid-request", "Token id 40"),
        ({"prompt_ids": [-1]}, "invalid-request", "Token id -1"),
        ({"prompt_ids": [1] * 64}, "context-length-exceeded", "64 tokens"),
        ({"max_tokens": 0}, "invalid-request", "max_tokens"),
        ({"lane": 3}, "invalid-request", "lane"),
        ({"logprobs": 21}, "invalid-request", "logprobs"),
        ({"resumed_ids": [99]}, "invalid-request", "Token id 99"),
        ({"resumed_ids": [1] * 9}, "invalid-request", "9 resumed"),
        ({"sampling": SamplingParameters(logit_bias={40: 1.0})}, "invalid-request", "token 40"),
        ({"prompt_ids": [1] * 40, "max_tokens": 20}, "context-length-exceeded", "60 tokens"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(fields: dict[str, Any], code: str, words: str) -> None:
    driver = Driver(cache_blocks=12)
    whole = {"prompt_ids": [1], "max_tokens": 8, **fields}
    driver.submit("bad", whole.pop("prompt_ids"), **whole)
    driver.submit("good", [1, 2], 4)
    answers = driver.run()
    error = answers["bad"].error
    assert error is not None and error.code == code and words in error.message
    assert len(answers["good"].ids) == 4


def test_a_request_that_fits_exactly_is_answered() -> None:
    driver = Driver(cache_blocks=12)
    driver.submit("exact", [1] * 40, 9)
    driver.submit("other", [2] * 40, 9)
    answers = driver.run()
    assert [len(answer.ids) for answer in answers.values()] == [9, 9]


def test_who_would_not_fit_now_waits_and_nobody_slips_past() -> None:
    driver = Driver(cache_blocks=12, prefix_reuse=False)
    driver.submit("first", [1] * 30, 10)
    driver.step()
    driver.step()
    driver.submit("large", [2] * 30, 1)
    driver.submit("small", [3], 1)
    for _ in range(5):
        driver.step()
    assert driver.core.statistics().waiting == 2
    driver.run()


def test_nobody_of_a_lower_lane_slips_past_who_does_not_fit() -> None:
    driver = Driver(cache_blocks=12, prefix_reuse=False)
    driver.submit("first", [1] * 30, 10, lane=0)
    driver.step()
    driver.step()
    driver.submit("large", [2] * 30, 1, lane=0)
    driver.submit("small", [3], 1, lane=2)
    driver.step()
    assert driver.core.statistics().waiting == 2
    driver.run()


def test_logprobs_of_a_cached_prompt_are_computed_all_the_same() -> None:
    driver = Driver()
    prompt = list(range(20))
    driver.submit("before", prompt, 1)
    driver.run()
    driver.submit("echo", prompt, 1, prompt_logprobs=True)
    answer = driver.run()["echo"]
    assert answer.cached_tokens == 0
    assert [entry.token_id for entry in answer.prompt_logprobs or []] == prompt[1:]


def test_logprobs_of_a_prompt_survive_its_preemption() -> None:
    driver = Driver(HashExecutor(max_tokens=2), max_sequences=2, lane_seats=(2, 2, 2), cache_blocks=8)
    driver.submit("talker", [1, 2, 3, 4], 24, lane=0)
    for _ in range(4):
        driver.step()
    prompt = list(range(20))
    driver.submit("echo", prompt, 1, prompt_logprobs=True, lane=2)
    answer = driver.run()["echo"]
    assert driver.core.statistics().preemptions > 0
    assert [entry.token_id for entry in answer.prompt_logprobs or []] == prompt[1:]


def test_numbers_that_are_none_within_a_prompt_end_that_request_alone() -> None:
    executor = HashExecutor()
    bad = executor.logits([prefix_hash([7] * 3)])

    def spoil(batch: StepBatch, logits: NDArray[np.float32]) -> None:
        logits[(logits == bad).all(axis=1)] = math.nan

    executor.after_step = spoil
    driver = Driver(executor)
    driver.submit("bad", [7] * 6, 2, prompt_logprobs=True)
    driver.submit("good", [8] * 6, 2, prompt_logprobs=True)
    answers = driver.run()
    error = answers["bad"].error
    assert error is not None and error.code == "numerical-error"
    assert len(answers["good"].ids) == 2


def test_a_request_id_in_use_is_not_answered_twice(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver()
    driver.submit("a", [1, 2], 5)
    driver.step()
    driver.core.submit(Submit(request_id="a", prompt_ids=[3], max_tokens=1, sampling=GREEDY))
    assert len(driver.run()["a"].ids) == 5
    assert "in use" in caplog.text
