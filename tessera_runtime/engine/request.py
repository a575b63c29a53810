"""One request inside the engine: what was asked, what the scheduler and the sampler know, what is still to be said."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.engine.protocol import FinishReason, Submit, TokenLogprob
from tessera_runtime.engine.request_check import check_ids, check_prompt
from tessera_runtime.engine.settings import LANES
from tessera_runtime.errors import ContextLengthExceeded, InvalidRequest
from tessera_runtime.executor.interface import ExecutorLimits
from tessera_runtime.kvcache.prefix import root_key
from tessera_runtime.sampling.logprobs import MAX_TOP, token_logprobs
from tessera_runtime.sampling.sequence import SampledSequence
from tessera_runtime.scheduler.sequence import Sequence


def check_submission(submit: Submit, limits: ExecutorLimits, cache_blocks: int) -> None:
    """Raises `InvalidRequest` or `ContextLengthExceeded` unless the engine can answer, if need be alone."""
    check_prompt(submit.prompt_ids, limits)
    check_ids(submit.resumed_ids, limits.vocab_size)
    submit.sampling.check_vocabulary(limits.vocab_size)
    if submit.max_tokens < 1:
        raise InvalidRequest(f"max_tokens must be at least 1, not {submit.max_tokens}.")
    if not 0 <= submit.lane < LANES:
        raise InvalidRequest(f"The lane must be 0 to {LANES - 1}, not {submit.lane}.")
    if submit.logprobs is not None and not 0 <= submit.logprobs <= MAX_TOP:
        raise InvalidRequest(f"logprobs must be 0 to {MAX_TOP}, not {submit.logprobs}.")
    allowed = answer_length(submit, limits)
    if len(submit.resumed_ids) > allowed:
        raise InvalidRequest(f"{len(submit.resumed_ids)} resumed ids are more than the {allowed} that were asked for.")
    # The last token of an answer is drawn and never computed.
    longest = len(submit.prompt_ids) + allowed - 1
    if -(-longest // limits.block_tokens) > cache_blocks:
        raise ContextLengthExceeded(
            f"Prompt and answer may take {longest + 1} tokens, and the KV cache holds "
            f"{cache_blocks * limits.block_tokens}.",
            hint="Ask for fewer tokens, or serve with more --kv-memory.",
        )


def answer_length(submit: Submit, limits: ExecutorLimits) -> int:
    """Tokens that the answer may have: as asked for, or until the context is full."""
    return min(submit.max_tokens, limits.max_model_len - len(submit.prompt_ids))


class Request:
    """A submission that was accepted, until its last output."""

    def __init__(self, submit: Submit, limits: ExecutorLimits) -> None:
        self.id = submit.request_id
        self.prompt_length = len(submit.prompt_ids)
        self.allowed = answer_length(submit, limits)
        self.stop_ids = frozenset(submit.stop_ids)
        self.sampled = SampledSequence(submit.sampling, submit.prompt_ids, submit.resumed_ids)
        self.unknown = 0
        """Of the sequence's tokens, how many last ones are drawn and not known yet."""
        self.logprobs = submit.logprobs
        self.prompt_logprobs: list[TokenLogprob] | None = (
            [] if submit.prompt_logprobs and not submit.resumed_ids else None
        )
        self.submitted_at = time.perf_counter()
        self.queue_seconds: float | None = None
        """None until a step works on it."""
        self.silent = True
        """Whether nothing has been said yet."""
        self.sequence = Sequence(
            submit.request_id,
            submit.prompt_ids + submit.resumed_ids,
            root_key(submit.tenant),
            submit.lane,
            every_row=self.prompt_logprobs is not None and self.prompt_length > 1,
        )

    def begin(self, now: float) -> None:
        """A step that began at `now` has worked on this request."""
        if self.queue_seconds is None:
            self.queue_seconds = max(0.0, now - self.submitted_at)

    def finish_reason(self) -> FinishReason | None:
        """Whether the tokens that are known so far are a whole answer."""
        tokens = self.sequence.tokens
        known = len(tokens) - self.unknown
        if known > self.prompt_length and tokens[known - 1] in self.stop_ids:
            return "stop"
        return "length" if known - self.prompt_length >= self.allowed else None

    @property
    def draws_its_last(self) -> bool:
        """Whether the next token fills the answer, whatever it is."""
        return len(self.sequence.tokens) + 1 - self.prompt_length >= self.allowed

    def append(self, token: int) -> None:
        """Takes a token that was drawn: in the place of the first unknown one, if there are any."""
        tokens = self.sequence.tokens
        if self.unknown:
            tokens[len(tokens) - self.unknown] = token
            self.unknown -= 1
        else:
            tokens.append(token)
        self.sampled.append(token)

    def expect(self, seat: int) -> None:
        """A token is being drawn: until it is known, `-1 - seat` stands for it."""
        self.sequence.tokens.append(-1 - seat)
        self.unknown += 1

    def read_prompt_rows(self, rows: NDArray[np.float32], start: int) -> None:
        """Notes the log-probabilities of the prompt's tokens after position `start`; row i is of position start + i."""
        noted = self.prompt_logprobs
        if noted is None:
            return
        top = self.logprobs or 0
        for position, row in enumerate(rows, start):
            # After a preemption, rows come again that were noted before.
            if position == len(noted) and position + 1 < self.prompt_length:
                noted.append(read_logprob(row, self.sequence.tokens[position + 1], top))


def read_logprob(row: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    logprob, likeliest = token_logprobs(row, token, top)
    return TokenLogprob(token, logprob, likeliest)
