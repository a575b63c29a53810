"""Applications: their routes, what their handlers are given, and the guide's example."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import openai
import pytest
from running_application import ROOT, RunningApplication
from running_server import eventually

from tessera import LLM, Parameters, server
from tessera.errors import ApplicationInvalid
from tessera_runtime.server.errors import ConfigurationInvalid

MESSAGES: Any = [{"role": "user", "content": "The quick brown fox"}]
EXAMPLES = ROOT / "examples"


def post(application: RunningApplication, path: str, **body: Any) -> Any:
    return application.http.post(path, json=body)


def test_a_chat_streams_what_it_says_as_a_whole(application: RunningApplication) -> None:
    asked: dict[str, Any] = {"model": "assistant", "messages": MESSAGES, "max_tokens": 20}
    whole = application.client().chat.completions.create(**asked)
    text, usage, reasons, pieces = "", None, [], 0
    stream = application.client().chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            pieces += bool(choice.delta.content)
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert text == whole.choices[0].message.content and pieces > 3
    assert text.startswith("<") and text.endswith(">") and len(text) > 4
    assert reasons == ["length"] == [whole.choices[0].finish_reason]
    assert usage is not None and whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens == 20
    assert usage.prompt_tokens == whole.usage.prompt_tokens > 0


def test_many_users_get_what_one_gets(application: RunningApplication) -> None:
    def text(limit: int) -> str:
        answer = application.client().chat.completions.create(model="assistant", messages=MESSAGES, max_tokens=limit)
        return answer.choices[0].message.content or ""

    limits = range(5, 25)
    alone = [text(limit) for limit in limits]
    together: dict[int, str] = {}
    threads = [threading.Thread(target=lambda limit=limit: together.update({limit: text(limit)})) for limit in limits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [together[limit] for limit in limits] == alone


def test_a_client_that_leaves_stops_the_work(application: RunningApplication) -> None:
    def disconnected() -> int:
        lines = application.http.get("/metrics").text.splitlines()
        return sum('outcome="disconnected"' in line and not line.endswith(" 0.0") for line in lines)

    assert not disconnected()
    stream = application.client().chat.completions.create(
        model="assistant", messages=MESSAGES, max_tokens=450, stream=True
    )
    next(iter(stream))
    stream.close()
    assert eventually(disconnected)


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": "hi"}, 400, "messages"),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"max_tokens": 10**9}, 400, "max_tokens"),
        ({"model": "other"}, 404, "model"),
        ({"n": 2}, 400, "n"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"temperature": "warm"}, 400, "temperature"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_have_openais_form(
    application: RunningApplication, change: dict[str, Any], status: int, param: str, stream: bool
) -> None:
    body = {"model": "assistant", "messages": MESSAGES, "max_tokens": 3, "stream": stream, **change}
    response = post(application, "/v1/chat/completions", **body)
    assert response.status_code in (200, status) if stream else response.status_code == status
    lines = [line for line in response.text.split("\n\n") if "error" in line]
    error = json.loads(lines[0].removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["param"] == param


def test_a_session_with_an_unknown_model_says_which_there_are(application: RunningApplication) -> None:
    response = post(application, "/v1/completions", prompt="a")
    assert response.status_code == 500
    assert "quick" not in application.errors()


def test_a_session_may_name_the_package(application: RunningApplication) -> None:
    text = post(application, "/by-package", messages=MESSAGES).json()["text"]
    chat = application.client().chat.completions.create(model="assistant", messages=MESSAGES, max_tokens=5)
    assert f"<{text}>" == chat.choices[0].message.content and text


def test_routes_of_ones_own(application: RunningApplication) -> None:
    assert post(application, "/shout", text="loud").json() == {"loud": "LOUD", "more": 0}
    assert post(application, "/shout", text="loud", more=2).json()["more"] == 2
    missing = post(application, "/shout", more=2)
    assert missing.status_code == 400 and missing.json()["error"]["param"] == "text"
    assert application.http.post("/shout", content=b"[1]").status_code == 400
    assert application.http.post("/shout", content=b"{").status_code == 400
    assert application.http.get("/shout").status_code == 405
    assert application.http.get("/hello").json() == {"text": "hello pyth"}


def test_events_of_ones_own(application: RunningApplication) -> None:
    events = post(application, "/words", text="one two").text.split("\n\n")
    assert events == ['data: {"text":"one"}', 'data: {"text":"two"}', 'data: {"count":2}', "data: [DONE]", ""]


def test_defects_of_a_handler_stay_inside(application: RunningApplication) -> None:
    at_once = post(application, "/words", text="fail")
    assert at_once.status_code == 500 and "division" not in at_once.text
    late = post(application, "/words", text="one fail two").text.split("\n\n")
    assert late[0] == 'data: {"text":"one"}' and "defect" in late[1] and late[2] == "data: [DONE]"
    assert "handler_failed" in application.errors()
    assert "ZeroDivisionError" in application.errors() and "ZeroDivisionError" not in "".join(late)
    refused = post(application, "/words", text="one refuse").text.split("\n\n")
    assert "error" in refused[1] and refused[2] == "data: [DONE]"
    assert application.http.get("/healthz").status_code == 200


def test_a_handler_ends_when_its_client_is_gone(application: RunningApplication) -> None:
    with application.http.stream("POST", "/ticks", json={}) as response:
        next(response.iter_lines())
        assert post(application, "/ticking").json() == 1
    assert eventually(lambda: post(application, "/ticking").json() == 0)


def test_the_built_in_endpoints_are_there(application: RunningApplication) -> None:
    assert [model["id"] for model in application.http.get("/v1/models").json()["data"]] == ["assistant"]
    assert post(application, "/v1/tokenize", prompt="The quick").json()["count"] > 0
    assert application.http.get("/health/ready").status_code == 200
    assert application.http.get("/nothing").json()["error"]["code"] == "not_found"


def test_the_guides_example_runs(compiled: Path, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "tis.yaml", tmp_path)
    running = RunningApplication(EXAMPLES / "minimal_server.py", tmp_path, compiled)
    try:
        asked: dict[str, Any] = {"model": "model", "messages": MESSAGES, "max_tokens": 8, "stream": True}
        chunks = list(running.client().chat.completions.create(**asked))
        assert chunks[-1].choices[0].finish_reason in ("length", "stop")
        assert len(chunks) > 2 and all(chunk.object == "chat.completion.chunk" for chunk in chunks)
        with pytest.raises(openai.NotFoundError):
            running.client().chat.completions.create(**{**asked, "model": "other"})
        assert "target_p99_ms is not yet active" in running.errors()
        assert running.stop() == 0
    finally:
        running.close()


def test_the_offline_example_runs(compiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import runpy

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The capital\n\nquick brown\n", encoding="utf-8")
    runpy.run_path(str(EXAMPLES / "offline_batch.py"))["main"](str(compiled), str(prompts))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    with LLM(compiled) as llm:
        (expected,) = llm.generate([{"role": "user", "content": "quick brown"}], Parameters(max_tokens=64))
    assert [line["prompt"] for line in lines] == ["The capital", "quick brown"]
    assert lines[1]["answer"] == expected.text


def test_what_cannot_be_registered() -> None:
    app = server.App()
    app.model("a/model.tspkg")(lambda pkg: pkg)
    with pytest.raises(ApplicationInvalid, match="'model' is registered"):
        app.model("b/model")
    with pytest.raises(ApplicationInvalid, match="path such as"):
        app.route("no slash")
    with pytest.raises(ApplicationInvalid, match="POST or GET"):
        app.route("/a", method="PUT")
    app.route("/a")(lambda req: None)
    with pytest.raises(ApplicationInvalid, match="POST /a is registered"):
        app.route("/a")

    async def asynchronous(req: Any) -> None: ...

    def yields(req: Any) -> Any:
        yield ""

    with pytest.raises(ApplicationInvalid, match="asynchronous"):
        app.route("/b")(asynchronous)
    with pytest.raises(ApplicationInvalid, match="without stream=True"):
        app.route("/c")(yields)


def test_what_cannot_be_run(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ApplicationInvalid, match="no model"):
        server.App().run()
    app = server.App()
    app.model(package)(lambda pkg: "not a module")
    with pytest.raises(ApplicationInvalid, match="returned str"):
        app.run()
    (tmp_path / "tis.yaml").write_text("server:\n  prot: 1\n")
    with pytest.raises(ConfigurationInvalid, match="server.prot.*'port'"):
        server.App(tmp_path / "tis.yaml").run()
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            server.App().run()
        except ApplicationInvalid as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])
