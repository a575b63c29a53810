"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from tessera_runtime.server.answer import Answer, Piece
from tessera_runtime.server.api_requests import CompletionRequest
from tessera_runtime.server.api_responses import Completion, CompletionChoice, CompletionLogprobs, Usage
from tessera_runtime.server.decoding import decode_body
from tessera_runtime.server.errors import invalid, unsupported
from tessera_runtime.server.exchange import Exchange
from tessera_runtime.server.generation import Generation, Plan, generate, send_events
from tessera_runtime.server.sampling_fields import (
    MAX_BEST_OF,
    MAX_COMPLETION_LOGPROBS,
    Wanted,
    check_sampling,
    check_token_ids,
    checked_integer,
    checked_max_tokens,
    prompt_too_long,
)
from tessera_runtime.server.served_model import ServedModel
from tessera_runtime.server.token_text import CompletionLogprobsBuilder

if TYPE_CHECKING:
    from tessera_runtime.server.gateway import Gateway

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""
MAX_PROMPTS = 1024
MAX_ANSWERS = 1024
"""Answers to one request: prompts times `n` or `best_of`."""

_encode = msgspec.json.Encoder().encode


class _Prompt(msgspec.Struct, frozen=True):
    text: str | None
    """None where the prompt was given as ids."""
    ids: list[int]


async def completions(gateway: Gateway, exchange: Exchange) -> None:
    with gateway.admission.enter():
        request = decode_body(await exchange.json_body(gateway.settings.max_body), CompletionRequest)
        model = gateway.model(request.model)
        exchange.model = model.name
        wanted = check_sampling(request, model.defaults, model.vocab_size)
        best_of = _best_of(request, wanted)
        logprobs = None
        if request.logprobs is not None:
            logprobs = checked_integer("logprobs", request.logprobs, 0, MAX_COMPLETION_LOGPROBS, 0)
        prompts = await _prompts(model, request.prompt, best_of)
        room = model.context
        max_tokens = [
            checked_max_tokens(
                "max_tokens",
                request.max_tokens,
                len(prompt.ids),
                room,
                prompt_field="prompt",
                default=DEFAULT_MAX_TOKENS,
            )
            for prompt in prompts
        ]
        echo = bool(request.echo)
        plan = Plan(
            prompts=[prompt.ids for prompt in prompts],
            max_tokens=max_tokens,
            wanted=wanted,
            copies=best_of,
            # To tell which of several is best, log-probabilities are needed even where none are to be shown.
            logprobs=0 if logprobs is None and best_of > wanted.n else logprobs,
            prompt_logprobs=echo and logprobs is not None,
        )
        async with generate(exchange, model, plan, gateway.admission, gateway.metrics) as generation:
            writer = _Writer(generation, prompts, plan, echo, logprobs)
            if request.stream:
                await writer.stream()
            else:
                await writer.reply()


def _best_of(request: CompletionRequest, wanted: Wanted) -> int:
    if request.suffix:
        raise unsupported("'suffix' is not supported: this model cannot fill in a middle.", "suffix")
    if request.best_of is None:
        return wanted.n
    best_of = checked_integer("best_of", request.best_of, 1, MAX_BEST_OF, 1)
    if best_of < wanted.n:
        raise invalid(f"'best_of' must be at least 'n', which is {wanted.n}.", "best_of", "invalid_value")
    if request.stream and best_of > wanted.n:
        raise invalid("'best_of' above 'n' cannot be streamed.", "best_of", "invalid_value")
    return best_of


async def _prompts(model: ServedModel, given: Any, copies: int) -> list[_Prompt]:
    """The prompts, however they were given: one or several, as text or as ids."""
    several = isinstance(given, list) and not (given and type(given[0]) is int)
    items = given if several else [given]
    if several and not items:
        raise invalid("'prompt' is empty.", "prompt", "invalid_value")
    if len(items) > MAX_PROMPTS or len(items) * copies > MAX_ANSWERS:
        raise invalid(
            f"'prompt' has {len(items)} prompts with {copies} answers each; a request may have {MAX_ANSWERS} in all.",
            "prompt",
            "invalid_value",
        )
    prompts = []
    for index, item in enumerate(items):
        where = f"prompt[{index}]" if several else "prompt"
        if isinstance(item, str):
            prompts.append(_Prompt(item, await model.encode(item, add_special_tokens=True, field="prompt")))
        elif isinstance(item, list) and len(item) >= model.context:
            raise prompt_too_long(len(item), model.context, "prompt")
        elif isinstance(item, list) and all(type(token) is int for token in item):
            check_token_ids(item, model.vocab_size, "prompt")
            prompts.append(_Prompt(None, item))
        else:
            raise invalid(f"'{where}' must be a string or a list of token ids.", "prompt", "invalid_type")
        if not prompts[-1].ids:
            raise invalid(f"'{where}' has no tokens; give at least one.", "prompt", "invalid_value")
    return prompts


