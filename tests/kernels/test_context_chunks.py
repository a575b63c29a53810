"""Long contexts: chunks that several instances share come to the bits of one instance that takes them all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from native_kernels import NATIVE_CLASSES, Array
from programs import LONGEST, compiled, make_batch, open_executor, packed_weights, tiny_model

from tessera_compiler.module import CompiledModule
from tessera_compiler.tile.lowering.chunk_sizes import CHUNK_POSITIONS, MOST_TOKENS, partial_bytes
from tessera_runtime.executor.cpu.executor import CpuExecutor

BLOCK = 16
COUNT = 2 * CHUNK_POSITIONS + 70
WIDTH = -(-COUNT // BLOCK)
AT_ONCE = 120
EDGES = [0, 15, 254, 255, 256, 257, 300, 510, 511, 512, 513, COUNT - 1]


class Context:
    """A sequence, its logits computed in long steps by one thread, and executors that hold its cache."""

    def __init__(self, name: str, dtype: str, folder) -> None:  # type: ignore[no-untyped-def]
        model, cpu_class = tiny_model(name), NATIVE_CLASSES[0]
        self.compiled: CompiledModule = compiled(name, dtype, (cpu_class,))
        tensors = packed_weights(self.compiled, model.weights, folder)
        self.ids = [(11 * p + p * p) % model.vocab_size for p in range(COUNT)]
        self.executors = {
            threads: open_executor(self.compiled, tensors, cpu_class, folder, threads) for threads in (1, 2, 3)
        }
        # Blocks lie anywhere, and differently for each.
        self.tables = {
            threads: np.random.default_rng(threads).permutation(WIDTH + 5)[:WIDTH] for threads in self.executors
        }
        self.logits = {threads: self.fill(threads) for threads in self.executors}

    def fill(self, threads: int) -> Array:
        executor = self.executors[threads]
        executor.allocate_cache(WIDTH + 5)
        return np.concatenate([self.step(threads, p, min(COUNT, p + AT_ONCE)) for p in range(0, COUNT, AT_ONCE)])

    def step(self, threads: int, start: int, end: int, width: int = WIDTH) -> Array:
        tokens = [(self.ids[p], p, 0) for p in range(start, end)]
        return self.executors[threads].step(make_batch(tokens, self.tables[threads][:width].tolist()))


SUBJECTS = [("llama", "int8"), ("gemma2", "fp32"), ("llama", "bf16"), ("cohere", "int8")]


@pytest.fixture(
    scope="module",
    params=[pytest.param(each, marks=[pytest.mark.slow] * (number > 0)) for number, each in enumerate(SUBJECTS)],
    ids=["-".join(each) for each in SUBJECTS],
)
def context(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    made = Context(*request.param, tmp_path_factory.mktemp("context"))
    yield made
    for executor in made.executors.values():
        executor.close()


def test_the_program_shares_chunks(context: Context) -> None:
    program = context.compiled.targets[0].program
    (kernels,) = (
        variants for name, variants in program["classes"][NATIVE_CLASSES[0]]["kernels"].items() if name == "attention_0"
    )
    shared, whole = kernels
    assert shared["max_tokens"] == MOST_TOKENS and shared["min_width"] * BLOCK > CHUNK_POSITIONS
    assert shared["grid"][1:] == ["C", "Q"] and shared["then"]["grid"][1:] == ["T"] and whole["grid"][1:] == ["Q"]
    layer = program["cache"]["layers"][0]
    heads = {"llama": 3, "gemma2": 4}
    assert program["arena"]["bytes"] in [partial_bytes(n, layer["value_dim"], LONGEST) for n in heads.values()]


def test_threads_and_places_make_no_difference(context: Context) -> None:
    assert np.isfinite(context.logits[1]).all()
    assert {logits.tobytes() for logits in context.logits.values()} == {context.logits[1].tobytes()}


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_token_alone(context: Context, threads: int) -> None:
    executor: CpuExecutor = context.executors[threads]
    executor._arena[...] = 0xFF
    for position in EDGES:
        alone = context.step(threads, position, position + 1)
        narrow = context.step(threads, position, position + 1, position // BLOCK + 1)
        expected = context.logits[1][position].tobytes()
        assert (alone.tobytes(), narrow.tobytes()) == (expected, expected), position


@pytest.mark.parametrize("count", [2, MOST_TOKENS - 1, MOST_TOKENS, MOST_TOKENS + 1, 16])
@pytest.mark.parametrize("start", [250, 505, COUNT - 16])
def test_a_few_tokens_across_the_edge_of_a_chunk(context: Context, start: int, count: int) -> None:
    found = context.step(2, start, start + count)
    assert found.tobytes() == context.logits[1][start : start + count].tobytes()


def test_sequences_of_different_lengths_in_one_step(context: Context) -> None:
    table = context.tables[3].tolist()
    positions = [3, COUNT - 1, 256, 255, 400, 20]
    tokens = [(context.ids[p], p, row) for row, p in enumerate(positions)]
    found = context.executors[3].step(make_batch(tokens, [table] * len(positions)))
    assert found.tobytes() == context.logits[1][positions].tobytes()
