"""How well a model predicts a text: mean negative log-likelihood and perplexity over fresh windows.

The text's tokens are cut into windows one after another. Each starts with an empty cache; its first token is never
scored, because nothing of the text stands before it, and each other token is scored given all before it in the window.
With `bos_id`, that token is computed in front of each window and not scored: the tokens scored are the same, so figures
with and without it can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.engine.generation import SequenceRunner
from tessera_runtime.errors import ContextLengthExceeded, InvalidRequest, NumericalError
from tessera_runtime.executor.interface import Executor, ExecutorLimits

LOGIT_BYTES = 256 << 20
"""Logits of one step: a step is made smaller than the program's limit rather than let them take more."""
ROWS_AT_ONCE = 32
"""Rows turned into float64 together."""


@dataclass(frozen=True)
class Evaluation:
    nll: float
    """Mean negative log-likelihood of a scored token, in nats."""
    ppl: float
    """exp(nll)."""
    tokens: int
    """Tokens scored."""


def evaluate(
    executor: Executor,
    ids: Sequence[int],
    *,
    window: int,
    windows: int,
    bos_id: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores the first `windows` windows of `window` tokens. A text that ends sooner gives fewer, the last of them
    shorter.

    `progress` is called with (tokens done, tokens in all) after each step.
    """
    limits = executor.limits
    _check_arguments(ids, window, windows, bos_id, limits)
    pieces = [ids[start : start + window] for start in range(0, min(len(ids), window * windows), window)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    total = sum(len(piece) for piece in pieces)
    nll = 0.0
    scored = 0
    done = 0
    for piece in pieces:
        front = [] if bos_id is None else [bos_id]
        tokens = np.asarray([*front, *piece], np.int64)
        # targets[i] is what tokens[i] should have predicted; the first token of the text is nobody's target.
        targets = tokens[1:]
        first = len(front)
        runner = SequenceRunner(executor, len(tokens))
        for start, end in _chunks(len(tokens) - 1, limits):
            rows = list(range(max(first - start, 0), end - start))
            logits = runner.step(tokens[start:end].tolist(), rows)
            if rows:
                losses = token_losses(logits, targets[start + rows[0] : end])
                nll += math.fsum(losses.tolist())
                scored += len(rows)
            if progress is not None:
                progress(done + min(end, len(piece)), total)
        done += len(piece)
    mean = nll / scored
    return Evaluation(nll=mean, ppl=math.exp(mean) if mean < 700.0 else math.inf, tokens=scored)


def token_losses(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log softmax(logits)[target] of each row, in float64. Raises `NumericalError` if a row is not finite where it
    matters.
    """
    losses = np.empty(len(logits), np.float64)
    for start in range(0, len(logits), ROWS_AT_ONCE):
        rows = logits[start : start + ROWS_AT_ONCE].astype(np.float64)
        peaks = rows.max(axis=1, keepdims=True)
        chosen = rows[np.arange(len(rows)), targets[start : start + ROWS_AT_ONCE]] - peaks[:, 0]
        rows -= peaks
        np.exp(rows, out=rows)
        losses[start : start + ROWS_AT_ONCE] = np.log(rows.sum(axis=1)) - chosen
    if not np.isfinite(losses).all():
        raise NumericalError(
            "The model's logits are not finite, so the text cannot be scored.",
            hint="Verify the package with `tessera verify`.",
        )
    return losses


def _chunks(count: int, limits: ExecutorLimits) -> list[tuple[int, int]]:
    size = max(min(limits.max_tokens, LOGIT_BYTES // (4 * limits.vocab_size)), 1)
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _check_arguments(ids: Sequence[int], window: int, windows: int, bos_id: int | None, limits: ExecutorLimits) -> None:
    if window < 2:
        raise InvalidRequest(f"A window must have at least 2 tokens, not {window}: its first is not scored.")
    if windows < 1:
        raise InvalidRequest(f"There must be at least 1 window, not {windows}.")
    longest = window + (bos_id is not None)
    if longest > limits.max_model_len:
        raise ContextLengthExceeded(
            f"A window of {longest} tokens is longer than the model's context of {limits.max_model_len}.",
            hint="Choose a smaller --window.",
        )
    if len(ids) < 2:
        raise InvalidRequest(f"The text has {len(ids)} tokens; at least 2 are needed.")
    wrong = next((token for token in ids if not 0 <= token < limits.vocab_size), None)
    if wrong is not None:
        raise InvalidRequest(f"Token id {wrong} is not one of the model's, which are 0 to {limits.vocab_size - 1}.")
