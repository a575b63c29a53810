"""The engine that queues a step ahead answers as the engine that does not, whatever happens in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import Answer, alone
from fake_driver import FakeDriver
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy_kernels import NAN_TOKEN
from toy_program import toy_executor

from tessera_runtime.engine.core import EngineCore, EngineLimits
from tessera_runtime.engine.pipeline import PipelinedCore, open_core
from tessera_runtime.engine.protocol import Submit
from tessera_runtime.errors import DeviceLost
from tessera_runtime.sampling.parameters import SamplingParameters

GREEDY = SamplingParameters(temperature=0)


class Pipelined:
    """A pipelined engine over the toy, whose books are checked after every step."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.executor, self.driver = toy_executor(folder)
        defaults: dict[str, Any] = {
            "max_batch_tokens": 16,
            "max_sequences": 8,
            "max_model_len": 64,
            "cache_blocks": 200,
            "lane_seats": (8, 8, 8),
        }
        core = open_core(self.executor, EngineLimits(**{**defaults, **limits}))
        assert isinstance(core, PipelinedCore)
        self.core: EngineCore = core
        self.answers: dict[str, Answer] = {}

    def submit(self, submit: Submit) -> None:
        self.answers[submit.request_id] = Answer()
        self.core.submit(submit)

    def step(self) -> None:
        for output in self.core.step():
            self.answers[output.request_id].hear(output)
        self.core.check_integrity()

    def run(self, most: int = 3000) -> dict[str, Answer]:
        for _ in range(most):
            if not self.core.has_work:
                break
            self.step()
        assert not self.core.has_work and all(answer.over for answer in self.answers.values())
        assert self.core.statistics().used_blocks == 0
        return self.answers

    def close(self) -> None:
        self.executor.close()
        assert self.driver.left_over() == {}


def same(mine: Answer, expected: Answer) -> None:
    assert (mine.ids, mine.finish_reason) == (expected.ids, expected.finish_reason)
    # The device reports float32.
    np.testing.assert_allclose([e.logprob for e in mine.logprobs], [e.logprob for e in expected.logprobs], rtol=1e-6)
    assert [[token for token, _ in e.top] for e in mine.logprobs] == [[t for t, _ in e.top] for e in expected.logprobs]
    assert [each.token_id for each in mine.logprobs] == [each.token_id for each in expected.logprobs]
    assert mine.prompt_logprobs == expected.prompt_logprobs


def prompt_of(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 39, length).tolist()


SAMPLING = st.one_of(
    st.just(GREEDY),
    st.builds(
        SamplingParameters,
        temperature=st.sampled_from([0.0, 0.5, 1.0]),
        top_k=st.sampled_from([0, 5]),
        top_p=st.sampled_from([1.0, 0.8]),
        min_p=st.sampled_from([0.0, 0.1]),
        repetition_penalty=st.sampled_from([1.0, 1.5]),
        frequency_penalty=st.sampled_from([0.0, 0.5]),
        logit_bias=st.sampled_from([{}, {3: 4.0, 7: -100.0}]),
        seed=st.integers(0, 5),
    ),
)
REQUESTS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.builds(prompt_of, st.integers(0, 3), st.integers(1, 30)),
            "max_tokens": st.integers(1, 20),
            "sampling": SAMPLING,
            "stop_ids": st.sampled_from([[], [0, 1, 2, 3, 4, 5]]),
            "logprobs": st.sampled_from([None, 0, 3]),
            "prompt_logprobs": st.sampled_from([False, False, False, True]),
            "resumed": st.integers(0, 2),
            "after": st.integers(0, 6),
            "abort_after": st.sampled_from([None, None, None, 2, 5]),
        }
    ),
    min_size=1,
    max_size=7,
)


def _short(*prompt: int) -> dict[str, Any]:
    return {
        **{"prompt": prompt_of(*prompt), "max_tokens": 1, "sampling": GREEDY, "stop_ids": [], "logprobs": None},
        **{"prompt_logprobs": False, "resumed": 0, "after": 0, "abort_after": None},
    }


