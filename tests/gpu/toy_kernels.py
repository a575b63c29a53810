"""Kernels of a toy model, in Python: its logits are a hash of the tokens so far, read from the paged cache.

They use what a GPU program gives real kernels and nothing else, so whatever the executor gets wrong (a table, a tile, a
seat, an id fed back too late) changes an answer. The hash is that of `hash_executor`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fake_driver import FakeMemory
from hash_executor import HashExecutor, chain
from numpy.typing import NDArray

from tessera_runtime.executor.drawing import BIAS, BITMASK, DRAW, GREEDY, IN_PROMPT, LOGPROB_WORDS, LOGPROBS, PENALTIES
from tessera_runtime.sampling.errors import LogitsNotFinite
from tessera_runtime.sampling.logprobs import token_logprobs
from tessera_runtime.sampling.parameters import SamplingParameters
from tessera_runtime.sampling.sampler import sample
from tessera_runtime.sampling.sequence import SampledSequence

VOCABULARY = 40
BLOCK_TOKENS = 4
BLOCK_BYTES = 256
ROW = 64
"""Bytes of a row of each of the toy's buffers but the logits."""
LOGIT_ROW = 192
SEATS = {"feedback": 64, "token_counts": 128, "bias": 8192, "bitmask": 64}
_HASHES = HashExecutor(vocab_size=VOCABULARY)
NAN_TOKEN = 39
"""A sequence that begins with this token has logits that are not numbers."""


def _array(memory: FakeMemory, address: int, dtype: Any, count: int, what: str) -> NDArray[Any]:
    size = np.dtype(dtype).itemsize
    return memory.view(address, size * count, what).view(dtype)


def embed(memory: FakeMemory, values: list[int], grid: tuple[int, int, int]) -> None:
    """x[t] = scale * token; ids that are not known yet come from the seats."""
    token_ids, feedback, scale, x, tokens = values
    ids = _array(memory, token_ids, np.int32, tokens, "token_ids")
    factor = int(_array(memory, scale, np.int32, 16, "scale")[0])
    assert grid == (tokens, 1, 1)
    for t in range(tokens):
        token = int(ids[t])
        if token < 0:
            token = max(0, int(_array(memory, feedback + 64 * (-1 - token), np.int32, 16, "feedback")[0]))
        _array(memory, x + ROW * t, np.int32, 16, "x")[:] = factor * token


