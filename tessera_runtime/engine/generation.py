"""Generates one sequence with one executor, in this process: what `tessera generate` and `tessera verify` use.

A sequence has tokens it has and tokens it has computed. The prompt is computed in steps of at most `limits.max_tokens`;
then each step computes the token drawn last. How the prompt is cut does not change the logits (docs/spec/program.md,
*Determinism*).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.engine.request_check import check_prompt
from tessera_runtime.engine.stop_strings import StopStrings
from tessera_runtime.errors import InvalidRequest
from tessera_runtime.executor.interface import Executor, ExecutorLimits, StepBatch
from tessera_runtime.sampling.parameters import SamplingParameters
from tessera_runtime.sampling.sampler import sample
from tessera_runtime.sampling.sequence import SampledSequence
from tessera_runtime.text.detokenizer import Decodes, Detokenizer


@dataclass(frozen=True)
class GeneratedToken:
    """One token of the answer, and the text that became certain with it (often a word, sometimes nothing)."""

    token_id: int
    text: str


@dataclass(frozen=True)
class GenerationTiming:
    first_token_s: float
    """From the call until the first token."""
    decode_tok_s: float
    """Tokens per second after the first; 0 if there were none."""


@dataclass(frozen=True)
class GenerationResult:
    """The whole answer."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    """The answer's tokens; the one that ended it, if one did, is the last."""
    text: str
    """Empty if no tokenizer was given. Without the end token and without the stop string."""
    finish_reason: str
    """`stop`: the model or a stop string ended the answer; `length`: a limit did."""
    timing: GenerationTiming


class SequenceRunner:
    """One sequence in an executor's cache: feeds tokens, returns logits. The executor's cache is its alone."""

    def __init__(self, executor: Executor, capacity: int) -> None:
        limits = executor.limits
        self._executor = executor
        self._chunk = limits.max_tokens
        blocks = blocks_for(capacity, limits)
        executor.allocate_cache(blocks)
        self._table = np.arange(blocks, dtype=np.int32).reshape(1, blocks)
        self.computed = 0
        """Tokens whose keys and values are in the cache; also the position of the next."""

    def feed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Computes tokens and returns the logits [vocab_size] after the last of them."""
        logits = np.empty((0, 0), np.float32)
        for start in range(0, len(ids), self._chunk):
            chunk = ids[start : start + self._chunk]
            last = start + len(chunk) == len(ids)
            logits = self.step(chunk, [len(chunk) - 1] if last else [])
        row: NDArray[np.float32] = logits[0]
        return row

    def step(self, ids: Sequence[int], rows: Sequence[int]) -> NDArray[np.float32]:
        """Computes at most `limits.max_tokens` tokens in one step; returns the logits of the rows asked for."""
        count = len(ids)
        batch = StepBatch(
            token_ids=np.asarray(ids, np.int32),
            positions=np.arange(self.computed, self.computed + count, dtype=np.int32),
            sequences=np.zeros(count, np.int32),
            block_tables=self._table,
            logit_rows=np.asarray(rows, np.int32),
        )
        self.computed += count
        return self._executor.step(batch)


def blocks_for(tokens: int, limits: ExecutorLimits) -> int:
    """Cache blocks that hold this many positions; at least one."""
    return max(-(-tokens // limits.block_tokens), 1)


def generate(
    executor: Executor,
    prompt_ids: Sequence[int],
    *,
    parameters: SamplingParameters,
    max_tokens: int,
    eos_ids: AbstractSet[int] = frozenset(),
    tokenizer: Decodes | None = None,
    stop: Sequence[str] = (),
) -> Iterator[GeneratedToken | GenerationResult]:
    """Yields each token as it is drawn, and at last the `GenerationResult`. Arguments are checked before anything is
    computed.

    The answer ends at a token of `eos_ids`, at a stop string (which needs the tokenizer), after `max_tokens` tokens, or
    when the model's context is full.
    """
    limits = executor.limits
    check_prompt(prompt_ids, limits)
    parameters.check_vocabulary(limits.vocab_size)
    if max_tokens < 1:
        raise InvalidRequest(f"max_tokens must be at least 1, not {max_tokens}.")
    if stop and tokenizer is None:
        raise InvalidRequest("Stop strings need a tokenizer.")
    allowed = min(max_tokens, limits.max_model_len - len(prompt_ids))
    return _generate(executor, tuple(prompt_ids), parameters, allowed, eos_ids, tokenizer, StopStrings(stop))


def _generate(
    executor: Executor,
    prompt_ids: tuple[int, ...],
    parameters: SamplingParameters,
    allowed: int,
    eos_ids: AbstractSet[int],
    tokenizer: Decodes | None,
    stop: StopStrings,
) -> Iterator[GeneratedToken | GenerationResult]:
    started = time.perf_counter()
    # The last token drawn is never computed, so its keys and values need no room.
    runner = SequenceRunner(executor, len(prompt_ids) + allowed - 1)
    sequence = SampledSequence(parameters, prompt_ids)
    detokenizer = Detokenizer(tokenizer) if tokenizer is not None else None
    pieces: list[str] = []
    ids: list[int] = []
    finish_reason = ""
    first_token = 0.0
    pending: Sequence[int] = prompt_ids
    while not finish_reason:
        token = int(sample(runner.feed(pending)[None, :], [sequence])[0])
        if not ids:
            first_token = time.perf_counter()
        ids.append(token)
        sequence.append(token)
        text = ""
        if token in eos_ids:
            finish_reason = "stop"
        elif len(ids) == allowed:
            finish_reason = "length"
        if detokenizer is not None:
            text = stop.push(detokenizer.push(token)) if token not in eos_ids else ""
            if finish_reason and not stop.found:
                text += stop.push(detokenizer.finish()) + stop.finish()
            if stop.found:
                finish_reason = "stop"
            pieces.append(text)
        yield GeneratedToken(token, text)
        pending = (token,)
    seconds = time.perf_counter() - first_token
    rate = (len(ids) - 1) / seconds if len(ids) > 1 and seconds > 0 else 0.0
    timing = GenerationTiming(first_token_s=first_token - started, decode_tok_s=rate)
    yield GenerationResult(prompt_ids, tuple(ids), "".join(pieces), finish_reason, timing)
