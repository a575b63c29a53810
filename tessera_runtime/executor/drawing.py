"""Drawing on the device: how each token is to be drawn, and what was (docs/spec/program-gpu.md, "Drawing").

An executor that draws spares the round trip of the logits to the host, and can be given the next step before the
results of this one are read: the next step's `token_ids` then name the seat whose token is not known yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.executor.interface import Executor, StepBatch

GREEDY, PENALTIES, BIAS, BITMASK, LOGPROBS = 1, 2, 4, 8, 16
"""Flags of a draw."""

DRAW = np.dtype(
    [
        ("seat", "<i4"),
        ("flags", "<i4"),
        ("temperature", "<f4"),
        ("top_k", "<i4"),
        ("top_p", "<f4"),
        ("min_p", "<f4"),
        ("repetition_penalty", "<f4"),
        ("frequency_penalty", "<f4"),
        ("presence_penalty", "<f4"),
        ("biases", "<i4"),
        ("uniform", "<f8"),
        ("top", "<i4"),
        ("unused", "<i4", 3),
    ]
)
"""A row of the input `draws`."""

NO_SEAT = -1
MAX_BIASES = 1024
MAX_TOP = 20
LOGPROB_WORDS = 64
IN_PROMPT = np.int16(-32768)
"""The bit of a token count that says the token is in the prompt."""
MOST_COUNTED = 32767


def idle_draws(rows: int) -> NDArray[Any]:
    """Draws of rows that nothing is drawn from; valid in every field."""
    draws = np.zeros(rows, DRAW)
    draws["seat"] = NO_SEAT
    for field in ("temperature", "top_p", "repetition_penalty"):
        draws[field] = 1.0
    draws["flags"] = GREEDY
    return draws


def token_counts(vocab_size: int, prompt: Sequence[int], answer: Sequence[int]) -> NDArray[np.int16]:
    """The row of the seat memory `token_counts` for a sequence that has said `answer` so far."""
    counts = np.minimum(np.bincount(np.asarray(answer, np.int64), minlength=vocab_size), MOST_COUNTED).astype(np.int16)
    counts[np.unique(np.asarray(prompt, np.int64))] |= IN_PROMPT
    return counts


@dataclass(frozen=True)
class Drawn:
    """What a step drew."""

    ids: NDArray[np.int32]
    """[L]; -1 where the highest logit was not finite."""
    logprobs: NDArray[np.float32] | None
    """[L, 64] if any row asked for them; docs/spec/program-gpu.md says what the words mean."""

    def logprob(self, row: int, top: int) -> tuple[float, list[tuple[int, float]]]:
        """The log-probability of a row's token, and the `top` likeliest ids with theirs."""
        if self.logprobs is None:
            return 0.0, []
        words = self.logprobs[row]
        ids = words[1 : 1 + top].view(np.int32).tolist()
        return float(words[0]), list(zip(ids, words[21 : 21 + top].tolist(), strict=True))


@runtime_checkable
class DrawingExecutor(Executor, Protocol):
    """An executor that can draw. At most two steps may be in flight: submitted and not collected."""

    @property
    def draws(self) -> bool:
        """Whether the program at hand can draw; without, only `step` works."""
        ...

    def free_memory(self) -> int:
        """Bytes of device memory that the cache may take."""
        ...

    def allocate_seats(self, seats: int) -> None:
        """Makes the memory of so many seats, all zero, and prepares the steps that will come most often."""
        ...

    def begin_seat(self, seat: int, counts: NDArray[np.int16] | None, biases: Sequence[tuple[int, float]]) -> None:
        """Sets the seat memory of a sequence with penalties or biases, before the first step that draws for it."""
        ...

    def set_bitmask(self, seat: int, words: NDArray[np.int32]) -> None:
        """Says which tokens the next draw of this seat may be: bit t % 32 of word t // 32."""
        ...

    def submit(self, batch: StepBatch, draws: NDArray[Any]) -> int:
        """Queues a step; `draws` has a row for each row of logits. Token ids may be `-1 - seat`. Returns a ticket."""
        ...

    def collect(self, ticket: int) -> Drawn:
        """Waits for a step that was submitted."""
        ...
