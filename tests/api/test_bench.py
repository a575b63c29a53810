"""`tessera bench`: figures that are true, of an engine and of a server."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running_server import RunningServer
from toy_executor import ToyExecutor

from tessera.benchmarking import engine_bench, server_bench, workload
from tessera.benchmarking.http_stream import Address, ResponseParser, call
from tessera.benchmarking.workload import Percentiles, Prompts, Workload
from tessera.cli.main import main
from tessera.errors import ServerRefused, ServerUnreachable
from tessera_runtime.errors import InvalidRequest

SMALL = ("--batch", "1,3", "--prompt", "10", "--new", "6", "--prefill", "20", "--rounds", "2")


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> ToyExecutor:
    made = ToyExecutor(vocab_size=400, max_model_len=64, max_tokens=16)
    monkeypatch.setattr(engine_bench, "load_executor", lambda package, **options: made)
    return made


def json_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_an_engine_is_measured(package: Path, executor: ToyExecutor, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(capsys, "bench", package, *SMALL, "--json")
    assert set(found["prefill_tok_s"]) == {"20"} and set(found["decode_tok_s"]) == {"1", "3"}
    assert all(value > 0 for name in ("prefill_tok_s", "decode_tok_s") for value in found[name].values())
    assert found["load_s"] > 0 and found["first_token_s"] > 0 and found["package"] == "tiny 1.0.0"
    assert all(0 < share < 1 for share in found["overhead_share"].values())
    decode = [step for step in executor.steps if len(step.token_ids) == len(step.block_tables) == 3]
    assert len(decode) >= 2 * 6
    assert executor.closed


def test_rates_are_tokens_over_time(package: Path, executor: ToyExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that each step moves by a second, the figures are known."""
    clock = [0.0]
    step = executor.step

    def slow(batch: Any) -> Any:
        clock[0] += 1.0
        return step(batch)

    class Time:
        perf_counter = staticmethod(lambda: clock[0])

    monkeypatch.setattr(executor, "step", slow)
    monkeypatch.setattr(engine_bench, "time", Time)
    found = engine_bench.bench_package(package, Workload((1, 3), 10, 6, (20, 16), 1))
    assert found.decode_tok_s == {1: 1.0, 3: 3.0}
    assert found.prefill_tok_s == {20: 10.0, 16: 16.0}
    assert found.first_token_s == 1.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--new", "60"), "do not fit the context of 64"),
        (("--prefill", "64"), "do not fit the context"),
        (("--batch", "17"), "takes 16"),
        (("--batch", "0"), "numbers from 1"),
        (("--batch", "1,x"), "numbers from 1"),
        (("--new", "1"), "range"),
        (("--api-key", "k"), "for a URL"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    package: Path, executor: ToyExecutor, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert main(["bench", str(package), *SMALL, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_server_is_measured(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(capsys, "bench", server.url, *SMALL, "--json")
    assert set(found["decode_tok_s"]) == {"1", "3"} and found["prefill_tok_s"]["20"] > 0
    assert found["errors"] == {"1": 0, "3": 0} and found["first_error"] is None and found["model"] == "tiny"
    for name in ("ttft_s", "inter_token_s"):
        for shares in found[name].values():
            # Two events may come with one read: nothing lies between them.
            assert 0 <= shares["p50"] <= shares["p90"] <= shares["p99"] and shares["p99"] > 0
    assert all(shares["p50"] > 0 for shares in found["ttft_s"].values())
    assert found["requests_s"]["3"] * 6 == pytest.approx(found["output_tok_s"]["3"], rel=0.5)
    assert 0 < found["client_core_share"] < 1 and found["first_token_s"] > 0


def test_people_get_tables(
    server: RunningServer, package: Path, executor: ToyExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", server.url, *SMALL]) == 0
    assert main(["bench", str(package), *SMALL]) == 0
    out = capsys.readouterr().out
    assert "TTFT ms" in out and "ms a step" in out and "prefill of 20" in out


def test_failed_requests_are_counted(server: RunningServer) -> None:
    found = server_bench.bench_server(server.url, Workload((2,), 10, 600, (20,), 1))
    assert found.errors == {2: 2} and found.first_error is not None and "status 400" in found.first_error
    assert not found.decode_tok_s and any("first error" in note for note in found.notes)


@pytest.mark.parametrize(
    ("url", "options", "error", "said"),
    [
        ("http://127.0.0.1:1", {}, ServerUnreachable, "no answer from http://127.0.0.1:1"),
        ("http://", {}, ServerUnreachable, "named like"),
        ("http://host:port", {}, ServerUnreachable, "not a URL"),
        ("{server}", {"model": "other"}, ServerRefused, "no model 'other'; it has tiny"),
        ("{server}/elsewhere", {}, ServerRefused, "status 404"),
    ],
)
def test_servers_that_cannot_be_measured(
    server: RunningServer, url: str, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        server_bench.bench_server(url.replace("{server}", server.url), Workload(), **options)


def test_an_address_may_have_v1_behind_it(server: RunningServer) -> None:
    found = server_bench.bench_server(f"{server.url}/v1/", Workload((1,), 4, 12, (4,), 1))
    assert found.errors == {1: 0}, found.first_error
    assert str(Address.parse("https://example.org/prefix/v1")) == "https://example.org:443/prefix"
    assert Address.parse("http://[::1]:81").authority == "[::1]:81"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n10;x=y\r\n0123456789abcdef\r\n0\r\n\r\n"
COUNTED = b"HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\nabcde"


@given(st.lists(st.integers(0, len(CHUNKED)), max_size=8), st.sampled_from([CHUNKED, COUNTED]))
def test_responses_may_come_in_any_pieces(cuts: list[int], response: bytes) -> None:
    parser, body = ResponseParser(), b""
    edges = [0, *sorted(min(cut, len(response)) for cut in cuts), len(response)]
    for start, end in itertools.pairwise(edges):
        body += parser.feed(response[start:end])
    assert parser.complete
    assert (parser.status, body) == ((200, b"abc0123456789abcdef") if response is CHUNKED else (404, b"abcde"))
    parser.end()


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0\r\n\r\n",
        b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        COUNTED[:-1],
        b"",
    ],
)
def test_what_is_no_response_is_refused(response: bytes) -> None:
    parser = ResponseParser()
    with pytest.raises(ServerUnreachable):
        parser.feed(response)
        parser.end()


def test_a_server_that_hangs_up_is_an_error() -> None:
    async def run() -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.close()

        listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with listener:
            with pytest.raises(ServerUnreachable, match="middle"):
                await call(Address.parse(f"http://127.0.0.1:{port}"), "GET", "/")

    asyncio.run(run())


def test_the_common_rate_is_of_the_time_when_all_receive() -> None:
    streams = [
        server_bench._Stream(0.0, [1.0, 2.0, 3.0, 4.0], 4),
        server_bench._Stream(0.0, [2.0, 2.5, 3.0, 5.0], 8),
    ]
    # From 2.0 to 4.0: two events of one token, and two of two tokens each.
    assert server_bench.common_rate(streams) == pytest.approx((2 * 1 + 2 * 2) / 2.0)
    assert server_bench.common_rate([streams[0], server_bench._Stream(0.0, [9.0], 1)]) is None


def test_percentiles_are_by_nearest_rank() -> None:
    assert workload.percentiles([]) is None
    assert workload.percentiles([float(value) for value in range(1, 101)]) == Percentiles(50, 90, 99)
    assert workload.percentiles([3.0]) == Percentiles(3, 3, 3)


def test_prompts_are_exact_and_unlike() -> None:
    prompts = Prompts(range(500), seed=1)
    made = [prompts.take(length) for length in (1, 5, 64, 2000) for _ in range(20)]
    assert sorted({len(prompt) for prompt in made}) == [1, 5, 64, 2000]
    assert len({tuple(prompt[:16]) for prompt in made[40:]}) == 40
    assert Prompts(range(500)).take(64) != Prompts(range(500)).take(64)
    with pytest.raises(InvalidRequest, match="no tokens"):
        Prompts([])


def test_a_busy_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload.os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    assert "load average 99.0" in (workload.busy_note() or "")
    monkeypatch.setattr(workload.os, "getloadavg", lambda: (0.0, 99.0, 0.0))
    assert workload.busy_note() is None
