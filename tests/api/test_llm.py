"""`tessera.LLM`: many prompts at once, each answered as if alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from toy_executor import ToyExecutor

from tessera import LLM, Parameters, Result
from tessera.errors import ApplicationInvalid
from tessera_runtime.errors import ContextLengthExceeded, InvalidRequest

PROMPTS: list[Any] = ["The capital", "quick brown fox", [7, 8, 9], [{"role": "user", "content": "naïve café"}], "The"]


def test_answers_together_are_those_alone(llm: LLM) -> None:
    params = [Parameters(max_tokens=4 + 3 * index, temperature=0.8, seed=index) for index in range(len(PROMPTS))]
    together = llm.generate(PROMPTS, params)
    alone = [llm.generate([prompt], each)[0] for prompt, each in zip(PROMPTS, params, strict=True)]
    assert [result.ids for result in together] == [result.ids for result in alone]
    assert [result.text for result in together] == [result.text for result in alone]
    assert len({result.ids for result in together}) == len(PROMPTS)


def test_answers_are_what_the_model_says(llm: LLM, toy: ToyExecutor) -> None:
    (result,) = llm.generate("The capital", Parameters(max_tokens=6, ignore_eos=True))
    ids = llm.tokenizer.encode("The capital")
    expected = []
    for _ in range(6):
        expected.append(int(toy.expected([*ids, *expected]).argmax()))
    assert list(result.ids) == expected
    assert list(result.prompt_ids) == ids
    assert result.text == llm.tokenizer.decode(expected)
    assert result.finish_reason == "length" and result.error is None
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (len(ids), 6)
    assert result.usage.total_tokens == len(ids) + 6


def test_prompts_share_steps(llm: LLM, toy: ToyExecutor) -> None:
    llm.generate(["The capital", "quick brown"], Parameters(max_tokens=5, ignore_eos=True))
    assert max(len(step.block_tables) for step in toy.steps) == 2


@pytest.mark.parametrize(
    ("prompt", "count"), [("text", 1), ([5, 6], 1), ([{"role": "user", "content": "a"}], 1), ([], 0)]
)
def test_one_prompt_may_stand_alone(llm: LLM, prompt: Any, count: int) -> None:
    assert len(llm.generate(prompt, Parameters(max_tokens=2))) == count


def test_messages_go_through_the_template(llm: LLM) -> None:
    ids = llm.prompt_ids([{"role": "user", "content": "hi"}])
    assert llm.tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>hi<|im_end|>"


def scripted(package: Path, monkeypatch: pytest.MonkeyPatch, tokens: list[int]) -> LLM:
    from tessera import local_engine

    executor = ToyExecutor(vocab_size=400, max_model_len=64, max_tokens=16, script=[0, *tokens, *[9] * 64])
    monkeypatch.setattr(local_engine, "load_executor", lambda package, **options: executor)
    return LLM(package)


def test_end_tokens_and_stop_strings_end_an_answer(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tessera_runtime.text.tokenizer import Tokenizer

    words = Tokenizer(package / "tokenizer").encode("The quick brown fox")
    with scripted(package, monkeypatch, [*words, 4]) as llm:
        whole = llm.generate([[7]], Parameters())[0]
        assert whole.text == "The quick brown fox" and whole.finish_reason == "stop"
        assert list(whole.ids) == [*words, 4]
        cut = llm.generate([[7]], Parameters(stop=[" brown", "fox"]))[0]
        assert cut.text == "The quick" and cut.finish_reason == "stop"
        assert len(cut.ids) < len(whole.ids)
        longer = llm.generate([[7]], Parameters(ignore_eos=True, max_tokens=len(words) + 3))[0]
        assert longer.finish_reason == "length" and len(longer.ids) == len(words) + 3
        own = llm.generate([[7]], Parameters(stop_ids=[words[0]]))[0]
        assert own.text == "" and own.finish_reason == "stop"


def test_logprobs(llm: LLM) -> None:
    (result,) = llm.generate("The", Parameters(max_tokens=3, logprobs=2, ignore_eos=True))
    assert [entry.token_id for entry in result.logprobs] == list(result.ids)
    assert all(len(entry.top) == 2 and entry.logprob == entry.top[0][1] for entry in result.logprobs)


def test_a_stream_says_the_same(llm: LLM) -> None:
    params = Parameters(max_tokens=12, ignore_eos=True)
    stream = llm.stream("The capital", params)
    assert stream.result is None
    pieces = list(stream)
    whole = llm.generate("The capital", params)[0]
    assert len(pieces) > 1 and "".join(pieces) == whole.text
    assert stream.result is not None and stream.result.ids == whole.ids and stream.result.text == whole.text


def test_a_stream_that_is_left_stops_the_work(llm: LLM) -> None:
    with llm.stream("The capital", Parameters(max_tokens=40, ignore_eos=True)) as stream:
        next(stream)
    assert stream.result is None
    llm.generate("a", Parameters(max_tokens=1))
    statistics = llm._engine.statistics()
    assert statistics.running == statistics.waiting == statistics.used_blocks == 0
    assert statistics.generated_tokens < 10


def test_threads_share_the_engine(llm: LLM) -> None:
    params = Parameters(max_tokens=30, ignore_eos=True)
    alone = [llm.generate(prompt, params)[0].text for prompt in PROMPTS]
    found: dict[int, list[Result]] = {}
    threads = [
        threading.Thread(target=lambda index=index: found.update({index: llm.generate(PROMPTS[index], params)}))
        for index in range(len(PROMPTS))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [found[index][0].text for index in range(len(PROMPTS))] == alone


@pytest.mark.parametrize(
    ("prompt", "params", "error", "said"),
    [
        ("", Parameters(), InvalidRequest, "no tokens"),
        ([400], Parameters(), InvalidRequest, "400"),
        ("a", Parameters(max_tokens=0), InvalidRequest, "max_tokens"),
        ("a", Parameters(temperature=3), InvalidRequest, "temperature"),
        ([5] * 64, Parameters(), ContextLengthExceeded, "64"),
        ([["a"]], Parameters(), InvalidRequest, "A prompt is"),
        (["a"], [Parameters(), Parameters()], InvalidRequest, "2 parameters"),
        ("a", Parameters(stop=["x"] * 99), InvalidRequest, "stop"),
        ("a", Parameters(logprobs=99), InvalidRequest, "logprobs"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_runs(
    llm: LLM, toy: ToyExecutor, prompt: Any, params: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        llm.generate(prompt, params)
    assert not toy.steps


def test_numbers_that_are_none_end_one_answer_alone(
    llm: LLM, toy: ToyExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = toy.expected
    monkeypatch.setattr(toy, "expected", lambda prefix: original(prefix) * (float("nan") if prefix[0] == 7 else 1.0))
    bad, good = llm.generate([[7, 8], [8, 9]], Parameters(max_tokens=4, ignore_eos=True))
    assert bad.finish_reason == "error" and bad.error is not None and "not numbers" in bad.error
    assert good.finish_reason == "length" and len(good.ids) == 4


def test_a_closed_one_says_so(package: Path, toy: ToyExecutor) -> None:
    llm = LLM(package)
    llm.close()
    llm.close()
    assert toy.closed
    with pytest.raises(ApplicationInvalid, match="closed"):
        llm.generate("a")


def test_a_compiled_package_answers_as_alone(compiled: Path) -> None:
    params = [Parameters(max_tokens=6 + index, temperature=0.7, seed=index, ignore_eos=True) for index in range(5)]
    with LLM(compiled, threads=1) as llm:
        assert llm.description.startswith("cpu")
        together = llm.generate(PROMPTS, params)
    with LLM(compiled, threads=2, max_batch_tokens=7, prefix_reuse=False) as llm:
        alone = [llm.generate([prompt], each)[0] for prompt, each in zip(PROMPTS, params, strict=True)]
    assert [result.ids for result in together] == [result.ids for result in alone]
    assert [len(result.ids) for result in together] == [6, 7, 8, 9, 10]
