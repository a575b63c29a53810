"""One package as clients see it: its name, its words, and the engines that serve it."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tessera_runtime.errors import TesseraError
from tessera_runtime.package.manifest import Manifest
from tessera_runtime.package.paths import MANIFEST
from tessera_runtime.server.answer import Answer
from tessera_runtime.server.api_responses import ModelCard, ModelHealth
from tessera_runtime.server.errors import from_tessera, unavailable
from tessera_runtime.server.sampling_fields import context_exceeded, model_defaults
from tessera_runtime.server.supervisor import EngineInstance
from tessera_runtime.text.assets import TextAssets, read_text_assets
from tessera_runtime.text.chat_template import ChatTemplate
from tessera_runtime.text.tokenizer import Tokenizer

TEMPLATE_PROCESSES = 2
"""Renders of one template at the same time, so that a slow one does not hold up all others."""
CHEAP_CHARACTERS = 16
"""Characters per token of the context up to which a prompt is simply tokenized, to see how long it is."""


class ServedModel:
    """Shared by all requests; every method runs in the event loop, long work in the pool."""

    def __init__(
        self, name: str, path: Path, manifest: Manifest, instances: Sequence[EngineInstance], pool: Executor
    ) -> None:
        self.name = name
        self.manifest = manifest
        self.instances = tuple(instances)
        folder = path / "tokenizer"
        self.tokenizer = Tokenizer(folder)
        self.assets: TextAssets = read_text_assets(folder, self.tokenizer)
        self.defaults = model_defaults(self.assets.generation)
        self.created = int((path / MANIFEST).stat().st_mtime)
        self.fingerprint = f"fp_{manifest.name[:40]}_{manifest.version}"
        self._pool = pool
        self._longest_token: int | None = None
        self._templates: dict[bool, _TemplatePool] = {}

    @property
    def outstanding(self) -> int:
        """Answers that engines work on or that wait for one."""
        return sum(len(instance.active) for instance in self.instances)

    @property
    def sequences(self) -> int:
        """Answers that all engines together can work on at once."""
        return sum(instance.capacity.max_sequences for instance in self.instances if instance.capacity is not None)

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together: the model's context, or less where the cache is smaller."""
        capacities = [instance.capacity for instance in self.instances if instance.capacity is not None]
        if not capacities:
            raise unavailable("The model is still loading.", "model_loading", 1)
        return min(min(each.max_model_len, each.cache_blocks * each.block_tokens) for each in capacities)

    @property
    def vocab_size(self) -> int:
        for instance in self.instances:
            if instance.capacity is not None:
                return instance.capacity.vocab_size
        raise unavailable("The model is still loading.", "model_loading", 1)

    def card(self) -> ModelCard:
        known = any(instance.capacity is not None for instance in self.instances)
        return ModelCard(
            id=self.name,
            created=self.created,
            max_model_len=self.context if known else None,
            version=self.manifest.version,
            dtype=self.manifest.dtype,
        )

    def health(self) -> ModelHealth:
        ready = sum(instance.ready for instance in self.instances)
        return ModelHealth(ready=ready > 0, instances=len(self.instances), ready_instances=ready)

    def submit(self, answers: Sequence[Answer]) -> None:
        """Hands answers of one request to one engine, the least loaded: together, they share their prompt's cache."""
        able = [instance for instance in self.instances if not instance.refuses]
        if not able:
            raise unavailable("The engine of this model is down and is being restarted.", "service_unavailable", 5)
        chosen = min(able, key=lambda instance: (not instance.ready, len(instance.active)))
        for answer in answers:
            chosen.submit(answer)

    def abort(self, answers: Sequence[Answer]) -> None:
        """Stops what has not ended."""
        for answer in answers:
            if answer.instance is not None:
                answer.instance.abort(answer)

    async def encode(self, text: str, *, add_special_tokens: bool, field: str) -> list[int]:
        """The ids of a prompt. One that is far too long is refused without tokenizing it."""
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, self._encode, text, add_special_tokens, field, self.context
        )

    def _encode(self, text: str, add_special_tokens: bool, field: str, context: int) -> list[int]:
        if len(text) > CHEAP_CHARACTERS * context:
            if self._longest_token is None:
                tokens = (self.tokenizer.token(index) for index in range(self.tokenizer.vocab_size))
                self._longest_token = max(len(token or "") for token in tokens) + 1
            least = len(text) // self._longest_token
            if least >= context:
                raise context_exceeded(
                    f"The prompt has {len(text)} characters, which is at least {least} tokens, but prompt and answer"
                    f" together may have {context}. Shorten the prompt.",
                    field,
                )
        try:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except TesseraError as error:
            raise from_tessera(error, field) from None

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None,
    ) -> str:
        """The prompt that the chat template makes of messages."""

        def work() -> str:
            try:
                with self._template(bool(tools)).borrow() as template:
                    return template.render(
                        messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=variables
                    )
            except TesseraError as error:
                raise from_tessera(error, "messages") from None

        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def warm_up(self) -> None:
        """Starts the process that renders templates, so that the first chat does not wait for it."""
        if self.assets.chat_templates:
            with self._template(False).borrow() as template:
                template.start()

    def close(self) -> None:
        for pool in self._templates.values():
            pool.close()

    def _template(self, with_tools: bool) -> _TemplatePool:
        if with_tools and "tool_use" not in self.assets.chat_templates:
            with_tools = False
        if with_tools not in self._templates:
            made = [self.assets.chat_template(with_tools=with_tools) for _ in range(TEMPLATE_PROCESSES)]
            self._templates.setdefault(with_tools, _TemplatePool(made))
        return self._templates[with_tools]


class _TemplatePool:
    """Equal templates, each with a process of its own that starts when it is first borrowed."""

    def __init__(self, templates: Sequence[ChatTemplate]) -> None:
        self._templates = tuple(templates)
        # Last in, first out: while one is enough, the others never start.
        self._free: queue.LifoQueue[ChatTemplate] = queue.LifoQueue()
        for template in templates:
            self._free.put(template)

    @contextmanager
    def borrow(self) -> Iterator[ChatTemplate]:
        template = self._free.get()
        try:
            yield template
        finally:
            self._free.put(template)

    def close(self) -> None:
        for template in self._templates:
            template.close()
