"""All answers to one request, from submission to the last byte: what chat and text completions share."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec

from tessera_runtime.engine.protocol import Submit
from tessera_runtime.observe.metrics import AnswerTiming, ServerMetrics
from tessera_runtime.server.admission import Admission
from tessera_runtime.server.answer import Answer, Inbox, Piece
from tessera_runtime.server.api_responses import PromptTokensDetails, Usage
from tessera_runtime.server.errors import ApiError
from tessera_runtime.server.exchange import ClientGone, Exchange
from tessera_runtime.server.sampling_fields import Wanted
from tessera_runtime.server.served_model import ServedModel

_numbers = itertools.count()
_PREFIX = secrets.token_hex(4)


@dataclass(frozen=True)
class Plan:
    """What to ask of the engine for each prompt; `copies` answers to each."""

    prompts: list[list[int]]
    max_tokens: list[int]
    """Per prompt."""
    wanted: Wanted
    copies: int
    logprobs: int | None = None
    prompt_logprobs: bool = False


@dataclass
class Generation:
    """The answers of one request, while they come."""

    model: ServedModel
    exchange: Exchange
    inbox: Inbox
    answers: list[Answer] = field(default_factory=list)
    prompt_tokens: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    left: int = 0
    """Answers that have not ended."""

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """News, as it comes, until all answers have ended. Raises the first error of any; `ClientGone` if the client
        left.
        """
        while self.left:
            pieces = await self.inbox.take()
            if not pieces:
                raise ClientGone
            for piece in pieces:
                if piece.final:
                    self.left -= 1
                    if piece.answer.error is not None:
                        raise piece.answer.error
            yield pieces

    async def finish(self) -> dict[int, list[Piece]]:
        """All news, by answer, once every answer has ended."""
        found: dict[int, list[Piece]] = {answer.index: [] for answer in self.answers}
        async for pieces in self.pieces():
            for piece in pieces:
                found[piece.answer.index].append(piece)
        return found

    def usage(self) -> Usage:
        completion = sum(len(answer.ids) for answer in self.answers)
        by_prompt: dict[int, int] = {}
        for answer in self.answers:
            key = id(answer.submit.prompt_ids)
            by_prompt[key] = max(by_prompt.get(key, 0), answer.cached_tokens)
        details = PromptTokensDetails(sum(by_prompt.values()))
        return Usage(self.prompt_tokens, completion, self.prompt_tokens + completion, details)


@asynccontextmanager
async def generate(
    exchange: Exchange, model: ServedModel, plan: Plan, admission: Admission, metrics: ServerMetrics
) -> AsyncIterator[Generation]:
    """Submits the plan. However the block ends, nothing of it is left in an engine afterwards."""
    admission.check_queue(model, len(plan.prompts) * plan.copies)
    generation = Generation(model, exchange, Inbox())
    generation.prompt_tokens = sum(map(len, plan.prompts))
    generation.inbox.on_overflow = _overflow(generation)
    timing = metrics.answer_timing(model.name)
    for prompt, max_tokens in zip(plan.prompts, plan.max_tokens, strict=True):
        for copy in range(plan.copies):
            generation.answers.append(_answer(generation, plan, prompt, max_tokens, copy, timing))
    generation.left = len(generation.answers)
    watch = asyncio.ensure_future(_watch(exchange, generation))
    outcome = "error"
    try:
        model.submit(generation.answers)
        metrics.observe_preparation(model.name, time.monotonic() - exchange.began)
        yield generation
        outcome = "ok"
    except ClientGone:
        outcome = "disconnected"
        raise
    finally:
        watch.cancel()
        model.abort(generation.answers)
        metrics.observe_generation(model.name, generation.answers, generation.prompt_tokens, outcome)


def _answer(
    generation: Generation, plan: Plan, prompt: list[int], max_tokens: int, copy: int, timing: AnswerTiming
) -> Answer:
    wanted, model = plan.wanted, generation.model
    stop_ids = set(wanted.stop_ids)
    if not wanted.ignore_eos:
        stop_ids |= model.assets.eos_ids
    tenant = f"{generation.exchange.tenant}\0{wanted.salt}" if generation.exchange.tenant or wanted.salt else ""
    sampling = wanted.sampling
    if copy:
        sampling = msgspec.structs.replace(sampling, stream=copy)
    submit = Submit(
        request_id=f"{_PREFIX}-{next(_numbers)}",
        prompt_ids=prompt,
        max_tokens=max_tokens,
        sampling=sampling,
        stop_ids=sorted(stop_ids),
        lane=wanted.lane,
        tenant=tenant,
        logprobs=plan.logprobs,
        prompt_logprobs=plan.prompt_logprobs,
    )
    return Answer(
        submit,
        model.tokenizer,
        generation.inbox,
        timing,
        index=len(generation.answers),
        stop=wanted.stop,
        skip_special_tokens=wanted.skip_special_tokens,
    )


def _overflow(generation: Generation) -> Callable[[], None]:
    def give_up() -> None:
        generation.model.abort(generation.answers)
        generation.exchange.abort_connection()

    return give_up


async def _watch(exchange: Exchange, generation: Generation) -> None:
    await exchange.disconnected()
    # Work stops here and now, not when the handler gets its turn.
    generation.model.abort(generation.answers)
    generation.inbox.close()


async def send_events(
    generation: Generation,
    include_usage: bool,
    chunks: Callable[[Sequence[Piece]], list[bytes]],
    opening: Callable[[], list[bytes]],
    usage_chunk: Callable[[Usage], bytes],
) -> None:
    """Streams the answers. The status is sent with the first news, so what fails at once has a status of its own;
    what fails later is an event with the error, and the stream ends.
    """
    exchange = generation.exchange
    try:
        async for pieces in generation.pieces():
            events = chunks(pieces)
            if not exchange.started:
                events = opening() + events
                await exchange.start_events()
            if events:
                await exchange.write(b"".join([b"data: %b\n\n" % event for event in events]))
        if include_usage:
            await exchange.write(b"data: %b\n\n" % usage_chunk(generation.usage()))
    except ApiError as error:
        if not exchange.started:
            raise
        await exchange.write(b"data: %b\n\n" % error.body())
        exchange.status = error.status
    await exchange.write(b"data: [DONE]\n\n")
    await exchange.end()
