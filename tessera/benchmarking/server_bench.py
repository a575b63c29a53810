"""Measures a server over HTTP, as its users see it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tessera.benchmarking.http_stream import Address, Response, call
from tessera.benchmarking.workload import PASSAGE, Percentiles, Prompts, Workload, busy_note, median, percentiles
from tessera.errors import ServerRefused

Report = Callable[[str, int, int], None]
CLIENT_LIMIT = 0.5
"""Share of one core above which this client might hold the server up."""


@dataclass(frozen=True)
class ServerFigures:
    """By number of users where not said otherwise; rates per second, times in seconds."""

    server: str
    model: str
    prefill_tok_s: dict[int, float]
    """By length of a lone prompt: its tokens over the time to the first token of its answer."""
    decode_tok_s: dict[int, float]
    """While all users are receiving; the counterpart of the engine's figure without HTTP."""
    first_token_s: float | None
    """Median time to the first token of a lone user."""
    ttft_s: dict[int, Percentiles]
    """From sending a request to the first token of its answer."""
    inter_token_s: dict[int, Percentiles]
    """Between two events with text of one stream; tokens that come in one event count as one."""
    output_tok_s: dict[int, float]
    """Tokens of all answers over the time from the first request to the last answer."""
    requests_s: dict[int, float]
    errors: dict[int, int]
    first_error: str | None
    client_core_share: float
    """What this client itself took of one core."""
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "prefill_tok_s": _keyed(self.prefill_tok_s),
            "decode_tok_s": _keyed(self.decode_tok_s),
            "first_token_s": self.first_token_s,
            "ttft_s": {str(key): value.as_dict() for key, value in self.ttft_s.items()},
            "inter_token_s": {str(key): value.as_dict() for key, value in self.inter_token_s.items()},
            "output_tok_s": _keyed(self.output_tok_s),
            "requests_s": _keyed(self.requests_s),
            "errors": {str(key): value for key, value in self.errors.items()},
            "first_error": self.first_error,
            "client_core_share": self.client_core_share,
            "server": self.server,
            "model": self.model,
            "notes": list(self.notes),
        }


@dataclass
class _Stream:
    """One request as it went."""

    sent: float
    arrivals: list[float] = field(default_factory=list)
    """Of events with text."""
    tokens: int = 0
    finished: float = 0.0
    error: str | None = None

    def on_event(self, now: float, event: bytes) -> None:
        if not event.startswith(b"data: ") or event == b"data: [DONE]":
            return
        value = json.loads(event[6:])
        if "error" in value:
            self.error = str(value["error"].get("message"))
            return
        choices = value.get("choices")
        if choices and choices[0].get("text"):
            self.arrivals.append(now)
        if value.get("usage"):
            self.tokens = value["usage"]["completion_tokens"]


@dataclass
class _Samples:
    """Of one number of users, over all rounds."""

    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    output: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    errors: int = 0


def bench_server(
    url: str,
    workload: Workload,
    *,
    api_key: str | None = None,
    model: str | None = None,
    temperature: float = 0.0,
    report: Report = lambda phase, done, total: None,
) -> ServerFigures:
    """Drives a server that speaks OpenAI's protocol with `/v1/tokenize`, as `tessera run` does. Raises
    `ServerUnreachable` or `ServerRefused` if nothing can be measured; single failures are counted.
    """
    address = Address.parse(url)
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    return asyncio.run(_Bench(address, workload, headers, temperature).measure(model, report))


