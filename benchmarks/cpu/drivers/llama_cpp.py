"""llama.cpp through the bindings of llama-cpp-python; its C interface, without a sampler in Python.

`settings`: `flash_attention`, `ubatch`. The next token is NumPy's argmax over the logits that llama.cpp leaves in
memory, which is cheaper than its own greedy sampler.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import llama_cpp as ll
import numpy as np
from numpy.typing import NDArray

from benchmarks.cpu.drivers.protocol import Job, Logits, prompts, serve, speed, surprise

STEP = 2048
"""Tokens given to llama.cpp at once; it cuts them by `ubatch` itself."""

_SILENCE = ll.llama_log_callback(lambda level, text, data: None)


class Model:
    """A loaded file."""

    def __init__(self, job: Job) -> None:
        ll.llama_log_set(_SILENCE, ctypes.c_void_p(0))
        ll.llama_backend_init()
        self.settings = job["settings"]
        self.threads = job["threads"]
        self.handle = ll.llama_model_load_from_file(job["model"].encode(), ll.llama_model_default_params())
        if not self.handle:
            raise SystemExit(f"llama.cpp cannot load {job['model']}")
        self.vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.handle))


class Context:
    """Sequences of their own, each with room for `length` tokens."""

    def __init__(self, model: Model, sequences: int, length: int) -> None:
        parameters = ll.llama_context_default_params()
        parameters.n_ctx = sequences * -(-length // 256) * 256
        parameters.n_batch = STEP
        parameters.n_ubatch = model.settings["ubatch"]
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = model.threads
        parameters.flash_attn_type = int(model.settings["flash_attention"])
        self._vocabulary = model.vocabulary
        self._handle = ll.llama_init_from_model(model.handle, parameters)
        if not self._handle:
            raise SystemExit("llama.cpp cannot make a context with these settings")
        self._batch = ll.llama_batch_init(STEP, 0, 1)
        as_array = np.ctypeslib.as_array
        self._token = as_array(self._batch.token, (STEP,))
        self._position = as_array(self._batch.pos, (STEP,))
        self._logits = as_array(self._batch.logits, (STEP,))
        as_array(self._batch.n_seq_id, (STEP,))[:] = 1

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        ll.llama_batch_free(self._batch)
        ll.llama_free(self._handle)

    def clear(self) -> None:
        ll.llama_memory_clear(ll.llama_get_memory(self._handle), False)

    def decode(
        self, tokens: Sequence[int] | NDArray[np.int64], positions: Any, sequences: Iterable[int], wanted: Any
    ) -> None:
        """`wanted` is nonzero where logits are wanted."""
        count = len(tokens)
        self._batch.n_tokens = count
        self._token[:count] = tokens
        self._position[:count] = positions
        self._logits[:count] = wanted
        for index, sequence in enumerate(sequences):
            self._batch.seq_id[index][0] = sequence
        if code := ll.llama_decode(self._handle, self._batch):
            raise SystemExit(f"llama_decode returned {code}")

    def logits(self, index: int) -> Logits:
        """Of the token at this place of the last batch."""
        pointer = ll.llama_get_logits_ith(self._handle, index)
        view: Logits = np.ctypeslib.as_array(pointer, (self._vocabulary,))
        return view

    def best(self, index: int) -> int:
        return int(self.logits(index).argmax())

    def prompt(self, tokens: Sequence[int], sequence: int) -> int:
        """Computes a prompt and returns the first token of its answer."""
        count = len(tokens)
        wanted = np.zeros(count, np.int8)
        wanted[-1] = 1
        self.decode(tokens, np.arange(count), [sequence] * count, wanted)
        return self.best(count - 1)


def prefill_rate(context: Context, tokens: list[int]) -> float:
    context.clear()
    started = time.perf_counter()
    context.prompt(tokens, 0)
    return len(tokens) / (time.perf_counter() - started)


def decode_rate(context: Context, work: dict[str, Any], texts: list[list[int]]) -> float:
    context.clear()
    users = work["users"]
    everyone, ones = list(range(users)), np.ones(users, np.int8)
    tokens = np.array([context.prompt(text, user) for user, text in enumerate(texts)])

    def steps(first: int, count: int) -> None:
        for position in range(first, first + count):
            context.decode(tokens, np.full(users, position), everyone, ones)
            for user in everyone:
                tokens[user] = context.best(user)

    steps(work["prompt"], 2)
    started = time.perf_counter()
    steps(work["prompt"] + 2, work["new"])
    return users * work["new"] / (time.perf_counter() - started)


def perplexity(model: Model, windows: list[list[int]]) -> float:
    total, scored = 0.0, 0
    length = max(map(len, windows))
    with Context(model, 1, length) as context:
        for window in windows:
            context.clear()
            count = len(window)
            context.decode(window, np.arange(count), [0] * count, np.ones(count, np.int8))
            total += sum(surprise(context.logits(index), window[index + 1]) for index in range(count - 1))
            scored += count - 1
    return math.exp(total / scored)


def measure(job: Job) -> Iterator[dict[str, Any]]:
    model = Model(job)
    for work in job["work"]:
        texts = prompts(job, work["prompt"], work["users"])
        with Context(model, work["users"], work["prompt"] + work["new"] + 8) as context:
            if work["new"]:
                yield speed(work, lambda: decode_rate(context, work, texts))  # noqa: B023
            else:
                prefill_rate(context, texts[0])
                yield speed(work, lambda: prefill_rate(context, texts[0]))  # noqa: B023
    if job["windows"]:
        yield {"perplexity": perplexity(model, job["windows"])}


if __name__ == "__main__":
    serve(measure)
