"""The engine as a process: a real package, a real socket, and gateways that behave well and badly."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from driving import Driver
from engine_client import EngineClient
from msgspec.structs import replace

from tessera_runtime.engine.connection import Connection
from tessera_runtime.engine.generation import GenerationResult, generate
from tessera_runtime.engine.process import Loop, main
from tessera_runtime.engine.protocol import LENGTH, MAX_FRAME, Abort, Refused, Shutdown, Submit, encode
from tessera_runtime.loading import load_executor
from tessera_runtime.package.reader import open_package
from tessera_runtime.sampling.parameters import SamplingParameters

Start = Callable[..., EngineClient]


@pytest.fixture
def start(package: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(EngineClient(settings.pop("package", package), **settings))


@pytest.fixture
def engine(start: Start) -> EngineClient:
    client = start(check_when_idle=True)
    client.ready()
    return client


def request(name: str, max_tokens: int = 12, **fields: object) -> Submit:
    number = int(name[1:])
    sampling = SamplingParameters(temperature=number % 3 * 0.7, seed=number, top_p=(1.0, 0.9)[number % 2])
    prompt = [(number * 37 + index * 11) % 330 for index in range(5 + number * 9)]
    return Submit(request_id=name, prompt_ids=prompt, max_tokens=max_tokens, sampling=sampling, **fields)  # type: ignore[arg-type]


def test_answers_are_those_of_a_single_sequence_alone(engine: EngineClient, package: Path) -> None:
    requests = [request(f"r{number}") for number in range(9)]
    engine.send(*requests)
    answers = engine.finish()
    with load_executor(open_package(package), threads=1) as executor:
        for submit in requests:
            *_, result = generate(executor, submit.prompt_ids, parameters=submit.sampling, max_tokens=12)
            assert isinstance(result, GenerationResult)
            assert answers[submit.request_id].ids == list(result.ids)
            assert answers[submit.request_id].finish_reason == "length"
    statistics = engine.ping().statistics
    assert (statistics.used_blocks, statistics.running, statistics.waiting) == (0, 0, 0)
    assert statistics.generated_tokens == 9 * 12
    assert 0 < statistics.executor_seconds < statistics.step_seconds


def test_ready_says_what_was_planned(start: Start) -> None:
    ready = start(pages=40, max_model_len=256, max_batch_tokens=64, max_sequences=10).ready()
    capacity = ready.capacity
    assert (capacity.cache_blocks, capacity.max_model_len, capacity.max_batch_tokens) == (40, 256, 64)
    assert (capacity.max_sequences, capacity.vocab_size) == (10, 330)
    assert capacity.weights_bytes > 0 and capacity.executor.startswith("cpu")
    assert [name for name, _ in ready.phases] == ["check package", "load program", "plan cache"]


def test_a_new_engine_goes_on_where_a_killed_one_was(start: Start) -> None:
    requests = [request(f"r{number}", 40, logprobs=1) for number in range(4)]
    with start() as whole:
        whole.ready()
        whole.send(*requests)
        expected = whole.finish()
    with start() as first:
        first.ready()
        first.send(*requests)
        first.receive_until(lambda: all(len(answer.ids) > 6 for answer in first.answers.values()))
        first.process.kill()
        begun = {name: list(answer.ids) for name, answer in first.answers.items()}
    second = start(max_batch_tokens=16)
    second.ready()
    second.send(*(replace(submit, resumed_ids=begun[submit.request_id]) for submit in requests))
    for name, answer in second.finish().items():
        assert begun[name] + answer.ids == expected[name].ids
        assert answer.logprobs == expected[name].logprobs[len(begun[name]) :]


def test_it_goes_when_the_gateway_goes(engine: EngineClient) -> None:
    engine.send(request("r1", 1500))
    engine.receive()
    engine.socket.close()
    assert engine.exit_code() == 0


@pytest.mark.parametrize("way", ["shutdown", "sigterm"])
def test_it_finishes_what_it_has_before_it_shuts_down(engine: EngineClient, way: str) -> None:
    engine.send(request("r1", 300), request("r2", 200))
    engine.receive()
    if way == "shutdown":
        engine.send(Shutdown())
    else:
        engine.process.send_signal(signal.SIGTERM)
    # An engine without work has left by then; this one has some.
    engine.send(request("r3"))
    answers = engine.finish()
    assert [len(answers[name].ids) for name in ("r1", "r2")] == [300, 200]
    late = answers["r3"].error
    assert late is not None and late.code == "engine-draining"
    assert engine.exit_code() == 0


def test_idle_it_shuts_down_at_once_and_uses_no_time(engine: EngineClient) -> None:
    engine.send(request("r1"))
    engine.finish()
    clock = os.sysconf("SC_CLK_TCK")

    def seconds() -> float:
        fields = Path(f"/proc/{engine.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / clock

    before = seconds()
    with pytest.raises(TimeoutError):
        engine.socket.settimeout(0.5)
        engine.socket.recv(1)
    assert seconds() - before < 0.1
    engine.process.send_signal(signal.SIGTERM)
    assert engine.exit_code() == 0


def test_ctrl_c_is_for_the_gateway(engine: EngineClient) -> None:
    engine.process.send_signal(signal.SIGINT)
    engine.send(request("r1"))
    assert len(engine.finish()["r1"].ids) == 12


def test_an_abort_ends_a_request(engine: EngineClient) -> None:
    engine.send(request("r1", 1500), request("r2", 20))
    engine.receive()
    engine.send(Abort("r1"), Abort("never"))
    answers = engine.finish()
    assert answers["r1"].finish_reason == "abort" and len(answers["r1"].ids) < 1500
    assert len(answers["r2"].ids) == 20
    assert engine.ping().statistics.used_blocks == 0


def frame(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body


def test_garbage_is_answered_where_it_can_be_and_disturbs_nobody(engine: EngineClient) -> None:
    engine.send(request("r1", 60))
    submission = msgspec.msgpack.decode(encode(request("r2"))[LENGTH.size :])
    wrong = [
        {**submission, "request_id": "hot", "sampling": {"temperature": 9.0}},
        {**submission, "request_id": "type", "max_tokens": "many"},
        {**submission, "request_id": "missing", "prompt_ids": None},
        {"type": "submit", "request_id": 5},
        {"type": "unknown"},
        ["list"],
    ]
    bodies = [msgspec.msgpack.encode(each) for each in wrong] + [b"", b"\xc1", bytes(range(256)) * 40]
    engine.socket.sendall(b"".join(map(frame, bodies)))
    for name in ("hot", "type", "missing"):
        engine.receive_until(lambda name=name: name in engine.answers and engine.answers[name].over)  # type: ignore[misc]
        error = engine.answers[name].error
        assert error is not None and error.code == "invalid-request"
    assert "temperature" in str(engine.answers["hot"].error)
    assert len(engine.finish()["r1"].ids) == 60


def test_frames_may_come_in_any_pieces(engine: EngineClient) -> None:
    engine.send(request("r3"))
    expected = engine.finish()["r3"].ids
    engine.answers.clear()
    data = encode(request("r3"))
    for start in range(0, len(data), 7):
        engine.socket.sendall(data[start : start + 7])
    engine.receive()
    assert engine.finish()["r3"].ids == expected


def test_a_frame_beyond_the_limit_ends_the_engine(engine: EngineClient) -> None:
    engine.socket.sendall(LENGTH.pack(MAX_FRAME + 1) + b"x")
    assert engine.exit_code() == 1
    assert str(MAX_FRAME) in engine.errors()


def test_nothing_is_lost_while_the_gateway_does_not_read(engine: EngineClient) -> None:
    requests = [request(f"r{number}", 400, logprobs=20) for number in range(6)]
    engine.send(*requests)
    for number in range(200):  # more than the buffers of the socket take, so that the engine must go on reading
        engine.send(Abort("x" * 10_000 + str(number)))
    assert all(len(answer.ids) == 400 for answer in engine.finish().values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"package": "nowhere.tspkg"}, "nowhere.tspkg"),
        ({"max_batch_tokens": 10**6}, "max_batch_tokens"),
        ({"kv_memory": 1}, "less than one block"),
        ({"max_sequences": 0}, "max_sequences"),
        ({"lane_shares": [1, 1, 0]}, "p2"),
        ({"treads": 1}, "treads"),
        ({"target": "abacus"}, "abacus"),
    ],
)
def test_it_says_why_it_cannot_start(start: Start, settings: dict[str, object], words: str) -> None:
    engine = start(**settings)
    refused = engine.receive()
    assert isinstance(refused, Refused) and words in refused.error.message
    assert engine.exit_code() == 2
    assert engine.errors() == ""


def test_it_says_that_no_gateway_listens(package: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main(["--socket", str(tmp_path / "none"), "--settings", "{}"]) == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert "no gateway listens" in capsys.readouterr().err


def test_a_connection_keeps_what_the_other_side_does_not_take() -> None:
    here, there = socket.socketpair()
    connection = Connection(here)
    data = [bytes([number]) * (1 << 20) for number in range(40)]
    for part in data:
        connection.send(part)
    assert connection.full and not connection.empty
    received = b""
    while len(received) < 40 << 20:
        received += there.recv(1 << 22)
        connection.flush()
    assert received == b"".join(data)
    assert connection.empty and not connection.full
    there.close()
    assert connection.receive() == [] and connection.closed
    connection.close()


def test_no_step_is_begun_while_too_much_waits_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = socket.socketpair()
    connection = Connection(here)
    monkeypatch.setattr("tessera_runtime.engine.connection.FULL_BYTES", -1)
    monkeypatch.setattr(connection, "wait", connection.close)
    driver = Driver()
    driver.submit("a", [1], 1)
    Loop(driver.core, connection).run()
    assert driver.executor.steps == 0
    there.close()
