"""What is wrong with a request is said at once, in OpenAI's form, and disturbs nobody."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

import openai
import pytest
from running_server import RunningServer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hi"}]
SECONDS = 1.0
"""Of processor time, so that other work on the machine does not matter; far more than is needed."""

BAD_FIELDS: list[tuple[str, dict[str, Any], str | None, str | None]] = [
    (CHAT, {"messages": []}, "messages", None),
    (CHAT, {}, "messages", "missing_required_parameter"),
    (CHAT, {"messages": "hi"}, "messages", "invalid_type"),
    (CHAT, {"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", None),
    (CHAT, {"messages": [{"role": "", "content": "a"}]}, "messages[0].role", None),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", None),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 8000}]}, "messages", "context_length_exceeded"),
    (CHAT, {"messages": HELLO, "temperature": "hot"}, "temperature", "invalid_type"),
    (CHAT, {"messages": HELLO, "temperature": "NaN"}, "temperature", "invalid_type"),
    (CHAT, {"messages": HELLO, "temperature": -0.1}, "temperature", "invalid_value"),
    (CHAT, {"messages": HELLO, "temperature": 2.1}, "temperature", "invalid_value"),
    (CHAT, {"messages": HELLO, "top_p": 0}, "top_p", "invalid_value"),
    (CHAT, {"messages": HELLO, "top_k": -2}, "top_k", "invalid_value"),
    (CHAT, {"messages": HELLO, "min_p": 1.5}, "min_p", "invalid_value"),
    (CHAT, {"messages": HELLO, "repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    (CHAT, {"messages": HELLO, "frequency_penalty": 3}, "frequency_penalty", "invalid_value"),
    (CHAT, {"messages": HELLO, "max_tokens": 0}, "max_tokens", "invalid_value"),
    (CHAT, {"messages": HELLO, "max_tokens": -1}, "max_tokens", "invalid_value"),
    (CHAT, {"messages": HELLO, "max_tokens": 10**9}, "max_tokens", "context_length_exceeded"),
    (CHAT, {"messages": HELLO, "max_completion_tokens": 10**30}, "max_completion_tokens", "context_length_exceeded"),
    (CHAT, {"messages": HELLO, "max_tokens": 1.5}, "max_tokens", "invalid_type"),
    (CHAT, {"messages": HELLO, "n": 10**6}, "n", "invalid_value"),
    (CHAT, {"messages": HELLO, "n": 0}, "n", "invalid_value"),
    (CHAT, {"messages": HELLO, "n": True}, "n", "invalid_type"),
    (CHAT, {"messages": HELLO, "stop": ["x"] * 1000}, "stop", "invalid_value"),
    (CHAT, {"messages": HELLO, "stop": [""]}, "stop", "invalid_value"),
    (CHAT, {"messages": HELLO, "stop": [1]}, "stop[0]", "invalid_type"),
    (CHAT, {"messages": HELLO, "stop_token_ids": [400]}, "stop_token_ids", "invalid_value"),
    (CHAT, {"messages": HELLO, "logit_bias": {"400": 1}}, "logit_bias", "invalid_value"),
    (CHAT, {"messages": HELLO, "logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
    (CHAT, {"messages": HELLO, "logit_bias": {str(key): 1 for key in range(2000)}}, "logit_bias", "invalid_value"),
    (CHAT, {"messages": HELLO, "seed": 2**70}, "seed", "invalid_value"),
    (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    (CHAT, {"messages": HELLO, "top_logprobs": 2}, "top_logprobs", "invalid_value"),
    (CHAT, {"messages": HELLO, "priority": "p3"}, "priority", "invalid_value"),
    (CHAT, {"messages": HELLO, "stream_options": {"include_usage": True}}, "stream_options", None),
    (CHAT, {"messages": HELLO, "tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    (CHAT, {"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    (CHAT, {"messages": HELLO, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "invalid_value"),
    (TEXT, {}, "prompt", "missing_required_parameter"),
    (TEXT, {"prompt": ""}, "prompt", "invalid_value"),
    (TEXT, {"prompt": []}, "prompt", "invalid_value"),
    (TEXT, {"prompt": [[]]}, "prompt", "invalid_value"),
    (TEXT, {"prompt": 5}, "prompt", "invalid_type"),
    (TEXT, {"prompt": ["a", 5]}, "prompt", "invalid_type"),
    (TEXT, {"prompt": [1, "a"]}, "prompt", "invalid_type"),
    (TEXT, {"prompt": [400]}, "prompt", "invalid_value"),
    (TEXT, {"prompt": [-1]}, "prompt", "invalid_value"),
    (TEXT, {"prompt": ["a"] * 2000}, "prompt", "invalid_value"),
    (TEXT, {"prompt": [5] * 512}, "prompt", "context_length_exceeded"),
    (TEXT, {"prompt": [5] * 2_000_000}, "prompt", "context_length_exceeded"),
    (TEXT, {"prompt": [[5] * 2_000_000]}, "prompt", "context_length_exceeded"),
    (CHAT, {"messages": HELLO * 100_000}, "messages", None),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}] * 100_000}]}, "messages[0].content", None),
    (CHAT, {"messages": HELLO, "stop_token_ids": [5] * 2_000_000}, "stop_token_ids", "invalid_value"),
    ("/v1/detokenize", {"tokens": [5] * 2_000_000}, "tokens", None),
    (TEXT, {"prompt": "a" * 1_000_000}, "prompt", "context_length_exceeded"),
    (TEXT, {"prompt": "hi", "suffix": "x"}, "suffix", "unsupported_parameter"),
    (TEXT, {"prompt": "hi", "logprobs": 6}, "logprobs", "invalid_value"),
    (TEXT, {"prompt": "hi", "best_of": 21}, "best_of", "invalid_value"),
    (TEXT, {"prompt": "hi", "best_of": 2, "n": 3}, "best_of", "invalid_value"),
    (TEXT, {"prompt": "hi", "best_of": 2, "stream": True}, "best_of", "invalid_value"),
    ("/v1/tokenize", {}, "prompt", "invalid_value"),
    ("/v1/detokenize", {"tokens": [400]}, "tokens", "invalid_value"),
]


def check_form(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"] and list(body["error"]) == ["message", "type", "param", "code"]
    error: dict[str, Any] = body["error"]
    assert error["message"].endswith(".") and "Traceback" not in error["message"]
    return error


@pytest.mark.parametrize(("path", "body", "param", "code"), BAD_FIELDS, ids=lambda value: str(value)[:60])
def test_a_field_that_is_wrong_is_named(
    server: RunningServer, path: str, body: dict[str, Any], param: str | None, code: str | None
) -> None:
    before = server.processor_seconds()
    error = check_form(server.post(path, **body))
    assert server.processor_seconds() - before < SECONDS
    assert error["param"] == param and error["type"] == "invalid_request_error"
    if code is not None:
        assert error["code"] == code


BAD_BODIES = [
    (b"", 400),
    (b"{", 400),
    (b"[]", 400),
    (b'"text"', 400),
    (b'{"prompt": "hi"} trailing', 400),
    (b'{"prompt": "\xff\xfe"}', 400),
    (b"\xff\xfe\x00", 400),
    (b'{"prompt": "hi", "temperature": NaN}', 400),
    (b'{"prompt": "hi", "temperature": 1e999}', 400),
    (b'{"prompt": "\\ud800"}', 400),
    (b'{"prompt": ' + b"[" * 200_000, 400),
    (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    (b'{"model": "\\ud800", "prompt": "a"}', 400),
]


@pytest.mark.parametrize(("body", "status"), BAD_BODIES, ids=lambda value: repr(value)[:40])
def test_a_body_that_is_no_request(server: RunningServer, body: bytes, status: int) -> None:
    before = server.processor_seconds()
    check_form(server.http.post(TEXT, content=body, headers={"content-type": "application/json"}), status)
    assert server.processor_seconds() - before < SECONDS


def test_other_kinds_of_content_are_refused(server: RunningServer) -> None:
    body = b'{"prompt": "hi"}'
    check_form(server.http.post(TEXT, content=body, headers={"content-type": "text/plain"}), 415)


def test_unknown_models_and_places(server: RunningServer) -> None:
    error = check_form(server.post(CHAT, model="gpt-9", messages=HELLO), 404)
    assert error["code"] == "model_not_found" and error["param"] == "model"
    with pytest.raises(openai.NotFoundError):
        server.client().chat.completions.create(model="gpt-9", messages=HELLO)  # type: ignore[arg-type]
    check_form(server.http.get("/v1/nowhere"), 404)
    check_form(server.http.get("/v1/models/"), 404)
    error = check_form(server.http.get(CHAT), 405)
    assert error["code"] == "method_not_allowed"


def test_the_official_client_sees_our_errors(server: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(model="tiny", messages=HELLO, temperature=9)  # type: ignore[arg-type]
    assert caught.value.param == "temperature" and caught.value.code == "invalid_value"


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_of_50_megabytes(server: RunningServer, declared: bool) -> None:
    """The answer comes before the body has been sent: a server that waits for the rest lets the connection time out."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        if declared:
            connection.sendall(head + b"Content-Length: 52428800\r\n\r\n" + b"x" * 1000)
        else:
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
            for _ in range(9):
                connection.sendall(chunk)
        answer = connection.recv(1 << 16)
        while b"}}" not in answer:
            answer += connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_too_large"


