"""Runs a program of the target `reference` in NumPy: slow, on any machine, in the plainest terms.

Logits of a token may differ in their last bits with the number of tokens in its step, because BLAS adds in another
order for matrices of another shape. This is the one target whose results depend on the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.errors import CacheNotAllocated, InvalidRequest
from tessera_runtime.executor.batch_check import check_batch
from tessera_runtime.executor.interface import ExecutorLimits, StepBatch
from tessera_runtime.executor.reference.cache import CachePart
from tessera_runtime.executor.reference.numbers import Array
from tessera_runtime.executor.reference.program import Launch, parse_program
from tessera_runtime.executor.reference.weights import UnpackedMemory, Weight, bind_weights

UNPACKED_BYTES = 2 << 30


class ReferenceExecutor:
    """A program of groups of plain operations (`interface.Executor`)."""

    def __init__(
        self, program: Mapping[str, Any], weights: Mapping[str, NDArray[Any]], *, unpacked_bytes: int = UNPACKED_BYTES
    ) -> None:
        """`program` is the parsed program.json, `weights` the package's tensors as they lie there.

        A weight is unpacked to float32 at its first use and kept, up to `unpacked_bytes` in all; those that no longer
        fit are unpacked piece by piece at every use. Raises AbiMismatch, ProgramInvalid or WeightsInvalid.
        """
        self._program = parse_program(program)
        self._weights = bind_weights(program["weights"], weights, UnpackedMemory(unpacked_bytes))
        self._parts: dict[tuple[str, int], CachePart] | None = None
        self._blocks = 0
        self._closed = False

    @property
    def limits(self) -> ExecutorLimits:
        return self._program.limits

    @property
    def description(self) -> str:
        return f"reference, NumPy {np.__version__}"

    def allocate_cache(self, blocks: int) -> None:
        if blocks < 1:
            raise InvalidRequest(f"A cache has at least one block, not {blocks}.")
        cache = self._program.cache
        pool = np.zeros((blocks, cache["bytes_per_block"]), np.uint8)
        self._parts = {
            (part, layer): CachePart(pool, cache, layer, part)
            for layer in range(len(cache["layers"]))
            for part in ("key", "value")
        }
        self._blocks = blocks

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        buffers: dict[int, Array] = {}
        for _ in self._run(batch, buffers):
            pass
        return np.array(buffers[self._program.output], np.float32, order="C")

    def trace(self, batch: StepBatch) -> list[tuple[str, NDArray[np.float32]]]:
        buffers: dict[int, Array] = {}
        outputs = []
        for done in self._run(batch, buffers):
            for path, end, buffer in self._program.layers:
                if end == done:
                    values = np.array(buffers[buffer], np.float32, order="C")
                    outputs.append((path, values.reshape(len(values), -1)))
        return outputs

    def close(self) -> None:
        self._closed = True
        self._parts = None
        self._weights = []

    def __enter__(self) -> ReferenceExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, batch: StepBatch, buffers: dict[int, Array]) -> Iterator[int]:
        """Runs the launches in order and says after each how many are done; buffers come and go as they are needed."""
        parts = self._parts
        if parts is None or self._closed:
            raise CacheNotAllocated(
                "A step needs an open executor with a cache.", hint="Call allocate_cache before the first step."
            )
        check_batch(batch, self.limits, self._blocks)
        for done, launch in enumerate(self._program.launches, start=1):
            inputs = [self._input(batch, buffers, kind, which) for kind, which in launch.inputs]
            # Infinities and NaN are values like others here; whoever samples from the logits refuses them.
            with np.errstate(all="ignore"):
                results = launch.body.run(inputs, [parts[key] for key in launch.caches])
            buffers.update(zip(launch.outputs, results, strict=True))
            yield done
            self._forget(buffers, launch)

    def _input(self, batch: StepBatch, buffers: dict[int, Array], kind: str, which: Any) -> Array | Weight:
        if kind == "weight":
            weight: Weight = self._weights[which]
            return weight
        values: Array = buffers[which] if kind == "buffer" else getattr(batch, which)
        return values

    @staticmethod
    def _forget(buffers: dict[int, Array], launch: Launch) -> None:
        for buffer in launch.finished:
            del buffers[buffer]
