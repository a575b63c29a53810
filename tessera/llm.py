"""`tessera.LLM`: a package answers many prompts at once, in this process.

    with tessera.LLM("model.tspkg") as llm:
        for result in llm.generate(["Once upon a time", "The capital of France is"]):
            print(result.text)

Answers depend on the package, the prompt and the parameters alone: not on the other prompts, nor on their order.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex, TypeAlias, cast

from tessera.local_engine import Notice, open_checked, open_local_engine
from tessera_runtime.engine.protocol import Output, Submit, TokenLogprob
from tessera_runtime.engine.settings import EngineSettings
from tessera_runtime.engine.stop_strings import StopStrings
from tessera_runtime.errors import InvalidRequest
from tessera_runtime.sampling.parameters import SamplingParameters
from tessera_runtime.text.assets import read_text_assets
from tessera_runtime.text.chat_template import ChatTemplate
from tessera_runtime.text.detokenizer import Detokenizer
from tessera_runtime.text.tokenizer import Tokenizer

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = "str | Sequence[int] | Sequence[Message]"
"""A text to continue, its token ids, or the messages of a chat."""


@dataclass(frozen=True)
class Parameters:
    """How to answer. The default is the likeliest token each time; docs/python-api.md explains the others."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    stop: str | Sequence[str] = ()
    """Texts before which an answer ends."""
    stop_ids: Sequence[int] = ()
    """Tokens at which an answer ends, beside the model's own."""
    ignore_eos: bool = False
    logprobs: int | None = None
    """How many alternatives to report for each token; None: no log-probabilities at all."""

    def sampling(self) -> SamplingParameters:
        """What of it the sampler needs; raises `InvalidRequest` for a value out of its range."""
        return SamplingParameters(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=dict(self.logit_bias),
            seed=self.seed,
        )


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Of the prompt, those that an earlier prompt had already paid for."""

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Result:
    """One answer."""

    text: str
    """Without the stop string or the end token."""
    ids: tuple[int, ...]
    """All tokens that were drawn; one that ended the answer is the last."""
    finish_reason: str
    """`stop`: the model or a stop string ended it; `length`: `max_tokens` or the context did; `error`: see `error`."""
    usage: Usage
    prompt_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    error: str | None = None
    """Why the engine gave this answer up, such as logits that are not numbers."""


class LLM:
    """A package, loaded. Threads may share it; `close` it or use it as a context manager."""

    def __init__(
        self,
        package: str | Path,
        *,
        threads: int | None = None,
        target: str | None = None,
        max_model_len: int | None = None,
        max_batch_tokens: int | None = None,
        max_sequences: int = 256,
        kv_memory: int | None = None,
        prefix_reuse: bool = True,
        notice: Notice | None = None,
    ) -> None:
        """Checks every byte of the package and loads it. Raises a `PackageError` or `InvalidRequest`.

        By default all usable cores compute, and the cache may take half of the free memory. `kv_memory` is in bytes;
        `notice` is told what is worth knowing and no error.
        """
        settings = EngineSettings(
            package=str(package),
            target=target,
            threads=threads,
            max_batch_tokens=max_batch_tokens,
            max_sequences=max_sequences,
            max_model_len=max_model_len,
            kv_memory=kv_memory,
            prefix_reuse=prefix_reuse,
        )
        opened = open_checked(package)
        folder = opened.path / "tokenizer"
        self.manifest = opened.manifest
        self.tokenizer = Tokenizer(folder)
        self._assets = read_text_assets(folder, self.tokenizer)
        self._template: ChatTemplate | None = None
        self._numbers = itertools.count()
        self._engine = open_local_engine(opened, settings, notice)

    @property
    def name(self) -> str:
        """The model's name, from its manifest."""
        return self.manifest.name

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        """The sampling that the model's authors advise: its `generation_config.json` as it is."""
        return self._assets.generation

    @property
    def description(self) -> str:
        """One line about what computes: target, class of processor, threads."""
        return self._engine.description

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._engine.vocab_size

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._engine.limits.max_model_len

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: Parameters | Sequence[Parameters] | None = None
    ) -> list[Result]:
        """Answers all prompts together, in their order. One prompt may stand alone, and gives a list of one.

        `params` are for all prompts, or one for each. A prompt or parameter that cannot be served raises before
        anything is computed.
        """
        answers = [self._answer(*pair) for pair in self._pairs(_as_prompts(prompts), params)]
        pending = {answer.request_id: answer for answer in answers}
        try:
            for answer in answers:
                self._engine.submit(answer.submit)
            while pending:
                for output in self._engine.wait(pending):
                    running = pending.get(output.request_id)
                    if running is None:  # ended by a stop string while later tokens were on their way
                        continue
                    running.accept(output)
                    if running.ended:
                        del pending[output.request_id]
                        self._engine.abort(output.request_id)
        finally:
            for request_id in pending:
                self._engine.abort(request_id)
        return [answer.result() for answer in answers]

    def stream(self, prompt: Prompt, params: Parameters | None = None) -> Stream:
        """The text of one answer as it comes. What cannot be served raises here, not while the text is read."""
        return Stream(self, self._answer(prompt, params or Parameters()))

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt; messages go through the model's chat template."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        items = list(prompt)
        if items and all(isinstance(item, Mapping) for item in items):
            text = self._chat_template().render([dict(item) for item in items if isinstance(item, Mapping)])
            return self.tokenizer.encode(text, add_special_tokens=False)
        if all(_is_integer(item) for item in items):
            return [operator.index(cast("SupportsIndex", item)) for item in items]
        raise InvalidRequest("A prompt is a text, a list of token ids, or a list of messages with a role and content.")

    def close(self) -> None:
        """Ends all work and frees the memory."""
        if self._template is not None:
            self._template.close()
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            self._template = self._assets.chat_template()
        return self._template

    def _pairs(
        self, prompts: Sequence[Prompt], params: Parameters | Sequence[Parameters] | None
    ) -> Iterable[tuple[Prompt, Parameters]]:
        if params is None or isinstance(params, Parameters):
            return [(prompt, params or Parameters()) for prompt in prompts]
        if len(params) != len(prompts):
            raise InvalidRequest(
                f"There are {len(prompts)} prompts and {len(params)} parameters.",
                hint="Give one Parameters for all prompts, or one for each.",
            )
        return list(zip(prompts, params, strict=True))

    def _answer(self, prompt: Prompt, params: Parameters) -> _Answer:
        ends = () if params.ignore_eos else self._assets.eos_ids
        submit = Submit(
            request_id=str(next(self._numbers)),
            prompt_ids=self.prompt_ids(prompt),
            max_tokens=params.max_tokens,
            sampling=params.sampling(),
            stop_ids=sorted({*ends, *params.stop_ids}),
            logprobs=params.logprobs,
        )
        self._engine.check(submit)
        stop = (params.stop,) if isinstance(params.stop, str) else tuple(params.stop)
        return _Answer(submit, Detokenizer(self.tokenizer), StopStrings(stop))


