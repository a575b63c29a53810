"""What drawing a token costs on the device, by how it is drawn."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_measure import decoding_batch
from benchmarks.gpu_models import GpuModel
from tessera_runtime.executor.drawing import GREEDY, LOGPROBS, PENALTIES, idle_draws, token_counts
from tessera_runtime.executor.gpu.executor import GpuExecutor
from tessera_runtime.executor.gpu.step_runner import Form

SAID = 256
"""Tokens of a prompt, and of an answer so far, that penalties look at."""
COUNTED_ROWS = 4
"""Whose tokens left are counted."""


@dataclass(frozen=True)
class Way:
    """One way to draw."""

    label: str
    flags: int = 0
    fields: Mapping[str, float] = field(default_factory=dict)
    """Of `drawing.DRAW`; others are idle."""

    @property
    def form(self) -> Form:
        """As the executor chooses it."""
        return "greedy" if self.flags == GREEDY else "full"

    def draws(self, users: int, seed: int) -> NDArray[Any]:
        draws = idle_draws(users)
        draws["seat"], draws["flags"] = np.arange(users), self.flags
        draws["uniform"] = np.random.default_rng(seed).random(users)
        for name, value in self.fields.items():
            draws[name] = value
        return draws


PENALIZED = {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.2}
WAYS = (
    Way("greedy", GREEDY),
    Way("temperature 0.8", fields={"temperature": 0.8}),
    Way("temperature 0.8, top_p 0.95", fields={"temperature": 0.8, "top_p": 0.95}),
    Way("temperature 0.1, top_p 0.95", fields={"temperature": 0.1, "top_p": 0.95}),
    Way("temperature 0.8, top_k 50", fields={"temperature": 0.8, "top_k": 50}),
    Way("greedy, with penalties", GREEDY | PENALTIES, PENALIZED),
    Way("greedy, with 5 logprobs", GREEDY | LOGPROBS, {"top": 5}),
)
"""Greedy first: the others are compared with it. Random weights make nearly all tokens about as likely, which is the
most work there is; at a temperature of 0.1 few are left, as where a trained model answers."""


@dataclass(frozen=True)
class WayTime:
    label: str
    step: float
    """Seconds of a whole step on the device."""
    beyond: float
    """Seconds beyond the greedy step."""
    left: int | None
    """Tokens that could be drawn, in the median row; None where nothing is left to chance."""


def time_sampling(
    model: GpuModel,
    executor: GpuExecutor,
    users: int,
    context: int,
    seed: int,
    *,
    ways: Sequence[Way] = WAYS,
    rounds: int = 5,
    repeats: int = 30,
) -> list[WayTime]:
    """Steps of each way in turn, `rounds` times; the medians."""
    if not executor.draws:
        raise RuntimeError("the program leaves the drawing to the host")
    vocab_size = executor.limits.vocab_size
    random = np.random.default_rng(seed)
    for seat in range(users):
        prompt, answer = random.integers(0, vocab_size, (2, SAID)).tolist()
        executor.begin_seat(seat, token_counts(vocab_size, prompt, answer), [])
    batch = decoding_batch(model, users, context)
    logits = executor.step(batch)[:COUNTED_ROWS]
    steps: list[list[float]] = [[] for _ in ways]
    for number in range(rounds):
        for times, way in zip(steps, ways, strict=True):
            times.append(executor.time_step(batch, way.form, repeats, way.draws(users, seed + number)))
    medians = [statistics.median(times) for times in steps]
    return [
        WayTime(way.label, step, step - medians[0], _left(way, logits)) for way, step in zip(ways, medians, strict=True)
    ]


def _left(way: Way, logits: NDArray[np.float32]) -> int | None:
    if way.flags & GREEDY:
        return None
    top_k, top_p = int(way.fields.get("top_k", 0)), way.fields.get("top_p", 1.0)
    counts = []
    for row in logits.astype(np.float64):
        weights = np.sort(np.exp((row - row.max()) / way.fields["temperature"]))[::-1][: top_k or None]
        sums = np.cumsum(weights)
        counts.append(min(len(sums), int(np.searchsorted(sums, top_p * sums[-1])) + 1))
    return int(statistics.median(counts))
