"""OpenVINO GenAI: its continuous batching pipeline, stepped by hand, or the plain one for a lone user.

`settings`: `pipeline` ("batching" or "plain") and `properties` of the CPU device.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks.cpu.drivers.protocol import Job, prompts, serve, speed, surprise

CACHE_GB = 4
STEP = 512
"""Tokens that the scheduler may put into one step."""


def generation(new: int) -> Any:
    config = genai.GenerationConfig()
    config.max_new_tokens = new
    config.ignore_eos = True
    config.do_sample = False
    return config


def tensor(tokens: list[int]) -> Any:
    return ov.Tensor(np.array([tokens], np.int64))


class Batching:
    """The pipeline for many users."""

    def __init__(self, job: Job, properties: dict[str, Any]) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = STEP
        scheduler.max_num_seqs = 256
        scheduler.cache_size = CACHE_GB
        scheduler.enable_prefix_caching = False
        self._pipeline = genai.ContinuousBatchingPipeline(job["model"], scheduler, "CPU", properties)
        self._numbers = itertools.count()

    def takes(self, work: dict[str, Any]) -> bool:
        return True

    def prefill(self, tokens: list[int]) -> float:
        started = time.perf_counter()
        # A request whose handle is let go is cancelled.
        handle = self._pipeline.add_request(next(self._numbers), tensor(tokens), generation(1))
        self._drain()
        seconds = time.perf_counter() - started
        if not handle.can_read():
            raise SystemExit("a prompt was computed without a first token")
        return len(tokens) / seconds

    def decode(self, work: dict[str, Any], texts: list[list[int]]) -> float:
        # The first users draw while the last are still in their prompts, so nobody may end early.
        early = len(texts) * work["prompt"] // STEP + 8
        answer = generation(work["new"] + 2 * early)
        handles = [self._pipeline.add_request(next(self._numbers), tensor(text), answer) for text in texts]
        received = [0] * len(handles)

        def step() -> int:
            self._pipeline.step()
            before = sum(received)
            for index, handle in enumerate(handles):
                if handle.can_read():
                    received[index] += sum(len(output.generated_ids) for output in handle.read().values())
            return sum(received) - before

        while min(received) < 2:
            step()
        started = time.perf_counter()
        tokens = sum(step() for _ in range(work["new"]))
        seconds = time.perf_counter() - started
        for handle in handles:
            handle.cancel()
        self._drain()
        if tokens != len(handles) * work["new"]:
            raise SystemExit(f"{tokens} tokens came where {len(handles) * work['new']} were due")
        return tokens / seconds

    def _drain(self) -> None:
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()


class Plain:
    """The pipeline for one user."""

    def __init__(self, job: Job, properties: dict[str, Any]) -> None:
        self._pipeline = genai.LLMPipeline(job["model"], "CPU", **properties)

    def takes(self, work: dict[str, Any]) -> bool:
        return bool(work["users"] == 1)

    def prefill(self, tokens: list[int]) -> float:
        started = time.perf_counter()
        self._pipeline.generate(tensor(tokens), generation(1))
        return len(tokens) / (time.perf_counter() - started)

    def decode(self, work: dict[str, Any], texts: list[list[int]]) -> float:
        result = self._pipeline.generate(tensor(texts[0]), generation(work["new"] + 3))
        moments = result.perf_metrics.raw_metrics.m_new_token_times
        return (len(moments) - 3) / ((moments[-1] - moments[2]) / 1e3)


def perplexity(job: Job, properties: dict[str, Any]) -> float:
    model = ov.Core().compile_model(f"{job['model']}/openvino_model.xml", "CPU", properties)
    request = model.create_infer_request()
    total, scored = 0.0, 0
    for window in job["windows"]:
        request.reset_state()
        count = len(window)
        request.infer(
            {
                "input_ids": np.array([window], np.int64),
                "attention_mask": np.ones((1, count), np.int64),
                "position_ids": np.arange(count, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        logits = request.get_tensor("logits").data[0]
        total += sum(surprise(logits[index], window[index + 1]) for index in range(count - 1))
        scored += count - 1
    return math.exp(total / scored)


def measure(job: Job) -> Iterator[dict[str, Any]]:
    properties = {"INFERENCE_NUM_THREADS": job["threads"], "NUM_STREAMS": 1, **job["settings"]["properties"]}
    if job["windows"]:
        yield {"perplexity": perplexity(job, properties)}
    if not job["work"]:
        return
    pipeline = (Batching if job["settings"]["pipeline"] == "batching" else Plain)(job, properties)
    for work in filter(pipeline.takes, job["work"]):
        if work["new"]:
            texts = prompts(job, work["prompt"], work["users"])
            pipeline.prefill(texts[0])
            yield speed(work, lambda: pipeline.decode(work, texts))  # noqa: B023
        else:
            # The plain pipeline remembers prompts, so none may come twice.
            fresh = iter(prompts(job, work["prompt"], 1 + work["repeats"]))
            pipeline.prefill(next(fresh))
            yield speed(work, lambda: pipeline.prefill(next(fresh)))  # noqa: B023


if __name__ == "__main__":
    serve(measure)