class _Bench:
    def __init__(self, address: Address, workload: Workload, headers: dict[str, str], temperature: float) -> None:
        self._address = address
        self._workload = workload
        self._headers = headers
        self._temperature = temperature
        self._model = ""
        self._prompts = Prompts([0])
        self._first_error: str | None = None

    async def measure(self, model: str | None, report: Report) -> ServerFigures:
        note = busy_note()
        await self._prepare(model)
        workload = self._workload
        prefill: dict[int, list[float]] = {length: [] for length in workload.prefills}
        samples = {users: _Samples() for users in workload.batches}
        lone: list[float] = []
        total = workload.rounds * (1 + len(workload.prefills) + len(workload.batches))
        done = 0
        await self._users(1, workload.prompt, min(4, workload.new))
        processor, started = time.process_time(), time.perf_counter()
        for _ in range(workload.rounds):
            for length in workload.prefills:
                prefill[length] += [length / seconds for seconds in await self._first_token(length)]
                report("measuring", done := done + 1, total)
            lone += await self._first_token(workload.prompt)
            report("measuring", done := done + 1, total)
            for users in workload.batches:
                await self._round(users, samples[users])
                report("measuring", done := done + 1, total)
        share = (time.process_time() - processor) / (time.perf_counter() - started)
        notes = [note] if note else []
        if share > CLIENT_LIMIT:
            notes.append(f"This client took {share:.0%} of a core, so it may have held the server up.")
        if self._first_error:
            notes.append(f"Requests failed; the first error was: {self._first_error}")
        return ServerFigures(
            server=str(self._address),
            model=self._model,
            prefill_tok_s=_medians(prefill),
            decode_tok_s=_medians({users: each.decode for users, each in samples.items()}),
            first_token_s=median(lone),
            ttft_s=_percentiles({users: each.ttft for users, each in samples.items()}),
            inter_token_s=_percentiles({users: each.gaps for users, each in samples.items()}),
            output_tok_s=_medians({users: each.output for users, each in samples.items()}),
            requests_s=_medians({users: each.requests for users, each in samples.items()}),
            errors={users: each.errors for users, each in samples.items()},
            first_error=self._first_error,
            client_core_share=share,
            notes=tuple(notes),
        )

    async def _prepare(self, model: str | None) -> None:
        """Finds out what is served, and gets a text in its tokens."""
        models = await self._json("GET", "/v1/models")
        names = [str(entry["id"]) for entry in models.get("data", [])]
        if not names or (model is not None and model not in names):
            wanted = f"no model {model!r}" if model is not None else "no model"
            raise ServerRefused(f"The server at {self._address} has {wanted}; it has {', '.join(names) or 'none'}.")
        self._model = model or names[0]
        body = {"model": self._model, "prompt": PASSAGE, "add_special_tokens": False}
        self._prompts = Prompts((await self._json("POST", "/v1/tokenize", body))["tokens"])

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body).encode() if body is not None else b""
        response = await call(self._address, method, path, body=data, headers=self._headers)
        if response.status != 200:
            raise ServerRefused(f"The server at {self._address} answered {path} with {_refusal(response)}.")
        try:
            return json.loads(response.body)
        except ValueError:
            raise ServerRefused(
                f"The server at {self._address} answered {path} with something that is no JSON."
            ) from None

    async def _first_token(self, length: int) -> list[float]:
        (stream,) = await self._users(1, length, 1)
        return [stream.arrivals[0] - stream.sent] if stream.arrivals else [stream.finished - stream.sent]

    async def _round(self, users: int, samples: _Samples) -> None:
        started = time.perf_counter()
        streams = await self._users(users, self._workload.prompt, self._workload.new)
        good = [stream for stream in streams if stream.error is None and stream.arrivals]
        samples.errors += len(streams) - len(good)
        if self._first_error is None and len(good) < len(streams):
            self._first_error = "an answer had no text, so nothing in it could be timed (ask for more with --new)"
        if not good:
            return
        seconds = max(stream.finished for stream in good) - started
        samples.output.append(sum(stream.tokens for stream in good) / seconds)
        samples.requests.append(len(good) / seconds)
        for stream in good:
            samples.ttft.append(stream.arrivals[0] - stream.sent)
            samples.gaps += [
                after - before for before, after in zip(stream.arrivals, stream.arrivals[1:], strict=False)
            ]
        # Answers that never all run at once have no common rate; the whole round's, prompts included, is no higher.
        rate = common_rate(good)
        samples.decode.append(samples.output[-1] if rate is None else rate)

    async def _users(self, users: int, prompt: int, new: int) -> list[_Stream]:
        return list(await asyncio.gather(*(self._request(prompt, new) for _ in range(users))))

    async def _request(self, prompt: int, new: int) -> _Stream:
        body = {
            "model": self._model,
            "prompt": self._prompts.take(prompt),
            "max_tokens": new,
            "temperature": self._temperature,
            "seed": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        stream = _Stream(time.perf_counter())
        data = json.dumps(body).encode()
        try:
            response = await call(
                self._address, "POST", "/v1/completions", body=data, headers=self._headers, on_event=stream.on_event
            )
            if response.status != 200:
                stream.error = _refusal(response)
        except Exception as error:
            stream.error = str(error)
        stream.finished = time.perf_counter()
        if stream.error is not None and self._first_error is None:
            self._first_error = stream.error
        return stream


def common_rate(streams: Sequence[_Stream]) -> float | None:
    """Tokens per second in the time when every stream was receiving: from the last first token to the first last."""
    begin = max(stream.arrivals[0] for stream in streams)
    end = min(stream.arrivals[-1] for stream in streams)
    if end <= begin:
        return None
    # An event may carry several tokens, or text may come later than its token: events stand for their average.
    tokens = sum(
        sum(begin < arrival <= end for arrival in stream.arrivals) * stream.tokens / len(stream.arrivals)
        for stream in streams
    )
    return tokens / (end - begin)


def _refusal(response: Response) -> str:
    try:
        message = json.loads(response.body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "no reason given"
    return f"status {response.status}: {message}"


def _medians(samples: dict[int, list[float]]) -> dict[int, float]:
    found = {key: median(values) for key, values in samples.items()}
    return {key: value for key, value in found.items() if value is not None}


def _percentiles(samples: dict[int, list[float]]) -> dict[int, Percentiles]:
    found = {key: percentiles(values) for key, values in samples.items()}
    return {key: value for key, value in found.items() if value is not None}


def _keyed(values: dict[int, float]) -> dict[str, float]:
    return {str(key): value for key, value in values.items()}
