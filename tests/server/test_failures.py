"""Engines that die or hang, clients that leave or do not read, servers that are told to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from running_server import RunningServer, Start, children, eventually, is_alive

PROMPTS: list[Any] = ["The fox", "naïve café", [5, 6, 7], [300, 301], "🙂 emoji"]


def stream_text(server: RunningServer, body: dict[str, Any], started: threading.Event | None = None) -> tuple[str, str]:
    """The text of a stream and its finish reason; raises if it does not end as it should."""
    text, reason, done = "", "", False
    with (
        httpx2.Client(base_url=server.url, timeout=60) as client,
        client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response,
    ):
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line == "data: [DONE]":
                done = True
            elif line:
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                text += chunk["choices"][0]["text"]
                reason += chunk["choices"][0]["finish_reason"] or ""
                if started is not None:
                    started.set()
    assert done and reason
    return text, reason


def bodies(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": PROMPTS[index % len(PROMPTS)],
            "max_tokens": 40 + 7 * index % 60,
            "temperature": (0.0, 0.8, 1.4)[index % 3],
            "seed": index,
            "ignore_eos": True,
            "frequency_penalty": 0.4 * (index % 2),
        }
        for index in range(count)
    ]


@pytest.mark.slow
def test_streams_survive_the_death_of_the_engine_byte_for_byte(start: Start) -> None:
    server = start("--target", "0.01")
    asked = bodies(12)
    alone = [stream_text(server, body) for body in asked]
    started = [threading.Event() for _ in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        futures = [pool.submit(stream_text, server, *each) for each in zip(asked, started, strict=True)]
        for number in (1, 2):
            started[number].wait(10)
            time.sleep(0.1)
            (pid,) = eventually(server.engines)
            os.kill(pid, signal.SIGKILL)
            eventually(lambda number=number: server.metric("tessera_engine_restarts_total") == number)
            eventually(lambda: server.readiness() == 200)
        assert [future.result(60) for future in futures] == alone
    lost = [event for event in server.events() if event["event"] == "engine_lost"]
    assert len(lost) == 2 and lost[0]["running"] > 0


@pytest.mark.slow
def test_a_hung_engine_makes_the_server_unready_and_is_replaced(start: Start) -> None:
    server = start("--target", "0.01")
    body = {"prompt": [5], "max_tokens": 60, "seed": 1, "ignore_eos": True}
    alone = stream_text(server, body)
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(stream_text, server, body, started)
        started.wait(10)
        (pid,) = server.engines()
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        eventually(lambda: server.readiness() == 503, 3.0)
        assert 0.5 < time.monotonic() - began < 3.0
        assert server.http.get("/health/live").status_code == 200
        eventually(lambda: server.readiness() == 200)
        assert future.result(30) == alone
    assert not is_alive(pid)


@pytest.mark.slow
def test_a_long_step_is_no_hang(start: Start) -> None:
    """Longer than a hang is waited for, but the engine's process works all the time."""
    server = start("--target", "busy3.5")
    server.complete(max_tokens=1)
    assert server.metric("tessera_engine_restarts_total") == 0


@pytest.mark.slow
def test_a_request_that_kills_engines_is_given_up(start: Start) -> None:
    server = start("--target", "0.005")
    answer = server.post("/v1/completions", prompt=[399, 5], max_tokens=4)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "engine_failed"
    # An engine that ends by itself says why by its exit code, which the log has.
    assert {event["exit_code"] for event in server.events() if event["event"] == "engine_lost"} == {9}
    eventually(lambda: server.readiness() == 200)
    server.complete()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_told_to_stop_it_finishes_what_runs(start: Start, number: int) -> None:
    server = start("--target", "0.02")
    body = {"prompt": [5], "max_tokens": 60, "seed": 1, "ignore_eos": True}
    alone = stream_text(server, body)
    processes = [server.process.pid, *children(server.process.pid)]
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(stream_text, server, body, started)
        started.wait(10)
        server.process.send_signal(number)
        eventually(lambda: server.readiness() == 503)
        refused = server.post("/v1/completions", prompt=[5])
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "draining"
        assert future.result(30) == alone
    assert server.process.wait(10) == 0
    eventually(lambda: not any(map(is_alive, processes)))


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    server = start("--target", "0.2")
    processes = [server.process.pid, *children(server.process.pid)]
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(stream_text, server, {"prompt": [5], "max_tokens": 400, "ignore_eos": True}, started)
        started.wait(10)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: server.readiness() == 503)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 128 + signal.SIGTERM
        with pytest.raises((httpx2.HTTPError, AssertionError)):
            future.result(10)
    eventually(lambda: not any(map(is_alive, processes)))


