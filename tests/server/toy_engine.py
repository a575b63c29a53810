"""The real engine process around a toy model, whose steps take as long as a test wants.

Started by the server in place of `tessera_runtime.engine.process`. The seconds of a step come as the target's name;
`busy` before them makes it work instead of sleep.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from toy_executor import ToyExecutor

from tessera_runtime.engine import process
from tessera_runtime.errors import TargetUnavailable
from tessera_runtime.executor.interface import StepBatch

CONTEXT = 512
VOCABULARY = 400
POISON = 399
"""A prompt that begins with this token ends the process."""
NOT_A_NUMBER = 398
"""A prompt that begins with this token yields logits that are no numbers."""


class SlowExecutor(ToyExecutor):
    """Looks at the last few tokens only, so that long answers stay cheap."""

    def __init__(self, seconds: float, works: bool) -> None:
        super().__init__(vocab_size=VOCABULARY, max_tokens=64, max_model_len=CONTEXT, block_tokens=16)
        self._seconds = seconds
        self._works = works

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        if self._works:
            until = time.monotonic() + self._seconds
            while time.monotonic() < until:
                pass
        else:
            time.sleep(self._seconds)
        if POISON in batch.token_ids[batch.positions == 0]:
            raise SystemExit(9)
        self.steps.clear()
        return super().step(batch)

    def expected(self, prefix: list[int]) -> NDArray[np.float32]:
        if prefix[0] == NOT_A_NUMBER:
            return np.full(VOCABULARY, np.nan, np.float32)
        return super().expected(prefix[-8:])


def load(package: Any, *, target: str | None = None, threads: int | None = None, notice: Any = None) -> ToyExecutor:
    if target == "none":
        raise TargetUnavailable("No target of this package runs here.", hint="Build one.")
    name = target or "0"
    return SlowExecutor(float(name.removeprefix("busy")), name.startswith("busy"))


def main(arguments: list[str]) -> int:
    vars(process)["load_executor"] = load
    return process.main(arguments)
