"""Draws tokens as a device does, by the kernels of `drawing.full` in Triton's interpreter; and as the host does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from interpreting import run_in_triton, run_source
from numpy.typing import NDArray

from tessera_compiler.targets.reference.interpreter import run_kernel
from tessera_compiler.targets.triton.drawing.layout import DrawingLayout
from tessera_compiler.targets.triton.drawing.plan import DrawingPlan, with_drawing_buffers
from tessera_compiler.targets.triton.drawing.sources import drawing_source
from tessera_compiler.tile.dialect import KernelOp
from tessera_runtime.executor.drawing import (
    BIAS,
    BITMASK,
    GREEDY,
    IN_PROMPT,
    LOGPROB_WORDS,
    MAX_BIASES,
    MOST_COUNTED,
    PENALTIES,
    Drawn,
)
from tessera_runtime.sampling.errors import LogitsNotFinite
from tessera_runtime.sampling.parameters import SamplingParameters
from tessera_runtime.sampling.sampler import sample
from tessera_runtime.sampling.sequence import SampledSequence

Array = NDArray[Any]
SEATS = 4
PATTERN, SPARE_ROWS = 1 << 20, 4
"""What stands where nothing was written, and how many rows of it follow each buffer."""


@dataclass
class SeatMemory:
    """What belongs to one sequence."""

    counts: Array | None = None
    biases: dict[int, float] = field(default_factory=dict)
    allowed: Array | None = None
    """A truth value for each token."""


class DrawingMachine:
    """Memory of a device that draws; everything that no kernel has written is a pattern."""

    def __init__(self, layout: DrawingLayout, folder: Path) -> None:
        self.layout, self.folder = layout, folder
        self.plan = DrawingPlan.of(layout, 0, 1)
        seats = layout.seats
        self.feedback = np.full((SEATS, seats["feedback"] // 4), 77, np.int32)
        self.counts = np.zeros((SEATS, seats["token_counts"] // 2), np.int16)
        self.bias = np.full((SEATS, MAX_BIASES, 2), 1, np.int32)
        self.bitmask = np.zeros((SEATS, seats["bitmask"] // 4), np.int32)
        self._memory: dict[str, Array] = {}

    def begin(self, seat: int, memory: SeatMemory) -> None:
        size = self.layout.vocab_size
        if memory.counts is not None:
            self.counts[seat, :size] = memory.counts
        for place, (token, value) in enumerate(memory.biases.items()):
            self.bias[seat, place] = token, np.float32(value).view(np.int32)
        if memory.allowed is not None:
            bits = np.zeros(32 * self.bitmask.shape[1], np.uint8)
            bits[:size] = memory.allowed
            self.bitmask[seat] = np.packbits(bits, bitorder="little").view(np.int32)

    def draw(self, logits: Array, draws: Array) -> Drawn:
        """By the kernels of `drawing.full`."""
        self._memory = self._run("full", logits, draws, in_triton=True)
        return Drawn(self._memory["result:ids"], self._memory["result:logprobs"])

    def ways(self) -> list[str]:
        """How the last `draw` found what the filters of each row keep; all rows had some."""
        constants = {name: int(self.layout.constants[name]) for name in ("SHIFT", "LENGTH", "BAND_LOW", "BAND_HIGH")}
        words, sums = (self._memory[f"buffer:{self.plan.buffers[name]}"] for name in ("words", "sums"))
        found = []
        for row, (word, sum_) in enumerate(zip(words, sums, strict=True)):
            room = self.layout.list_length if row < self.layout.lists else -1
            decided = sum_[constants["BAND_LOW"]] == sum_[constants["BAND_HIGH"]]
            shape = "decided" if decided else "listed" if word[constants["LENGTH"]] <= room else "read"
            found.append(f"narrowed {shape}" if word[constants["SHIFT"]] >= 0 else shape)
        return found

    def greedy(self, logits: Array, draws: Array, *, in_triton: bool) -> Array:
        """The ids that the kernels of `drawing.greedy` find, in Triton's interpreter or in that of Tile IR."""
        return self._run("greedy", logits, draws, in_triton)["result:ids"]

    def _run(self, form: str, logits: Array, draws: Array, in_triton: bool) -> dict[str, Array]:
        """Runs what the program says; returns all memory by the argument that names it. Everything past a row's tokens
        is what no token may be: higher than all."""
        rows, width = len(logits), self.layout.logit_stride
        padded = np.full((rows, width), 1e30, np.float32)
        padded[:, : self.layout.vocab_size] = logits
        arena = {"bytes": 0, "bytes_per_token": 0, "bytes_per_logit_row": 4 * width}
        first = {"dtype": "f32", "row_bytes": 4 * width, "rows": "L", "offset": dict.fromkeys(("tokens", "bytes"), 0)}
        buffers, _ = with_drawing_buffers(self.plan, [first], arena)
        memory: dict[str, Array] = {
            "buffer:0": padded,
            "input:draws": np.ascontiguousarray(draws).view(np.int32).reshape(-1),
            "seat:token_counts": self.counts,
            "seat:bias": self.bias,
            "seat:bitmask": self.bitmask,
            "seat:feedback": self.feedback,
            "result:ids": np.full(rows, 1234, np.int32),
            "result:logprobs": np.full((rows, LOGPROB_WORDS), np.nan, np.float32),
        }
        spare = []
        for number, buffer in enumerate(buffers[1:], 1):
            dtype = np.dtype({"f32": np.float32, "i32": np.int32, "i64": np.int64}[buffer["dtype"]])
            count = rows if buffer["rows"] == "L" else buffer["rows"]
            held = np.full((count + SPARE_ROWS, buffer["row_bytes"] // dtype.itemsize), PATTERN, dtype)
            memory[f"buffer:{number}"] = held[:count]
            spare.append(held[count:])
        groups = self.plan.groups()
        stages = {stage.name: stage for stage in self.plan.stages}
        for launch in self.plan.launches()[form]:
            stage = stages[launch["group"]]
            arrays = [memory[each] for each in launch["args"] if not each.startswith("size:")]
            if stage.kernel is None:
                grid = groups[stage.name]["variants"][0]["grid"]
                source = drawing_source(stage.name, self.layout)
                run_source(source, arrays, tuple(rows if each == "L" else each for each in grid), self.folder)
            else:
                run_lowered(stage.kernel, arrays, rows, self.folder if in_triton else None)
        assert all((each == PATTERN).all() for each in spare), "a kernel has written past its buffer"
        return memory


def run_lowered(kernel: KernelOp, arrays: list[Array], rows: int, folder: Path | None) -> None:
    """Runs a kernel of Tile IR on the arrays themselves; in Triton's interpreter with a folder for its source."""
    shapes = [(-1, *(size for size in buffer.type.get_shape()[1:])) for buffer in kernel.buffers]
    views = [array.reshape(shape) for array, shape in zip(arrays, shapes, strict=True)]
    if folder is None:
        run_kernel(kernel, views, tokens=0, logit_rows=rows)
        return
    for view, after in zip(views, run_in_triton(kernel, views, folder, logit_rows=rows), strict=True):
        view[...] = after


class _Seated(SampledSequence):
    """A sequence as its seat's memory describes it."""

    def __init__(self, parameters: SamplingParameters, counts: Array, uniform: float) -> None:
        said = np.repeat(np.arange(len(counts)), counts & MOST_COUNTED).tolist()
        super().__init__(parameters, np.flatnonzero(counts & IN_PROMPT).tolist(), said)
        self._uniform = uniform

    def draw(self, ahead: int = 0) -> float:
        return self._uniform


def drawn_by_host(row: Array, draw: Array, memory: SeatMemory) -> int:
    """What the sampler says to the same row, draw and seat; -1 if it refuses."""
    flags, row = int(draw["flags"]), row.copy()
    if flags & BITMASK:
        assert memory.allowed is not None
        row[~memory.allowed] = -np.inf
    counts = memory.counts if flags & PENALTIES and memory.counts is not None else np.zeros(len(row), np.int16)
    penalties = ("repetition_penalty", "frequency_penalty", "presence_penalty") if flags & PENALTIES else ()
    parameters = SamplingParameters(
        temperature=0.0 if flags & GREEDY else float(draw["temperature"]),
        logit_bias=memory.biases if flags & BIAS else {},
        **{name: float(draw[name]) for name in ("top_p", "min_p", *penalties)},
        top_k=int(draw["top_k"]),
    )
    try:
        return int(sample(row[None], [_Seated(parameters, counts, float(draw["uniform"]))])[0])
    except LogitsNotFinite:
        return -1


def set_flags(draw: Array, memory: SeatMemory) -> None:
    """What a draw says of its seat: how many biases there are."""
    draw["biases"] = len(memory.biases) if int(draw["flags"][0]) & BIAS else 0
