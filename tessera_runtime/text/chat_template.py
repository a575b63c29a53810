"""Turns messages into the text of a prompt, as the model's own chat template says.

Templates are rendered by `template_worker` in a process of its own, started with the first template and used again for
all that follow: a render then costs about 0.2 ms, and every limit (seconds, memory, length) holds whatever the template
does and whichever thread asks.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from tessera_runtime.errors import InvalidRequest, TemplateError

RESERVED_NAMES = frozenset(
    {
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("raise_exception", "strftime_now", "tojson", "range", "dict", "namespace", "lipsum", "cycler", "joiner"),
        *("loop", "self", "super", "caller", "varargs", "kwargs"),
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
        "additional_special_tokens",
    }
)
"""What a template may rely on, and a caller's own variables may therefore not replace."""

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class TemplateLimits:
    """What one render may cost before it is given up with `TemplateError`."""

    seconds: float = 2.0
    start_seconds: float = 15.0
    """For starting the process and compiling the template; paid once."""
    characters: int = 4_000_000
    memory_bytes: int = 1 << 30


class ChatTemplate:
    """A chat template, ready to render. Any number of threads may share one; renders are done one after another."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, Any] | None = None, limits: TemplateLimits | None = None
    ) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens or {})
        self._limits = limits or TemplateLimits()
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def start(self) -> None:
        """Starts the rendering process without waiting for it, so that it is up by the time the first render is asked
        for.
        """
        with self._lock:
            self._start()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> str:
        """The text of the prompt; encode it without special tokens, for the template writes them itself.

        `variables` are the caller's own (such as `enable_thinking`); a reserved name among them is an `InvalidRequest`.
        `now` is what `strftime_now` shows; the present moment if not given.
        """
        taken = sorted(RESERVED_NAMES.intersection(variables or {}))
        if taken:
            raise InvalidRequest(
                f"The template variable {taken[0]!r} is reserved and cannot be set by a request.",
                hint="Choose another name, or pass it through the field of the request that is meant for it.",
            )
        context = {
            **self._special_tokens,
            **(variables or {}),
            "messages": [_with_reasoning_names(message) for message in messages],
            "tools": None if tools is None else list(tools),
            "documents": None if documents is None else list(documents),
            "add_generation_prompt": add_generation_prompt,
        }
        request = {"context": context, "limit": self._limits.characters, "now": now.isoformat() if now else None}
        try:
            line = json.dumps(request).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"The messages cannot be written as JSON: {error}.") from None
        with self._lock:
            answer = self._exchange(line)
        if "error" in answer:
            verb = "refused the messages" if answer.get("refused") else "failed"
            raise TemplateError(f"The chat template {verb}: {answer['error']}.".replace("..", "."))
        return str(answer["text"])

    def close(self) -> None:
        """Ends the rendering process; a later render starts it again."""
        with self._lock:
            if self._worker is not None:
                self._worker.close()
                self._worker = None

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> _Worker:
        if self._worker is None:
            self._worker = _Worker(self._source, self._limits)
        return self._worker

    def _exchange(self, line: bytes) -> dict[str, Any]:
        worker = self._start()
        try:
            worker.wait_until_ready()
            return worker.exchange(line, self._limits.seconds)
        except BaseException:
            worker.close()
            self._worker = None
            raise


def _with_reasoning_names(message: Mapping[str, Any]) -> dict[str, Any]:
    """Model families name the reasoning of an earlier answer differently; a template finds it under the name it
    knows.
    """
    reasoning = next((message[name] for name in REASONING_FIELDS if message.get(name) is not None), None)
    if reasoning is None:
        return dict(message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


_BOOT = "import sys; sys.path[:] = {path!r}; from tessera_runtime.text.template_worker import main; main()"


class _Worker:
    """The parent's end of one rendering process."""

    def __init__(self, source: str, limits: TemplateLimits) -> None:
        self._limits = limits
        self._ready = False
        # No site packages hooks, no environment: nothing of this process's secrets is there to be found. The search
        # path is handed over instead, which is what lets the process find the same jinja2.
        boot = _BOOT.format(path=[str(Path(entry).absolute()) if entry else os.getcwd() for entry in sys.path])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-E", "-B", "-c", boot],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"PYTHONIOENCODING": "utf-8", **_time_zone()},
                bufsize=0,
            )
        except OSError as error:
            raise TemplateError(
                f"The process that renders chat templates could not be started: {error.strerror}.",
                hint="Check the limit on processes.",
            ) from None
        settings = {"template": source, "memory_bytes": limits.memory_bytes, "seconds": limits.seconds + 1.0}
        self._unsent = json.dumps(settings).encode() + b"\n"
        self._pipes = [pipe for pipe in (self._process.stdin, self._process.stdout) if pipe is not None]
        self._input, self._output = (pipe.fileno() for pipe in self._pipes)
        os.set_blocking(self._input, False)
        os.set_blocking(self._output, False)

    def wait_until_ready(self) -> None:
        if not self._ready:
            answer = self.exchange(self._unsent, self._limits.start_seconds)
            if "error" in answer:
                raise TemplateError(
                    f"The chat template of this package cannot be compiled: {answer['error']}.",
                    hint="Pack the model again with a corrected chat_template.",
                )
            self._unsent = b""
            self._ready = True

    def exchange(self, line: bytes, seconds: float) -> dict[str, Any]:
        """Sends a line and returns the answer, or raises `TemplateError` when the time is over or the process has
        died.
        """
        deadline = time.monotonic() + seconds
        received = bytearray()
        remaining = memoryview(line)
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            if remaining:
                selector.register(self._input, selectors.EVENT_WRITE)
            while not received.endswith(b"\n"):
                ready = selector.select(max(deadline - time.monotonic(), 0.0))
                if not ready:
                    raise TemplateError(
                        f"The chat template took longer than {seconds:g} s.", hint="Send fewer or shorter messages."
                    )
                for key, _ in ready:
                    if key.fd == self._input:
                        try:
                            remaining = remaining[os.write(self._input, remaining) :]
                        except BrokenPipeError:
                            remaining = remaining[len(remaining) :]
                        if not remaining:
                            selector.unregister(self._input)
                    else:
                        piece = os.read(self._output, 1 << 16)
                        if not piece:
                            raise TemplateError(
                                "The chat template needed more memory or time than it may have.",
                                hint="Send fewer or shorter messages.",
                            )
                        received += piece
        answer = json.loads(received)
        return dict(answer)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in self._pipes:
            pipe.close()

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None and process.returncode is None:
            self.close()


def _time_zone() -> dict[str, str]:
    """`strftime_now` shows the date of this process's zone, which the empty environment would otherwise hide."""
    offset = -(time.localtime().tm_gmtoff or 0)
    sign = "-" if offset < 0 else "+"
    hours, minutes = divmod(abs(offset) // 60, 60)
    return {"TZ": f"TES{sign}{hours:02d}:{minutes:02d}"} if offset else {"TZ": "UTC0"}