def test_engines_die_with_a_gateway_that_is_killed(start: Start) -> None:
    server = start("--target", "0.2")
    processes = children(server.process.pid)
    (engine,) = server.engines()
    os.kill(engine, signal.SIGSTOP)  # even one that cannot notice by itself
    server.process.kill()
    server.process.wait(5)
    eventually(lambda: not any(map(is_alive, processes)))


@contextmanager
def raw_request(server: RunningServer, body: dict[str, Any], *, window: int | None = None) -> Iterator[socket.socket]:
    data = json.dumps(body).encode()
    connection = socket.socket()
    if window is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.connect(("127.0.0.1", server.port))
    try:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + b"Content-Length: %d\r\n\r\n" % len(data)
            + data
        )
        yield connection
    finally:
        connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_give_their_cache_back(server: RunningServer, stream: bool) -> None:
    body = {"prompt": [5] * 100, "max_tokens": 400, "ignore_eos": True, "stream": stream, "n": 3}
    for _ in range(20):
        with raw_request(server, body) as connection:
            if stream:
                connection.recv(100)
    eventually(lambda: server.metric("tessera_answers_outstanding") == 0)
    eventually(
        lambda: server.metric("tessera_kv_cache_used_blocks") == 0 and server.metric("tessera_answers_running") == 0
    )
    assert server.metric("tessera_answers_total", outcome="disconnected") > 0


@pytest.mark.slow
def test_a_client_that_does_not_read_disturbs_nobody(server: RunningServer) -> None:
    body = {"prompt": [5], "max_tokens": 400, "ignore_eos": True, "stream": True, "n": 32}
    with raw_request(server, body, window=4096) as connection:
        connection.recv(10)
        began = time.monotonic()
        server.complete()
        assert time.monotonic() - began < 5
        eventually(lambda: server.metric("tessera_answers_outstanding") == 0, 30)


def test_a_full_queue_sends_away(start: Start) -> None:
    server = start("--target", "0.05", "--max-queue", "4", "--max-batch-tokens", "2")
    body = {"prompt": [5], "max_tokens": 100, "ignore_eos": True}
    waiting = [raw_request(server, body) for _ in range(6)]
    for each in waiting:
        each.__enter__()
    eventually(lambda: server.metric("tessera_answers_outstanding") == 6)
    refused = server.post("/v1/completions", **body)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert server.post("/v1/completions", prompt=[5], n=128).status_code == 429
    for each in waiting:
        each.__exit__(None, None, None)
    eventually(lambda: server.metric("tessera_answers_outstanding") == 0)
    server.complete()


@pytest.mark.slow
def test_many_streams_at_once_equal_each_alone(server: RunningServer) -> None:
    asked = bodies(40)
    alone = [stream_text(server, body) for body in asked[:10]]
    with ThreadPoolExecutor(40) as pool:
        together = list(pool.map(lambda body: stream_text(server, body), asked))
    assert together[:10] == alone


@pytest.mark.slow
def test_several_engines_share_the_work(start: Start, tmp_path: Any, package: Any) -> None:
    config = tmp_path / "tis.yaml"
    config.write_text(
        f"models:\n  - package: {package}\n    instances: 2\n  - package: {package}\n    name: org/other\n"
    )
    running = RunningServer("--config", config, "--target", "0.02")
    try:
        assert len(running.engines()) == 3
        assert {model["id"] for model in running.http.get("/v1/models").json()["data"]} == {"tiny", "org/other"}
        assert running.http.get("/v1/models/org/other").json()["id"] == "org/other"
        assert running.post("/v1/completions", prompt=[5]).json()["error"]["param"] == "model"
        body = {"prompt": [5], "max_tokens": 30, "ignore_eos": True, "model": "tiny", "seed": 3}
        with ThreadPoolExecutor(6) as pool:
            texts = list(pool.map(lambda _: stream_text(running, body), range(6)))
        assert len(set(texts)) == 1
        steps = [running.metric("tessera_engine_generated_tokens_total", engine=f"tiny-{index}") for index in (0, 1)]
        assert all(value > 0 for value in steps)
    finally:
        running.close()
