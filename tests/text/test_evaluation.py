"""Perplexity: against the plain definition, for any cut of the text into steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from toy_executor import ToyExecutor

from tessera_runtime.engine import evaluation
from tessera_runtime.engine.evaluation import evaluate, token_losses
from tessera_runtime.errors import ContextLengthExceeded, InvalidRequest, NumericalError

IDS = np.random.default_rng(1).integers(0, 50, 60).tolist()


def definition(ids: list[int], window: int, windows: int, bos_id: int | None) -> tuple[float, int]:
    """One token at a time, each window from nothing."""
    toy = ToyExecutor()
    losses = []
    for start in range(0, window * windows, window):
        piece = ids[start : start + window]
        front = [] if bos_id is None else [bos_id]
        for index in range(1, len(piece)):
            logits = toy.expected([*front, *piece[:index]]).astype(np.float64)
            losses.append(math.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[piece[index]])
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize("step", [1, 3, 8, 64])
@pytest.mark.parametrize("bos_id", [None, 7])
@pytest.mark.parametrize(("window", "windows"), [(20, 2), (20, 3), (25, 4), (2, 5)])
def test_the_figure_is_the_definition(window: int, windows: int, bos_id: int | None, step: int) -> None:
    result = evaluate(ToyExecutor(max_tokens=step), IDS, window=window, windows=windows, bos_id=bos_id)
    nll, tokens = definition(IDS, window, windows, bos_id)
    assert result.tokens == tokens
    assert result.nll == pytest.approx(nll, rel=1e-9)
    assert result.ppl == pytest.approx(math.exp(nll), rel=1e-9)


def test_steps_shrink_when_logits_would_take_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LOGIT_BYTES", 4 * 50 * 3)
    executor = ToyExecutor(max_tokens=64)
    result = evaluate(executor, IDS, window=20, windows=1)
    assert max(len(batch.token_ids) for batch in executor.steps) == 3
    assert result.nll == pytest.approx(definition(IDS, 20, 1, None)[0], rel=1e-9)


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(ToyExecutor(), IDS, window=20, windows=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][1] == 40 and seen[-1][0] >= 39


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least 2 are needed"):
        evaluate(ToyExecutor(), [1], window=10, windows=1)
    with pytest.raises(InvalidRequest, match="at least 2 tokens, not 1"):
        evaluate(ToyExecutor(), IDS, window=1, windows=1)
    with pytest.raises(InvalidRequest, match="not 0"):
        evaluate(ToyExecutor(), IDS, window=10, windows=0)
    with pytest.raises(InvalidRequest, match="Token id 50"):
        evaluate(ToyExecutor(), [1, 50], window=10, windows=1)
    with pytest.raises(ContextLengthExceeded, match="65 tokens"):
        evaluate(ToyExecutor(max_model_len=64), IDS, window=64, windows=1, bos_id=0)


def test_nan_is_an_error_and_no_figure() -> None:
    logits = np.zeros((3, 5), np.float32)
    logits[1, 2] = np.nan
    with pytest.raises(NumericalError):
        token_losses(logits, np.array([0, 0, 0]))


def test_extreme_logits_lose_no_accuracy() -> None:
    logits = np.array([[1000.0, 0.0], [-1000.0, 0.0]], np.float32)
    assert token_losses(logits, np.array([0, 0])).tolist() == [0.0, 1000.0]
