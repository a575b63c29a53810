"""The logits of a token depend in no bit on what else is in its step, or on how its prefix was computed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pytest
from native_kernels import NATIVE_CLASSES, Array
from programs import compiled, make_batch, open_executor, packed_weights, tiny_model

from tessera_runtime.executor.cpu.executor import CpuExecutor

BLOCK = 16
LENGTH = 37
BLOCKS = 96
SUBJECTS = (
    ("llama", "int8"),
    ("llama", "fp32"),
    ("llama", "bf16"),
    ("gemma2", "fp32"),
    ("gemma2", "int8"),
    ("llama", "int4"),
    ("llama", "int8+int8"),
    ("gemma2", "fp32+int8"),
    ("cohere", "int8"),
    ("cohere", "int4+int8"),
)


class Subject:
    """A model that is open with several numbers of threads, and the logits of its sequence computed at once, alone."""

    def __init__(self, name: str, dtype: str, folder) -> None:  # type: ignore[no-untyped-def]
        model = tiny_model(name)
        cpu_class = NATIVE_CLASSES[0]
        result = compiled(name, dtype, (cpu_class,))
        tensors = packed_weights(result, model.weights, folder)
        self.random = np.random.default_rng(5)
        self.vocabulary = model.vocab_size
        self.ids = self.random.integers(0, model.vocab_size, LENGTH).tolist()
        self.executors = {threads: open_executor(result, tensors, cpu_class, folder, threads) for threads in (1, 2, 3)}
        self.alone = self.run(self.executors[1], [LENGTH])

    def run(self, executor: CpuExecutor, chunks: list[int], table: list[int] | None = None) -> Array:
        """The logits of all positions, computed in chunks of these sizes (the last is repeated)."""
        executor.allocate_cache(BLOCKS)
        return self.resume(executor, chunks, table or [0, 1, 2])

    def resume(self, executor: CpuExecutor, chunks: list[int], table: list[int]) -> Array:
        found, start = [], 0
        while start < LENGTH:
            size = chunks.pop(0) if len(chunks) > 1 else chunks[0]
            tokens = [(self.ids[p], p, 0) for p in range(start, min(LENGTH, start + size))]
            found.append(executor.step(make_batch(tokens, table)))
            start += size
        return np.concatenate(found)

    def same(self, found: Array, rows: slice = slice(None)) -> bool:
        return found.tobytes() == self.alone[rows].tobytes()


@pytest.fixture(
    scope="module",
    params=[pytest.param(each, marks=[pytest.mark.slow] * (number > 0)) for number, each in enumerate(SUBJECTS)],
    ids=["-".join(each) for each in SUBJECTS],
)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    made = Subject(*request.param, tmp_path_factory.mktemp("subject"))
    yield made
    for executor in made.executors.values():
        executor.close()


def test_logits_are_numbers_that_differ(subject: Subject) -> None:
    assert np.isfinite(subject.alone).all()
    assert len(np.unique(subject.alone, axis=0)) == LENGTH


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 5, 16, LENGTH])
def test_chunks_and_threads(subject: Subject, size: int, threads: int) -> None:
    assert subject.same(subject.run(subject.executors[threads], [size]))


@pytest.mark.parametrize("first", [2, 3, 4, 6, 7, 12, 13, 31])
def test_numbers_of_tokens_around_the_edges_of_buckets(subject: Subject, first: int) -> None:
    assert subject.same(subject.run(subject.executors[1], [first, LENGTH]))


@pytest.mark.parametrize("sequences", [2, 3, 4, 5, 6, 7, 9, 13, 17])
def test_batches(subject: Subject, sequences: int) -> None:
    """The last token of our sequence among others, each with a prefix of its own, in every place of the batch."""
    executor = subject.executors[1 + sequences % 3]
    executor.allocate_cache(BLOCKS)
    ours = sequences // 2
    order = subject.random.permutation(BLOCKS - 1) + 1
    tables = order[: 3 * sequences].reshape(sequences, 3)
    lengths = subject.random.integers(1, LENGTH, sequences)
    lengths[ours] = LENGTH - 1
    ids = subject.random.integers(0, subject.vocabulary, (sequences, LENGTH))
    ids[ours] = subject.ids
    for row in range(sequences):
        executor.step(make_batch([(ids[row, p], p, 0) for p in range(lengths[row])], tables[row], []))
    batch = [(ids[row, lengths[row]], lengths[row], row) for row in range(sequences)]
    logits = executor.step(make_batch(batch, tables, [0, ours] if ours else [0]))
    assert subject.same(logits[-1:], slice(LENGTH - 1, LENGTH))


def test_a_chunk_of_one_sequence_beside_the_decoding_of_another(subject: Subject) -> None:
    executor = subject.executors[2]
    executor.allocate_cache(BLOCKS)
    tables = [[4, 9, 2], [1, 8, 5]]
    executor.step(make_batch([(7, p, 0) for p in range(20)], tables[1], []))
    executor.step(make_batch([(subject.ids[p], p, 0) for p in range(11)], tables[0], []))
    mixed = [(7, 20, 1), *((subject.ids[p], p, 0) for p in range(11, LENGTH))]
    logits = executor.step(make_batch(mixed, tables, [LENGTH - 11, 3, 3]))
    assert subject.same(logits[:1], slice(LENGTH - 1, LENGTH))
    assert subject.same(logits[1:2], slice(13, 14))
    assert logits[1].tobytes() == logits[2].tobytes()


def test_two_sequences_in_one_step_from_the_start(subject: Subject) -> None:
    executor = subject.executors[3]
    executor.allocate_cache(BLOCKS)
    tokens = [token for p in range(LENGTH) for token in ((3, p, 1), (subject.ids[p], p, 0))]
    logits = executor.step(make_batch(tokens, [[5, 6, 7], [10, 11, 12]]))
    assert subject.same(logits[1::2])


@pytest.mark.parametrize("chunk", [5, LENGTH])
def test_what_lies_in_unused_memory_does_not_matter(subject: Subject, chunk: int) -> None:
    """The whole cache holds NaN before; blocks are shuffled; the arena holds what other steps left."""
    executor = subject.executors[2]
    executor.allocate_cache(BLOCKS)
    cache = executor._cache
    assert cache is not None
    cache[...] = 0xFF
    executor._arena[...] = 0xFF
    assert subject.same(subject.resume(executor, [chunk], [90, 3, 41]))


def test_the_width_of_the_table_does_not_matter(subject: Subject) -> None:
    executor = subject.executors[1]
    executor.allocate_cache(BLOCKS)
    assert subject.same(subject.resume(executor, [16], [8, 2, 4, -1, 1 << 30, 7]))


def test_only_the_logits_asked_for(subject: Subject) -> None:
    executor = subject.executors[2]
    executor.allocate_cache(BLOCKS)
    tokens = [(subject.ids[p], p, 0) for p in range(LENGTH)]
    for rows in ([], [LENGTH - 1], [3, 0, 9, 3, 12]):
        found = executor.step(make_batch(tokens, [0, 1, 2], rows))
        assert found.tobytes() == subject.alone[rows].tobytes()


@lru_cache(maxsize=1)
def per_class_logits() -> dict[str, Array]:
    import tempfile
    from pathlib import Path

    model = tiny_model("llama")
    found = {}
    for cpu_class in NATIVE_CLASSES:
        result = compiled("llama", "fp32", (cpu_class,))
        with tempfile.TemporaryDirectory() as folder:
            tensors = packed_weights(result, model.weights, Path(folder))
            with open_executor(result, tensors, cpu_class, Path(folder), 2) as executor:
                executor.allocate_cache(4)
                found[cpu_class] = executor.step(make_batch([(p * 7, p, 0) for p in range(29)], [2, 1]))
    return found


@pytest.mark.slow
def test_float32_logits_are_the_same_on_every_class() -> None:
    first, *others = per_class_logits().values()
    assert all(first.tobytes() == other.tobytes() for other in others)


@pytest.mark.parametrize("sizes", [[1], [23, 127], [16], [70, 1]], ids=str)
def test_a_context_that_attention_takes_in_several_steps(subject: Subject, sizes: list[int]) -> None:
    """150 positions, in full tiles and token by token, in blocks that lie anywhere and hold NaN until written."""
    ids = [(7 * p + p * p) % subject.vocabulary for p in range(150)]
    found = []
    for executor, chunks, table in (
        (subject.executors[1], [120, 30], list(range(10))),
        (subject.executors[2], list(sizes), subject.random.permutation(BLOCKS)[:10].tolist()),
    ):
        executor.allocate_cache(BLOCKS)
        assert executor._cache is not None
        executor._cache[...] = 0xFF
        start, parts = 0, []
        while start < len(ids):
            end = min(len(ids), start + (chunks.pop(0) if len(chunks) > 1 else chunks[0]))
            parts.append(executor.step(make_batch([(ids[p], p, 0) for p in range(start, end)], table)))
            start = end
        found.append(np.concatenate(parts))
    assert np.isfinite(found[0]).all()
    assert found[0].tobytes() == found[1].tobytes()