@settings(max_examples=40, deadline=None)
# The second step needs more of the host's memory than its slot had, while the first is queued.
@example(requests=[_short(0, 21), _short(1, 28), _short(0, 1)], blocks=14, seats=2)
@given(requests=REQUESTS, blocks=st.sampled_from([14, 30, 200]), seats=st.sampled_from([2, 8]))
def test_answers_do_not_depend_on_what_is_queued(
    tmp_path_factory: pytest.TempPathFactory, requests: list[dict[str, Any]], blocks: int, seats: int
) -> None:
    engine = Pipelined(
        tmp_path_factory.mktemp("toy"), cache_blocks=blocks, max_sequences=seats, lane_seats=(seats,) * 3
    )
    submits, aborts = [], {}
    at = 0
    for number, each in enumerate(requests):
        at += each["after"]
        name = f"r{number}"
        resumed = prompt_of(9, each["resumed"])[: each["max_tokens"] - 1]
        submit = Submit(
            request_id=name,
            prompt_ids=each["prompt"],
            max_tokens=each["max_tokens"],
            sampling=each["sampling"],
            stop_ids=each["stop_ids"],
            logprobs=each["logprobs"],
            prompt_logprobs=each["prompt_logprobs"],
            resumed_ids=resumed,
        )
        submits.append((at, submit))
        if each["abort_after"] is not None:
            aborts[name] = at + each["abort_after"]
    for step in range(at + 8):
        for when, submit in submits:
            if when == step:
                engine.submit(submit)
        for name, when in aborts.items():
            if when == step:
                engine.core.abort(name)
        engine.step()
    answers = engine.run()
    for _, submit in submits:
        expected = alone(submit)
        answer = answers[submit.request_id]
        if answer.finish_reason == "abort":
            assert answer.ids == expected.ids[: len(answer.ids)]
        else:
            same(answer, expected)
    engine.close()


def test_the_next_step_is_queued_before_the_tokens_are_read(tmp_path: Path) -> None:
    engine = Pipelined(tmp_path)
    engine.submit(Submit(request_id="a", prompt_ids=[1, 2, 3], max_tokens=6, sampling=GREEDY))
    order: list[str] = []
    submit, collect = engine.executor.submit, engine.executor.collect
    engine.executor.submit = lambda *rest: (order.append("submit"), submit(*rest))[1]  # type: ignore[method-assign]
    engine.executor.collect = lambda ticket: (order.append("collect"), collect(ticket))[1]  # type: ignore[method-assign]
    engine.run()
    assert order == ["submit", *["submit", "collect"] * 5, "collect"]
    engine.close()


def test_nothing_is_computed_past_the_longest_answer(tmp_path: Path) -> None:
    engine = Pipelined(tmp_path)
    engine.submit(Submit(request_id="a", prompt_ids=[1, 2, 3], max_tokens=6, sampling=GREEDY))
    engine.run()
    assert engine.core.statistics().computed_tokens == 3 + 5
    engine.close()


def test_numbers_that_are_none_end_one_request(tmp_path: Path) -> None:
    engine = Pipelined(tmp_path)
    engine.submit(Submit(request_id="bad", prompt_ids=[NAN_TOKEN, 1], max_tokens=6, sampling=GREEDY))
    engine.submit(Submit(request_id="good", prompt_ids=[1, 2, 3], max_tokens=6, sampling=GREEDY))
    answers = engine.run()
    assert answers["bad"].error is not None and answers["bad"].error.code == "numerical-error"
    assert answers["bad"].ids == []
    same(answers["good"], alone(Submit(request_id="good", prompt_ids=[1, 2, 3], max_tokens=6, sampling=GREEDY)))
    assert engine.core.statistics().numerical_errors == 1
    engine.close()


def test_a_step_that_cannot_be_queued_is_run_on_the_host(tmp_path: Path) -> None:
    engine = Pipelined(tmp_path)
    submit = engine.executor.submit
    calls = iter(range(100))

    def failing(*rest: Any) -> int:
        if next(calls) == 2:
            raise RuntimeError("a defect")
        return submit(*rest)

    engine.executor.submit = failing  # type: ignore[method-assign]
    sampling = SamplingParameters(seed=3, repetition_penalty=1.5, frequency_penalty=0.5)
    asked = [Submit(request_id=n, prompt_ids=[1, 2, int(n)], max_tokens=9, sampling=sampling) for n in "345"]
    for each in asked:
        engine.submit(each)
    answers = engine.run()
    for each in asked:
        same(answers[each.request_id], alone(each))
    engine.close()


def test_a_lost_device_stops_the_engine(tmp_path: Path) -> None:
    engine = Pipelined(tmp_path)
    for name in "abc":
        engine.submit(Submit(request_id=name, prompt_ids=[1, 2, 3], max_tokens=6, sampling=GREEDY))
    engine.step()
    driver: FakeDriver = engine.driver
    driver.lose_after = -1
    with pytest.raises(DeviceLost):
        engine.run()
    engine.executor.close()
