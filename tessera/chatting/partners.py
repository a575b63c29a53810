"""Whom one can chat with: a package in this process, or a server."""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tessera.errors import ServerRefused, ServerUnreachable

if TYPE_CHECKING:
    from tessera.llm import LLM

Messages = Sequence[dict[str, str]]
ANSWER_SECONDS = 600.0
TEMPERATURE = 0.7
"""For a package whose authors advise none; small models ramble at 1."""


@dataclass(frozen=True)
class Wishes:
    """How answers should be drawn; None leaves it to the model."""

    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


class Partner(Protocol):
    """Answers conversations."""

    @property
    def name(self) -> str: ...

    @property
    def interrupts_safely(self) -> bool:
        """Whether an exception may be raised at any point of `answer`; if not, it must be asked to stop in between."""
        ...

    def answer(self, messages: Messages) -> Iterator[str]:
        """The pieces of the answer's text. Closing the iterator stops the work on it."""
        ...

    def close(self) -> None: ...


class PackagePartner:
    """A package, loaded here."""

    interrupts_safely = False  # an engine that is torn out of a step could not go on

    def __init__(self, llm: LLM, wishes: Wishes) -> None:
        from tessera.llm import Parameters
        from tessera_runtime.server.sampling_fields import model_defaults

        values: dict[str, Any] = {"temperature": TEMPERATURE, **model_defaults(dict(llm.generation_defaults))}
        values["seed"] = secrets.randbits(63) if wishes.seed is None else wishes.seed
        values["max_tokens"] = llm.max_model_len if wishes.max_tokens is None else wishes.max_tokens
        if wishes.temperature is not None:
            values["temperature"] = wishes.temperature
        self._llm = llm
        self._params = Parameters(**values)

    @property
    def name(self) -> str:
        return f"{self._llm.name} on {self._llm.description}"

    def answer(self, messages: Messages) -> Iterator[str]:
        stream = self._llm.stream(messages, self._params)
        with stream:
            yield from stream
        if stream.result is not None and stream.result.error is not None:
            raise ServerRefused(stream.result.error)

    def close(self) -> None:
        self._llm.close()


def open_package_partner(path: Path, wishes: Wishes, threads: int | None, target: str | None) -> PackagePartner:
    """Loads the package."""
    from tessera.cli.output import notice
    from tessera.llm import LLM
    from tessera_runtime.configuration import Configuration

    configuration = Configuration.from_environment()
    llm = LLM(
        path,
        threads=threads or configuration.threads,
        target=target or configuration.target,
        max_sequences=1,
        notice=notice,
    )
    try:
        return PackagePartner(llm, wishes)
    except BaseException:
        llm.close()
        raise


class ServerPartner:
    """A model of a server that speaks OpenAI's protocol."""

    interrupts_safely = True

    def __init__(self, url: str, wishes: Wishes, model: str | None = None, api_key: str | None = None) -> None:
        from tessera.benchmarking.http_stream import Address

        self._address = Address.parse(url)
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        named = {"temperature": wishes.temperature, "max_tokens": wishes.max_tokens, "seed": wishes.seed}
        self._wishes = {name: value for name, value in named.items() if value is not None}
        self._model = model or self._first_model()

    @property
    def name(self) -> str:
        return f"{self._model} at {self._address}"

    def answer(self, messages: Messages) -> Iterator[str]:
        body = {"model": self._model, "messages": list(messages), "stream": True, **self._wishes}
        with self._request("POST", "/v1/chat/completions", body) as response:
            ended = False
            for line in response:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise ServerRefused(str(event["error"].get("message")))
                for choice in event.get("choices", []):
                    ended = ended or choice.get("finish_reason") is not None
                    text = (choice.get("delta") or {}).get("content")
                    if text:
                        yield text
            if not ended:
                raise ServerUnreachable("The server ended the answer in the middle.")

    def close(self) -> None:
        """Nothing is kept open between answers."""

    def _first_model(self) -> str:
        with self._request("GET", "/v1/models", None) as response:
            names = [str(entry["id"]) for entry in json.loads(response.read()).get("data", [])]
        if not names:
            raise ServerRefused(f"The server at {self._address} has no model.")
        return names[0]

    @contextmanager
    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Iterator[http.client.HTTPResponse]:
        address = self._address
        kind = http.client.HTTPSConnection if address.secure else http.client.HTTPConnection
        connection = kind(address.host, address.port, timeout=ANSWER_SECONDS)
        headers = {**self._headers, **({"content-type": "application/json"} if body is not None else {})}
        try:
            data = json.dumps(body).encode() if body is not None else None
            connection.request(method, address.path + path, data, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise ServerRefused(_refusal(response))
            yield response
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
            raise ServerUnreachable(
                f"There is no proper answer from {address}: {reason}.", hint="Is `tessera run` running there?"
            ) from None
        finally:
            connection.close()


def _refusal(response: http.client.HTTPResponse) -> str:
    try:
        return str(json.loads(response.read(1 << 20))["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered with status {response.status}."