class _Writer:
    """Turns what comes into OpenAI's objects."""

    def __init__(
        self, generation: Generation, prompts: list[_Prompt], plan: Plan, echo: bool, logprobs: int | None
    ) -> None:
        self._generation = generation
        self._identifier = f"cmpl-{generation.exchange.request_id}"
        self._prompts = prompts
        self._copies = plan.copies
        self._n = plan.wanted.n
        self._include_usage = plan.wanted.include_usage
        self._echo = echo
        self._logprobs = logprobs
        self._builders: dict[int, CompletionLogprobsBuilder] = {}
        self._echoed: set[int] = set()

    async def reply(self) -> None:
        found = await self._generation.finish()
        choices = []
        for index, prompt in enumerate(self._prompts):
            answers = self._generation.answers[index * self._copies : (index + 1) * self._copies]
            for rank, answer in enumerate(self._best(answers)):
                text = self._echo_text(prompt) + "".join(piece.text for piece in found[answer.index])
                logprobs = self._take_logprobs(answer, found[answer.index])
                reason = answer.finish_reason or "stop"
                choices.append(CompletionChoice(index * self._n + rank, text, reason, logprobs))
        await self._generation.exchange.reply_json(self._object(choices, self._generation.usage()))

    async def stream(self) -> None:
        no_usage = None if self._include_usage else msgspec.UNSET

        def chunks(pieces: Sequence[Piece]) -> list[bytes]:
            events = []
            for piece in pieces:
                answer, text = piece.answer, piece.text
                if answer.index not in self._echoed:
                    self._echoed.add(answer.index)
                    text = self._echo_text(self._prompt(answer)) + text
                logprobs = self._take_logprobs(answer, [piece])
                if text or piece.final or (logprobs is not None and logprobs.tokens):
                    choice = CompletionChoice(
                        answer.index, text, answer.finish_reason if piece.final else None, logprobs
                    )
                    events.append(_encode(self._object([choice], no_usage)))
            return events

        def usage_chunk(usage: Usage) -> bytes:
            return _encode(self._object([], usage))

        await send_events(self._generation, self._include_usage, chunks, list, usage_chunk)

    def _object(self, choices: list[CompletionChoice], usage: Usage | msgspec.UnsetType | None) -> Completion:
        model = self._generation.model
        return Completion(self._identifier, self._generation.created, model.name, choices, model.fingerprint, usage)

    def _best(self, answers: list[Answer]) -> list[Answer]:
        """The `n` whose tokens are likeliest on average; all where no more were asked for, in their order."""
        if len(answers) == self._n:
            return answers
        return sorted(answers, key=lambda each: -each.cumulative_logprob / max(len(each.ids), 1))[: self._n]

    def _prompt(self, answer: Answer) -> _Prompt:
        return self._prompts[answer.index // self._copies]

    def _echo_text(self, prompt: _Prompt) -> str:
        if not self._echo:
            return ""
        if prompt.text is not None:
            return prompt.text
        return self._generation.model.tokenizer.decode(prompt.ids, skip_special_tokens=False)

    def _take_logprobs(self, answer: Answer, pieces: Sequence[Piece]) -> CompletionLogprobs | None:
        if self._logprobs is None:
            return None
        builder = self._builders.get(answer.index)
        if builder is None:
            builder = CompletionLogprobsBuilder(self._generation.model.tokenizer, self._logprobs)
            self._builders[answer.index] = builder
            if self._echo:
                builder.add_first(answer.submit.prompt_ids[0])
                builder.add(answer.prompt_logprobs or ())
        for piece in pieces:
            builder.add(piece.logprobs)
        return builder.take()
