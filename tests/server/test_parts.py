"""Parts of the server by themselves: the inbox, frames, the description of the API, the cache of packed checkpoints."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tessera.cli import packing_cache
from tessera.cli.packing_cache import checkpoint_key, packed_checkpoint
from tessera_runtime.engine.protocol import Abort, Failure, Output, Ping, Submit, encode
from tessera_runtime.observe.metrics import AnswerTiming
from tessera_runtime.sampling.parameters import SamplingParameters
from tessera_runtime.server import answer as answers
from tessera_runtime.server.answer import Answer, Inbox
from tessera_runtime.server.engine_process import EngineProtocol
from tessera_runtime.server.openapi import document, document_bytes
from tessera_runtime.server.sampling_fields import model_defaults

ROOT = Path(__file__).resolve().parent.parent.parent


class Letters:
    """A tokenizer whose tokens are letters."""

    byte_ids: frozenset[int] = frozenset()

    def decode(self, ids: Any, *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(token) for token in ids)


def make_answer(inbox: Inbox, **options: Any) -> Answer:
    submit = Submit(request_id="r", prompt_ids=[1], max_tokens=9, sampling=SamplingParameters(), stop_ids=[0])
    return Answer(submit, Letters(), inbox, AnswerTiming(lambda _: None, lambda _: None, lambda _: None), **options)


def told(text: str, **more: Any) -> Output:
    return Output(request_id="r", ids=[ord(letter) for letter in text], **more)


def texts(inbox: Inbox) -> list[str]:
    return [piece.text for piece in asyncio.run(inbox.take())]


def test_an_answer_ends_once_and_asks_another_engine_for_the_rest() -> None:
    inbox = Inbox()
    answer = make_answer(inbox)
    answer.accept(told("ab"))
    assert answer.resubmission().resumed_ids == [97, 98] and not answer.ended
    answer.accept(told("c\0", finish_reason="stop"))
    assert answer.finish_reason == "stop" and len(answer.ids) == 4
    assert texts(inbox) == ["ab", "c"]
    answer.fail(answers.internal("too late"))
    assert answer.error is None


def test_deaths_of_engines_count_while_an_answer_gets_no_further() -> None:
    answer = make_answer(Inbox())
    assert [answer.survived_crash(), answer.survived_crash()] == [1, 2]
    answer.accept(told("a"))
    assert [answer.survived_crash(), answer.survived_crash(), answer.survived_crash()] == [1, 2, 3]


def test_a_stop_string_across_steps_is_never_shown() -> None:
    inbox = Inbox()
    answer = make_answer(inbox, stop=["bcd"])
    for letter in "abc":
        answer.accept(told(letter))
    assert not answer.ended
    answer.accept(told("def"))
    assert answer.finish_reason == "stop" and "".join(texts(inbox)) == "a"


def test_what_is_held_back_comes_at_the_end() -> None:
    inbox = Inbox()
    answer = make_answer(inbox, stop=["bcd"])
    answer.accept(told("abc", finish_reason="length"))
    assert answer.finish_reason == "length" and "".join(texts(inbox)) == "abc"


def test_failures_and_aborts_of_the_engine_are_errors() -> None:
    for output, code in (
        (Output(request_id="r", error=Failure("numerical-error", "NaN.")), "numerical_error"),
        (Output(request_id="r", finish_reason="abort"), "aborted"),
    ):
        answer = make_answer(Inbox())
        answer.accept(output)
        assert answer.error is not None and (answer.error.status, answer.error.code) == (500, code)


def test_an_inbox_that_nobody_reads_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_BACKLOG", 5)
    inbox = Inbox()
    given_up: list[int] = []
    inbox.on_overflow = lambda: given_up.append(1)
    answer = make_answer(inbox)
    for _ in range(10):
        answer.accept(told("a"))
    assert given_up == [1] and inbox.gone and texts(inbox) == []


class Transport:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def test_frames_arrive_however_they_are_cut() -> None:
    from tessera_runtime.engine.protocol import Outputs

    messages: list[Any] = []
    protocol = EngineProtocol(messages.append, lambda: None)
    sent = [Outputs([told("x")]), Outputs([]), Outputs([told("y" * 1000)])]
    stream = b"".join(map(encode, sent))
    for start in range(0, len(stream), 7):
        protocol.data_received(stream[start : start + 7])
    assert messages == sent
    transport: Any = Transport()
    protocol.connection_made(transport)
    protocol.send(Ping(1))
    protocol.send(Abort("r"))
    assert transport.written == encode(Ping(1)) + encode(Abort("r"))


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x01\x00\x00\x00\xc1", encode(Ping(1))])
def test_what_is_no_message_of_an_engine_ends_the_connection(garbage: bytes) -> None:
    protocol = EngineProtocol(lambda message: None, lambda: None)
    transport: Any = Transport()
    protocol.connection_made(transport)
    protocol.data_received(garbage)
    assert transport.aborted


def test_a_models_own_defaults_are_used_where_they_make_sense() -> None:
    advised = {"temperature": 0.6, "top_p": 0.9, "top_k": 50, "repetition_penalty": "high", "min_p": None}
    assert model_defaults(advised) == {"temperature": 0.6, "top_p": 0.9, "top_k": 50}
    assert model_defaults({**advised, "do_sample": False}) == model_defaults({}) == {}


def test_the_description_of_the_api_is_whole_and_up_to_date() -> None:
    described = document("v1")
    text = json.dumps(described)
    names = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(described["components"]["schemas"])
    assert {"temperature", "messages", "stop"} <= set(
        described["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    )
    assert (ROOT / "docs" / "openapi.json").read_bytes() == document_bytes("v1"), "run tools/generate_openapi.py"


def test_every_route_is_described() -> None:
    from tessera_runtime.server.application import ROUTES

    described = document("v1")["paths"]
    for method, path, _, _ in ROUTES:
        if path != "/openapi.json":
            assert method.lower() in described[path.replace(":path", "")]


def test_a_checkpoint_is_packed_once_for_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")
    commands: list[list[str]] = []

    def pack(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        Path(command[command.index("--out") + 1]).mkdir()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(packing_cache.subprocess, "run", pack)
    packages = [
        packed_checkpoint(str(folder), dtype, "auto", tmp_path / "cache", lambda name, seconds: None)
        for folder, dtype in ((first, "bf16"), (second, "bf16"), (first, "int8"))
    ]
    assert packages[0] == packages[1] != packages[2] and len(commands) == 2
    assert commands[0][:4] == [sys.executable, "-m", "tessera", "pack"]
    (second / "model.safetensors").write_bytes(b"Weights")
    assert checkpoint_key(first, "bf16", "auto") != checkpoint_key(second, "bf16", "auto")
    assert checkpoint_key(first, "bf16", "auto") != checkpoint_key(first, "bf16", "int8")
