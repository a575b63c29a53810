"""`tessera generate` and `tessera eval`: what they print."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ended import Run
from tiny_package import write_tiny
from tokenizer_zoo import byte_level
from toy_executor import ToyExecutor


def test_json_has_the_promised_shape(run: Run, package: Path, toy: ToyExecutor) -> None:
    ended = run("generate", package, "--prompt", "The capital", "--max-tokens", 5, "--json")
    assert (ended.code, ended.err) == (0, "")
    result = ended.json
    assert list(result) == ["prompt_ids", "ids", "text", "finish_reason", "timing"]
    assert result["prompt_ids"] == byte_level().encode("The capital").ids
    assert len(result["ids"]) == 5 and result["finish_reason"] == "length"
    assert result["text"] == byte_level().decode(result["ids"])
    assert set(result["timing"]) == {"load_s", "first_token_s", "decode_tok_s"}
    assert all(value > 0 for value in result["timing"].values())
    assert toy.closed


def test_people_get_the_text_alone(run: Run, package: Path, toy: ToyExecutor) -> None:
    text = run("generate", package, "--prompt-ids", "[3, 4]", "--max-tokens", 5, "--json").json["text"]
    ended = run("generate", package, "--prompt-ids", "[3, 4]", "--max-tokens", 5)
    assert ended == (0, text + "\n", "")


def test_a_chat_message_goes_through_the_template_without_a_second_bos(
    run: Run, package: Path, toy: ToyExecutor
) -> None:
    ids = run("generate", package, "--chat", "hi", "--max-tokens", 1, "--json").json["prompt_ids"]
    assert ids == byte_level().encode("<|im_start|>hi<|im_end|>").ids


def test_the_answer_ends_at_the_models_end_token(run: Run, tmp_path: Path, toy: ToyExecutor) -> None:
    first = int(np.argmax(toy.expected([3, 4])))
    package = write_tiny(tmp_path / "p.tspkg", generation={"eos_token_id": [1, first]})
    result = run("generate", package, "--prompt-ids", "[3, 4]", "--json").json
    assert (result["ids"], result["text"], result["finish_reason"]) == ([first], "", "stop")


def test_sampling_options_reach_the_sampler(run: Run, package: Path, toy: ToyExecutor) -> None:
    def ids(*options: object) -> list[int]:
        arguments = ("generate", package, "--prompt-ids", "[3]", "--max-tokens", 12, "--json", *options)
        found: list[int] = run(*arguments).json["ids"]
        return found

    greedy = ids()
    assert ids("--temperature", 1, "--seed", 5) == ids("--temperature", 1, "--seed", 5)
    assert ids("--temperature", 1, "--seed", 5) != ids("--temperature", 1, "--seed", 6)
    assert ids("--temperature", 1, "--top-k", 1) == greedy
    assert ids("--temperature", 1, "--top-p", 1e-9) == greedy


def test_eval_prints_three_figures(run: Run, package: Path, toy: ToyExecutor, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris. " * 20)
    result = run("eval", package, "--text", text, "--window", 16, "--windows", 3, "--json").json
    assert list(result) == ["nll", "ppl", "tokens"]
    assert result["tokens"] == 45
    assert result["ppl"] == pytest.approx(np.exp(result["nll"]))
    people = run("eval", package, "--text", text, "--window", 16, "--windows", 3)
    assert f"{result['ppl']:.3f}" in people.out and people.err == ""
    # A default window is cut to the context; one that was asked for is not.
    assert run("eval", package, "--text", text, "--windows", 1, "--json").json["tokens"] == 63
    assert run("eval", package, "--text", text, "--window", 65).code == 2


def test_bos_is_put_in_front_of_each_window_and_not_scored(run: Run, tmp_path: Path, toy: ToyExecutor) -> None:
    package = write_tiny(tmp_path / "p.tspkg", generation={"bos_token_id": 0})
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris. " * 20)
    arguments = ("eval", package, "--text", text, "--window", 16, "--windows", 2, "--json")
    plain = run(*arguments).json
    assert run(*arguments, "--no-bos").json == plain
    toy.steps.clear()
    with_bos = run(*arguments, "--bos").json
    assert with_bos["tokens"] == plain["tokens"] and with_bos["nll"] != plain["nll"]
    assert [int(step.token_ids[0]) for step in toy.steps if step.positions[0] == 0] == [0, 0]
