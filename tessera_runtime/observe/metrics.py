"""What the server counts and times, for Prometheus: names say the unit, and labels have few values.

The gateway observes requests as clients see them; `engine_metrics` adds what the engines say of themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

if TYPE_CHECKING:
    from tessera_runtime.server.answer import Answer

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
GAP = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
DURATION = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class AnswerTiming(NamedTuple):
    """Where an answer says how it goes."""

    queue: Callable[[float], None]
    first_token: Callable[[float], None]
    gap: Callable[[float], None]


class ServerMetrics:
    """One registry; nothing is global, so that tests and several servers in a process do not meet."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "tessera_requests_total",
            "HTTP requests, by how they ended.",
            ["model", "endpoint", "outcome"],
            registry=registry,
        )
        self._answers = Counter(
            "tessera_answers_total",
            "Answers, by how they ended: a finish reason, error or disconnected.",
            ["model", "outcome"],
            registry=registry,
        )
        self._prompt_tokens = Counter("tessera_prompt_tokens_total", "Tokens of prompts.", ["model"], registry=registry)
        self._cached_tokens = Counter(
            "tessera_prompt_cached_tokens_total",
            "Tokens of prompts that were not computed because of earlier requests.",
            ["model"],
            registry=registry,
        )
        self._generated_tokens = Counter(
            "tessera_generated_tokens_total", "Tokens that were sent to clients.", ["model"], registry=registry
        )
        self._first_token = Histogram(
            "tessera_time_to_first_token_seconds",
            "From submission to an engine until the first token.",
            ["model"],
            buckets=FIRST_TOKEN,
            registry=registry,
        )
        self._queue = Histogram(
            "tessera_queue_time_seconds",
            "From submission to an engine until the first step that works on it.",
            ["model"],
            buckets=FIRST_TOKEN,
            registry=registry,
        )
        self._gap = Histogram(
            "tessera_inter_token_latency_seconds",
            "Between two tokens of an answer.",
            ["model"],
            buckets=GAP,
            registry=registry,
        )
        self._answer_seconds = Histogram(
            "tessera_answer_duration_seconds",
            "From submission to an engine until the end of the answer.",
            ["model"],
            buckets=DURATION,
            registry=registry,
        )
        self._request_seconds = Histogram(
            "tessera_request_duration_seconds",
            "From the headers of a request until the end of its response.",
            ["endpoint"],
            buckets=DURATION,
            registry=registry,
        )
        self._preparation = Histogram(
            "tessera_request_preparation_seconds",
            "From the headers of a request until it is handed to an engine: reading, template, tokenizing.",
            ["model"],
            buckets=FIRST_TOKEN,
            registry=registry,
        )
        self._batch = Histogram(
            "tessera_batch_size",
            "Answers that got news from one step of an engine.",
            ["model"],
            buckets=BATCH,
            registry=registry,
        )

    def answer_timing(self, model: str) -> AnswerTiming:
        return AnswerTiming(
            self._queue.labels(model).observe, self._first_token.labels(model).observe, self._gap.labels(model).observe
        )

    def step_observer(self, model: str) -> Callable[[int], None]:
        """To be called with the number of answers that a step advanced."""
        return self._batch.labels(model).observe

    def observe_preparation(self, model: str, seconds: float) -> None:
        self._preparation.labels(model).observe(seconds)

    def observe_generation(self, model: str, answers: Sequence[Answer], prompt_tokens: int, outcome: str) -> None:
        """Counts the answers of a request that has ended, well or not."""
        now = time.monotonic()
        self._prompt_tokens.labels(model).inc(prompt_tokens)
        for answer in answers:
            ended = answer.finish_reason or ("error" if answer.error is not None or outcome == "error" else outcome)
            self._answers.labels(model, ended).inc()
            self._generated_tokens.labels(model).inc(len(answer.ids))
            self._cached_tokens.labels(model).inc(answer.cached_tokens)
            self._answer_seconds.labels(model).observe(now - answer.began)

    def observe_request(self, model: str, endpoint: str, outcome: str, seconds: float) -> None:
        self._requests.labels(model, endpoint, outcome).inc()
        self._request_seconds.labels(endpoint).observe(seconds)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