def cache_write(memory: FakeMemory, values: list[int], grid: tuple[int, int, int]) -> None:
    x, positions, sequences, tables, keys, out, tokens, width = values
    where = _array(memory, positions, np.int32, tokens, "positions")
    rows = _array(memory, sequences, np.int32, tokens, "sequences")
    for t in range(tokens):
        table = _array(memory, tables + 4 * width * int(rows[t]), np.int32, width, "block_tables")
        block = int(table[where[t] // BLOCK_TOKENS])
        place = keys + block * BLOCK_BYTES
        value = _array(memory, x + ROW * t, np.int32, 16, "x")[0]
        _array(memory, place, np.int32, BLOCK_TOKENS, "cache")[where[t] % BLOCK_TOKENS] = value
        _array(memory, out + ROW * t, np.int32, 16, "y")[:] = value


def _attend(memory: FakeMemory, values: list[int], row: int) -> None:
    positions, sequences, tables, keys, out, width = values
    position = int(_array(memory, positions + 4 * row, np.int32, 1, "positions")[0])
    sequence = int(_array(memory, sequences + 4 * row, np.int32, 1, "sequences")[0])
    table = _array(memory, tables + 4 * width * sequence, np.int32, width, "block_tables")
    value = first = 0
    for p in range(position + 1):
        place = keys + int(table[p // BLOCK_TOKENS]) * BLOCK_BYTES
        token = int(_array(memory, place, np.int32, BLOCK_TOKENS, "cache")[p % BLOCK_TOKENS]) // 3
        value = chain(value, token)
        first = token if p == 0 else first
    result = _array(memory, out + ROW * row, np.uint64, 8, "hash")
    result[0] = value
    result[1] = first == NAN_TOKEN


def attend_singles(memory: FakeMemory, values: list[int], grid: tuple[int, int, int]) -> None:
    *rest, singles, count = values
    assert grid == (count, 1, 1)
    for row in _array(memory, singles, np.int32, count, "singles").tolist():
        if row >= 0:
            _attend(memory, rest, row)


def attend_tiles(memory: FakeMemory, values: list[int], grid: tuple[int, int, int]) -> None:
    *rest, tiles, count = values
    assert grid == (count, 1, 1)
    for first, length in _array(memory, tiles, np.int32, 2 * count, "tiles").reshape(count, 2).tolist():
        for row in range(first, first + length):
            _attend(memory, rest, row)


def head(memory: FakeMemory, values: list[int], grid: tuple[int, int, int]) -> None:
    hashes, logit_rows, out, rows = values
    for index, row in enumerate(_array(memory, logit_rows, np.int32, rows, "logit_rows").tolist()):
        words = _array(memory, hashes + ROW * row, np.uint64, 8, "hash")
        logits = _HASHES.logits([int(words[0])])[0]
        if words[1] == 1:
            logits[:] = np.nan
        _array(memory, out + LOGIT_ROW * index, np.float32, VOCABULARY, "logits")[:] = logits


class _Seated(SampledSequence):
    """A sequence as the seat memory describes it."""

    def __init__(self, parameters: SamplingParameters, counts: NDArray[np.int16], uniform: float) -> None:
        said = np.repeat(np.arange(len(counts)), counts & 0x7FFF).tolist()
        super().__init__(parameters, np.flatnonzero(counts & IN_PROMPT).tolist(), said)
        self._uniform = uniform

    def draw(self) -> float:
        return self._uniform


def draw(memory: FakeMemory, values: list[int], grid: tuple[int, int, int]) -> None:
    logits, draws, feedback, counts, bias, bitmask, ids, logprobs, rows = values
    table = _array(memory, draws, DRAW, rows, "draws")
    result = _array(memory, ids, np.int32, rows, "ids")
    for index in range(rows):
        each = table[index]
        seat, flags = int(each["seat"]), int(each["flags"])
        if seat < 0:
            continue
        row = _array(memory, logits + LOGIT_ROW * index, np.float32, VOCABULARY, "logits").copy()
        raw = row.copy()
        if flags & BITMASK:
            words = _array(memory, bitmask + SEATS["bitmask"] * seat, np.uint32, 2, "bitmask")
            tokens = np.arange(VOCABULARY)
            row[(words[tokens // 32] >> (tokens % 32).astype(np.uint32)) & 1 == 0] = -np.inf
        biases = {}
        if flags & BIAS:
            pairs = _array(memory, bias + SEATS["bias"] * seat, np.int32, 2 * int(each["biases"]), "bias")
            biases = dict(zip(pairs[::2].tolist(), pairs[1::2].view(np.float32).tolist(), strict=True))
        tallies = np.zeros(VOCABULARY, np.int16)
        if flags & PENALTIES:
            tallies = _array(memory, counts + SEATS["token_counts"] * seat, np.int16, VOCABULARY, "token_counts")
        parameters = SamplingParameters(
            temperature=0.0 if flags & GREEDY else float(each["temperature"]),
            top_k=int(each["top_k"]),
            top_p=float(each["top_p"]),
            min_p=float(each["min_p"]),
            repetition_penalty=float(each["repetition_penalty"]),
            frequency_penalty=float(each["frequency_penalty"]),
            presence_penalty=float(each["presence_penalty"]),
            logit_bias=biases,
        )
        try:
            token = int(sample(row[None], [_Seated(parameters, tallies, float(each["uniform"]))])[0])
        except LogitsNotFinite:
            token = -1
        result[index] = token
        _array(memory, feedback + SEATS["feedback"] * seat, np.int32, 16, "feedback")[0] = token
        if flags & PENALTIES and token >= 0:
            tallies[token] += 1
        if flags & LOGPROBS and token >= 0:
            _report(memory, logprobs + 4 * LOGPROB_WORDS * index, raw, token, int(each["top"]))


def draw_greedy(memory: FakeMemory, values: list[int], grid: tuple[int, int, int]) -> None:
    logits, draws, feedback, ids, rows = values
    table = _array(memory, draws, DRAW, rows, "draws")
    result = _array(memory, ids, np.int32, rows, "ids")
    for index, seat in enumerate(table["seat"].tolist()):
        if seat < 0:
            continue
        row = _array(memory, logits + LOGIT_ROW * index, np.float32, VOCABULARY, "logits")
        token = int(np.argmax(row))
        token = token if np.isfinite(row[token]) else -1
        result[index] = token
        _array(memory, feedback + SEATS["feedback"] * seat, np.int32, 16, "feedback")[0] = token


def _report(memory: FakeMemory, address: int, row: NDArray[np.float32], token: int, top: int) -> None:
    words = _array(memory, address, np.float32, LOGPROB_WORDS, "logprobs")
    words[0], likeliest = token_logprobs(row, token, top)
    words[1 : 1 + top].view(np.int32)[:] = [token for token, _ in likeliest]
    words[21 : 21 + top] = [value for _, value in likeliest]


KERNELS = {each.__name__: each for each in (embed, cache_write, attend_singles, attend_tiles, head, draw, draw_greedy)}
