"""What clients get for requests that are right, through the official client where that can say it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from running_server import RunningServer

MESSAGES: Any = [{"role": "user", "content": "The quick brown fox"}]


def test_chat(server: RunningServer) -> None:
    answer = server.client().chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=12, extra_body={"ignore_eos": True}
    )
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.model == "tiny"
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_chat_stream_says_the_same_as_the_whole(server: RunningServer) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "seed": 5, "max_tokens": 40, "n": 2}
    whole = server.client().chat.completions.create(**asked)
    stream = server.client().chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    texts, reasons, roles, usage = ["", ""], ["", ""], ["", ""], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] += choice.finish_reason or ""
            roles[choice.index] += choice.delta.role or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert roles == ["assistant", "assistant"]
    assert usage is not None and whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_an_event_stream_has_the_form_of_one(server: RunningServer) -> None:
    response = server.post("/v1/chat/completions", messages=MESSAGES, max_tokens=3, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-request-id"]
    events = response.text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]"
    for event in events[:-2]:
        assert event.startswith("data: {")
        chunk = json.loads(event[6:])
        assert chunk["object"] == "chat.completion.chunk" and "usage" not in chunk


def test_the_seed_decides_and_no_seed_means_another_answer(server: RunningServer) -> None:
    def text(**more: Any) -> str:
        return str(server.complete(temperature=1.5, max_tokens=30, ignore_eos=True, **more)["choices"][0]["text"])

    assert text(seed=7) == text(seed=7)
    assert text(seed=7) != text(seed=8)
    assert text() != text()


def test_several_prompts_of_every_kind(server: RunningServer) -> None:
    def texts(prompt: Any, **more: Any) -> list[str]:
        answer = server.complete(prompt=prompt, temperature=0, ignore_eos=True, **more)
        assert [choice["index"] for choice in answer["choices"]] == list(range(len(answer["choices"])))
        return [choice["text"] for choice in answer["choices"]]

    ids = server.post("/v1/tokenize", prompt="The fox").json()["tokens"]
    one = texts("The fox")
    assert texts(ids) == one
    assert texts([ids, [5, 6]])[0] == one[0]
    assert texts(["The fox", "The dog"])[0] == one[0]
    assert len(texts(["The fox", "The dog"], n=2, seed=1)) == 4


def test_echo_and_logprobs(server: RunningServer) -> None:
    answer = server.complete(prompt="The fox", echo=True, logprobs=2, max_tokens=4, temperature=0, ignore_eos=True)
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]
    prompt_tokens = answer["usage"]["prompt_tokens"]
    assert choice["text"].startswith("The fox")
    assert {len(values) for values in logprobs.values()} == {prompt_tokens + 4}
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    assert all(2 <= len(top) <= 3 for top in logprobs["top_logprobs"][1:])
    assert logprobs["text_offset"][0] == 0 and logprobs["text_offset"][1] == len(logprobs["tokens"][0])
    streamed: list[str] = []
    with server.http.stream(
        "POST",
        "/v1/completions",
        json={
            **{"prompt": "The fox", "echo": True, "logprobs": 2, "max_tokens": 4, "temperature": 0},
            **{"ignore_eos": True, "stream": True},
        },
    ) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                streamed += json.loads(line[6:])["choices"][0]["logprobs"]["tokens"]
    assert streamed == logprobs["tokens"]


def test_chat_logprobs(server: RunningServer) -> None:
    answer = server.client().chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=3, max_tokens=5, extra_body={"ignore_eos": True}
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 5
    for entry in logprobs.content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.bytes is not None and (("\ufffd" in entry.token) or bytes(entry.bytes).decode() == entry.token)


def test_best_of_is_the_likeliest(server: RunningServer) -> None:
    every = server.complete(n=6, seed=3, logprobs=0, temperature=1.3, ignore_eos=True)["choices"]
    best = server.complete(best_of=6, seed=3, temperature=1.3, ignore_eos=True)["choices"]
    assert len(best) == 1 and best[0]["logprobs"] is None
    assert best[0]["text"] == max(every, key=lambda each: sum(each["logprobs"]["token_logprobs"]))["text"]


def test_stop_strings_end_the_text_before_them(server: RunningServer) -> None:
    plain = server.complete(temperature=0, max_tokens=40, ignore_eos=True)["choices"][0]
    assert plain["finish_reason"] == "length"
    stop = plain["text"][7:10]
    cut = server.complete(temperature=0, max_tokens=40, ignore_eos=True, stop=[stop, "never there"])
    choice = cut["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == plain["text"][: plain["text"].index(stop)]
    assert cut["usage"]["completion_tokens"] < 40


def test_stop_token_ids(server: RunningServer) -> None:
    ids = server.complete(temperature=0, max_tokens=6, ignore_eos=True, logprobs=0)
    fourth = ids["choices"][0]["logprobs"]["tokens"][3]
    tokens = [server.post("/v1/detokenize", tokens=[each]).json()["prompt"] for each in range(400)]
    answer = server.complete(
        temperature=0,
        max_tokens=6,
        ignore_eos=True,
        stop_token_ids=[i for i, text in enumerate(tokens) if text == fourth][:64],
    )
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] <= 4


def test_tokenize_and_detokenize(server: RunningServer) -> None:
    body = server.post("/v1/tokenize", prompt="The fox 🙂", return_token_strs=True).json()
    assert body["count"] == len(body["tokens"]) == len(body["token_strs"]) and body["max_model_len"] == 512
    assert server.post("/v1/detokenize", tokens=body["tokens"]).json() == {"prompt": "The fox 🙂"}
    chat = server.post("/v1/tokenize", messages=MESSAGES).json()
    assert server.post("/v1/detokenize", tokens=chat["tokens"]).json() == {
        "prompt": "<|im_start|>The quick brown fox<|im_end|>"
    }


def test_models(server: RunningServer) -> None:
    listed = server.client().models.list().data
    assert [model.id for model in listed] == ["tiny"]
    assert server.client().models.retrieve("tiny").id == "tiny"
    assert server.http.get("/v1/models/tiny").json()["max_model_len"] == 512
    missing = server.http.get("/v1/models/some/other")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/v1/healthz", "/health", "/health/live", "/health/ready", "/version", "/metrics"]
)
def test_small_endpoints(server: RunningServer, path: str) -> None:
    assert server.http.get(path).status_code == 200
    assert server.http.head(path).content == b""


def test_browsers_may_ask(server: RunningServer) -> None:
    headers = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
    preflight = server.http.options("/v1/chat/completions", headers=headers)
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == "*"
    answer = server.http.get("/v1/models", headers={"Origin": "http://page.example"})
    assert answer.headers["access-control-allow-origin"] == "*"


def test_unknown_fields_and_nulls_change_nothing(server: RunningServer) -> None:
    plain = server.complete(temperature=0)["choices"]
    fancy = server.complete(temperature=0, store=True, metadata={"a": 1}, stop=None, n=None, user="me", priority="p2")
    assert fancy["choices"] == plain


def test_prompts_that_begin_alike_are_computed_once_but_not_across_salts(server: RunningServer) -> None:
    prompt = [9] * 10 + list(range(20, 120))
    cached = [
        server.complete(prompt=prompt, max_tokens=1, **more)["usage"]["prompt_tokens_details"]["cached_tokens"]
        for more in ({}, {}, {"cache_salt": "mine"}, {"cache_salt": "mine"})
    ]
    assert cached == [0, 96, 0, 96]


def test_messages_as_parts_and_developers(server: RunningServer) -> None:
    parts = [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    plain = [{"role": "system", "content": "a\nb"}]
    ids = [server.post("/v1/tokenize", messages=messages).json()["tokens"] for messages in (parts, plain)]
    assert ids[0] == ids[1]


def test_metrics_name_what_happened(server: RunningServer) -> None:
    before = server.metric("tessera_generated_tokens_total", model="tiny")
    server.complete(max_tokens=5, ignore_eos=True)
    text = server.http.get("/metrics").text
    assert server.metric("tessera_generated_tokens_total", model="tiny") == before + 5
    for name in (
        *("tessera_requests_total", "tessera_time_to_first_token_seconds_bucket", "tessera_batch_size_bucket"),
        "tessera_queue_time_seconds_bucket",
        *("tessera_inter_token_latency_seconds_bucket", "tessera_request_duration_seconds_bucket"),
        *("tessera_kv_cache_usage_ratio", "tessera_engine_restarts_total", "tessera_preemptions_total"),
        *(
            "tessera_answers_running",
            "tessera_process_resident_memory_bytes",
            "tessera_request_preparation_seconds_count",
        ),
    ):
        assert f"\n{name}" in text, name


def test_the_log_has_no_word_of_a_request(server: RunningServer) -> None:
    secret = "Rumpelstiltskin"
    server.post("/v1/chat/completions", messages=[{"role": "user", "content": secret}], max_tokens=2)
    server.post("/v1/chat/completions", messages=[{"role": secret}])
    log = server.errors()
    assert '"endpoint":"chat_completions"' in log and secret not in log
