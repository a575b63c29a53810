"""Runs requests through an engine and collects what each was told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hash_executor import HashExecutor

from tessera_runtime.engine.core import EngineCore, EngineLimits
from tessera_runtime.engine.protocol import Failure, Output, Submit, TokenLogprob
from tessera_runtime.sampling.parameters import SamplingParameters


@dataclass
class Answer:
    """All that was said of one request."""

    ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: Failure | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] | None = None
    cached_tokens: int = 0
    queue_seconds: list[float] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def hear(self, output: Output) -> None:
        assert not self.over, f"{output.request_id} was told something after its end"
        self.ids += output.ids
        self.finish_reason = output.finish_reason
        self.error = output.error
        self.logprobs += output.logprobs
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self.cached_tokens = output.cached_tokens or self.cached_tokens
        self.queue_seconds += [] if output.queue_seconds is None else [output.queue_seconds]
        assert self.finish_reason is None or self.error is None


class Driver:
    """An engine over a `HashExecutor` whose books are checked after every step."""

    def __init__(self, executor: HashExecutor | None = None, **limits: Any) -> None:
        self.executor = executor or HashExecutor()
        of_executor = self.executor.limits
        defaults: dict[str, Any] = {
            "max_batch_tokens": of_executor.max_tokens,
            "max_sequences": 8,
            "max_model_len": of_executor.max_model_len,
            "cache_blocks": 200,
            "lane_seats": (8, 8, 8),
        }
        self.core = EngineCore(self.executor, EngineLimits(**{**defaults, **limits}))
        self.answers: dict[str, Answer] = {}

    def submit(self, name: str, prompt: list[int], max_tokens: int = 8, **fields: Any) -> None:
        sampling = fields.pop("sampling", SamplingParameters(temperature=0))
        self.answers[name] = Answer()
        self.core.submit(Submit(request_id=name, prompt_ids=prompt, max_tokens=max_tokens, sampling=sampling, **fields))

    def step(self) -> None:
        for output in self.core.step():
            self.answers[output.request_id].hear(output)
        self.core.check_integrity()

    def run(self, most: int = 5000) -> dict[str, Answer]:
        """Steps until everybody was answered."""
        for _ in range(most):
            if not self.core.has_work:
                break
            self.step()
        assert not self.core.has_work, "work is left over"
        assert all(answer.over for answer in self.answers.values())
        assert self.core.statistics().used_blocks == 0
        return self.answers


def alone(submit: Submit, max_model_len: int = 64) -> Answer:
    """What the request is told by an engine that has nothing else to do, computes it token by token, and reuses
    nothing.
    """
    driver = Driver(
        HashExecutor(max_tokens=1, max_model_len=max_model_len),
        max_sequences=1,
        lane_seats=(1, 1, 1),
        prefix_reuse=False,
    )
    driver.answers[submit.request_id] = Answer()
    driver.core.submit(submit)
    return driver.run()[submit.request_id]