def test_a_client_that_sends_all_of_it_can_read_the_refusal(server: RunningServer) -> None:
    content = b"x" * (50 << 20)
    check_form(server.http.post(TEXT, content=content, headers={"content-type": "application/json"}), 413)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Many: a\r\n" * 10_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Endless: " + b"a" * 200_000,
    ],
    ids=["long", "many", "path", "endless"],
)
def test_huge_headers(server: RunningServer, head: bytes) -> None:
    assert status_of(server, head) == 431


@pytest.mark.parametrize(
    "head",
    [b"nonsense\r\n\r\n", b"GET  HTTP/1.1\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00"],
)
def test_what_is_not_http(server: RunningServer, head: bytes) -> None:
    assert status_of(server, head) in (400, 404)


def status_of(server: RunningServer, head: bytes) -> int:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        with contextlib.suppress(ConnectionError):  # it may answer before it has read all
            connection.sendall(head)
        return int(connection.recv(1 << 16).split()[1])


def test_a_megabyte_in_pieces_of_one_byte_is_read(server: RunningServer) -> None:
    body = json.dumps({"prompt": "hi", "max_tokens": 1, "user": "u" * 20_000}).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"".join(b"1\r\n%c\r\n" % byte for byte in body)
            + b"0\r\n\r\n"
        )
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_a_request_without_numbers_fails_alone(server: RunningServer) -> None:
    error = check_form(server.post(TEXT, prompt=[398, 5], max_tokens=3), 500)
    assert error["code"] == "numerical_error"
    server.complete()
