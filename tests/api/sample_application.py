"""An application with a route of every kind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from tessera import server
from tessera.errors import ApplicationInvalid

app = server.App()
ticking = 0


@app.model("model.tspkg", name="assistant")
def load_model(pkg: str) -> server.Module:
    return server.load_package(pkg)


@app.route("/v1/chat/completions", stream=True)
def chat(req: Any) -> Iterator[str]:
    with server.scheduler().session(model="assistant") as session:
        yield "<"
        yield from session.generate(req.messages, max_tokens=req.max_tokens, temperature=0, ignore_eos=True)
        yield ">"


@app.route("/v1/completions", stream=True)
def refuse(req: Any) -> Iterator[str]:
    with server.scheduler().session(model="nobody") as session:
        yield from session.generate([])


@app.route("/by-package")
def by_package(req: Any) -> str:
    opened = server.load_package("model")
    answers = []
    for model in ("assistant", "model.tspkg", opened):
        with server.scheduler().session(model=model) as session:
            answers.append("".join(session.generate(req.messages, max_tokens=5, temperature=0)))
    return answers[0] if len(set(answers)) == 1 else "they differ"


@app.route("/shout")
def shout(req: Any) -> dict[str, Any]:
    return {"loud": req.text.upper(), "more": req.get("more", 0)}


@app.route("/words", stream=True)
def words(req: Any) -> Iterator[Any]:
    for word in req.text.split():
        if word == "fail":
            raise ZeroDivisionError("a defect")
        if word == "refuse":
            raise ApplicationInvalid("not this word")
        yield word
    yield {"count": len(req.text.split())}


@app.route("/ticks", stream=True)
def ticks(req: Any) -> Iterator[str]:
    global ticking
    ticking += 1
    try:
        while True:
            time.sleep(0.01)
            yield "tick"
    finally:
        ticking -= 1


@app.route("/ticking")
def are_ticking(req: Any) -> int:
    return ticking


@app.route("/hello", method="GET")
def hello(req: Any) -> str:
    return f"hello {req.headers['user-agent'][:4]}"


if __name__ == "__main__":
    app.run()