class Stream:
    """Iterates over the pieces of one answer's text. `close` ends the answer early; so does leaving it as a context."""

    def __init__(self, llm: LLM, answer: _Answer) -> None:
        self._engine = llm._engine
        self._answer = answer
        self._pieces = self._read()

    @property
    def result(self) -> Result | None:
        """The whole answer, once it has ended by itself."""
        return self._answer.result() if self._answer.ended else None

    def close(self) -> None:
        """Stops the work on it."""
        self._pieces.close()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self) -> Any:
        answer = self._answer
        self._engine.submit(answer.submit)
        try:
            while not answer.ended:
                for output in self._engine.wait((answer.request_id,)):
                    text = answer.accept(output)
                    if text:
                        yield text
                    if answer.ended:
                        break
        finally:
            self._engine.abort(answer.request_id)


class _Answer:
    """Ids become text, and text ends at a stop string."""

    def __init__(self, submit: Submit, detokenizer: Detokenizer, stop: StopStrings) -> None:
        self.submit = submit
        self.request_id = submit.request_id
        self._detokenizer = detokenizer
        self._stop = stop
        self._stop_ids = frozenset(submit.stop_ids)
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._cached = 0
        self._reason: str | None = None
        self._error: str | None = None

    @property
    def ended(self) -> bool:
        return self._reason is not None

    def accept(self, output: Output) -> str:
        """Takes the engine's news; returns the text that is new."""
        self._cached = max(self._cached, output.cached_tokens)
        self._ids += output.ids
        self._logprobs += output.logprobs
        ends = output.finish_reason == "stop" and bool(self._ids) and self._ids[-1] in self._stop_ids
        text = "".join(self._stop.push(self._detokenizer.push(token)) for token in output.ids[: -1 if ends else None])
        if output.error is not None:
            self._reason, self._error = "error", output.error.message
        elif self._stop.found:
            self._reason = "stop"
        elif output.finish_reason is not None:
            text += self._stop.push(self._detokenizer.finish()) + self._stop.finish()
            self._reason = "stop" if self._stop.found else output.finish_reason
        self._pieces.append(text)
        return text

    def result(self) -> Result:
        usage = Usage(len(self.submit.prompt_ids), len(self._ids), self._cached)
        return Result(
            text="".join(self._pieces),
            ids=tuple(self._ids),
            finish_reason=self._reason or "abort",
            usage=usage,
            prompt_ids=tuple(self.submit.prompt_ids),
            logprobs=tuple(self._logprobs),
            error=self._error,
        )


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A text, a list of ids and a list of messages are each one prompt; any other list is a list of prompts."""
    if isinstance(prompts, str):
        return [prompts]
    items = list(prompts)
    if items and (all(_is_integer(item) for item in items) or all(isinstance(item, Mapping) for item in items)):
        return [items]  # type: ignore[list-item]  # the items were looked at
    return items  # type: ignore[return-value]


def _is_integer(item: object) -> bool:
    return hasattr(item, "__index__") and not isinstance(item, bool)
