"""Tiny random checkpoints of real architectures, the packages made of them, and runs of these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny_models import Case, random_model
from tokenizer_zoo import byte_level
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from tessera_compiler.targets.cpu.object_code import CPU_CLASSES
from tessera_pack.packing import PackOptions, PackReport, pack
from tessera_runtime.executor.cpu.processor import missing_features, read_processor
from tessera_runtime.executor.interface import Executor, StepBatch
from tessera_runtime.loading import load_executor
from tessera_runtime.package.reader import open_package

transformers_logging.disable_progress_bar()

Floats = NDArray[np.float32]

VOCABULARY = 131
ODD: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
"""Sizes that are multiples of nothing that a kernel would like."""


def native_class() -> str:
    """The best CPU class that this machine runs."""
    processor = read_processor()
    described = {name: {"features": list(each.required_flags)} for name, each in CPU_CLASSES.items()}
    suitable = [name for name in described if not missing_features(name, described[name], processor)]
    return max(suitable, key=lambda name: len(described[name]["features"]))


def save_checkpoint(case: Case, folder: Path, **options: Any) -> PreTrainedModel:
    """Writes a random model of this configuration with a tokenizer; returns the model."""
    model = random_model(case.config())
    model.save_pretrained(folder, **options)
    save_tokenizer(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    byte_level().save(str(folder / "tokenizer.json"))


def pack_checkpoint(checkpoint: Path, out: Path, dtype: str = "fp32", **options: Any) -> PackReport:
    """Packs for this machine alone: two of three CPU classes would be compiled for nothing."""
    settings = PackOptions(out=out, from_hf=str(checkpoint), dtype=dtype, cpu_classes=(native_class(),), **options)
    return pack(settings, progress=lambda phase, done, total: None)


@contextmanager
def opened(package: Path, threads: int = 2) -> Iterator[Executor]:
    with load_executor(open_package(package), target="cpu", threads=threads) as executor:
        yield executor


def draw_ids(count: int, vocabulary: int = VOCABULARY, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(3, vocabulary, count)


def reference_logits(model: PreTrainedModel, ids: NDArray[np.int64]) -> Floats:
    """What transformers computes for one sequence, all positions."""
    with torch.inference_mode():
        logits: Floats = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
    return logits


def relative_error(found: Floats, expected: Floats) -> float:
    """The largest difference relative to the largest logit; NaN if anything is not a number."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def relative_noise(found: Floats, expected: Floats) -> float:
    """The root mean square of the differences relative to that of the logits."""
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


class Sequences:
    """Some sequences in the cache of an executor, each computed as far as steps have taken it."""

    def __init__(self, executor: Executor, sequences: list[NDArray[np.int64]]) -> None:
        self._executor = executor
        self._sequences = sequences
        self._computed = [0] * len(sequences)
        block = executor.limits.block_tokens
        width = max(-(-len(ids) // block) for ids in sequences)
        executor.allocate_cache(width * len(sequences))
        # Neighbouring blocks belong to different sequences, and none starts with its own number.
        numbers = np.arange(width * len(sequences), dtype=np.int32)[::-1]
        self._tables = np.ascontiguousarray(numbers.reshape(width, len(sequences)).T)
        self.logits: list[list[Floats]] = [[] for _ in sequences]

    def step(self, counts: list[int]) -> None:
        """Computes the next `counts[i]` tokens of each sequence, all in one step."""
        ids, positions, rows = [], [], []
        for number, count in enumerate(counts):
            start = self._computed[number]
            ids.append(self._sequences[number][start : start + count])
            positions.append(np.arange(start, start + count))
            rows.append(np.full(count, number))
            self._computed[number] += count
        total = sum(counts)
        logits = self._executor.step(
            StepBatch(
                token_ids=np.concatenate(ids).astype(np.int32),
                positions=np.concatenate(positions).astype(np.int32),
                sequences=np.concatenate(rows).astype(np.int32),
                block_tables=self._tables,
                logit_rows=np.arange(total, dtype=np.int32),
            )
        )
        for number, count in enumerate(counts):
            self.logits[number].append(logits[:count])
            logits = logits[count:]

    def result(self, number: int = 0) -> Floats:
        return np.concatenate(self.logits[number])


def in_chunks(executor: Executor, ids: NDArray[np.int64], size: int) -> Floats:
    """The logits of all positions of one sequence, `size` tokens a step."""
    run = Sequences(executor, [ids])
    for start in range(0, len(ids), size):
        run.step([min(size, len(ids) - start)])
    return run.result()


def mixed(executor: Executor, sequences: list[NDArray[np.int64]]) -> list[Floats]:
    """The logits of three sequences: one begins alone, then all are in one step, one of them with a single token."""
    first, second, third = (len(ids) for ids in sequences)
    run = Sequences(executor, sequences)
    run.step([first // 2, 0, third - 1])
    run.step([first - first // 2, second, 1])
    return [run.result(number) for number in range(3)]
