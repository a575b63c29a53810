"""What a program says about drawing: its kernels, what they are launched on, and the memory between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera_compiler.targets.triton.architectures import Architecture
from tessera_compiler.targets.triton.drawing.layout import LINE, LIST_LENGTH, LISTS, DrawingLayout
from tessera_compiler.targets.triton.drawing.sources import TEXTS, drawing_source, parameters_of
from tessera_compiler.targets.triton.emission import emit_source
from tessera_compiler.targets.triton.toolchain import Job
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.lowering.device_drawing import lower_highest_of_chunks, lower_highest_of_rows

WARPS = 8
"""Of every kernel that draws."""

REGISTERS = {"draw_token": 168}
"""That a thread may have where there is one block for a row: a compiler that would fit two of them on a unit keeps
values in memory instead."""

ARENA_ALIGNMENT = 256
KIND = "drawing"

_NAMES = {
    "draws": "input:draws",
    "counts": "seat:token_counts",
    "bias": "seat:bias",
    "bitmask": "seat:bitmask",
    "feedback": "seat:feedback",
    "ids": "result:ids",
    "logprobs": "result:logprobs",
}
"""The arguments of program-gpu.md by the names that the sources have for them; all others are buffers."""

_SIZES = ("size:T", "size:L", "size:W")


@dataclass(frozen=True)
class DrawingStage:
    """One launch of `drawing`."""

    name: str
    parameters: tuple[str, ...]
    """By the names of the sources."""
    writes: tuple[str, ...]
    updates: tuple[str, ...]
    grid: tuple[str | int, ...]
    kernel: tile.KernelOp | None = None
    """None: it has a source of its own."""


@dataclass(frozen=True)
class DrawingPlan:
    """The drawing of one program."""

    layout: DrawingLayout
    buffers: Mapping[str, int]
    """The program's buffers by the names of the sources."""
    greedy: tuple[DrawingStage, ...]
    full: tuple[DrawingStage, ...]

    @staticmethod
    def of(layout: DrawingLayout, logits: int, first: int) -> DrawingPlan:
        """`logits` is the buffer that is drawn from, `first` that after the program's own (`with_drawing_buffers`)."""
        names = {name: first + number for number, name in enumerate(("peaks", "words", "sums", "lists"))}
        return DrawingPlan(layout, {"logits": logits, **names}, _greedy(layout), _full(layout))

    @property
    def stages(self) -> tuple[DrawingStage, ...]:
        return (*self.greedy, *self.full)

    def jobs(self, architecture: Architecture) -> dict[str, Job]:
        """What has to be compiled, by the name of the kernel."""
        jobs = {}
        for stage in self.stages:
            if stage.kernel is None:
                source = drawing_source(stage.name, self.layout, dependent=architecture.dependent)
            else:
                source = emit_source(stage.kernel, dependent=architecture.dependent)
            jobs[stage.name] = Job(source, architecture, WARPS, 1, REGISTERS.get(stage.name, 0))
        return jobs

    def groups(self) -> dict[str, dict[str, Any]]:
        return {
            stage.name: {
                "kind": KIND,
                "tuned": None,
                "source": KIND,
                "variants": [{"limits": {}, "kernel": stage.name, "grid": list(stage.grid)}],
            }
            for stage in self.stages
        }

    def launches(self) -> dict[str, list[dict[str, Any]]]:
        return {form: [self._launch(stage) for stage in getattr(self, form)] for form in ("greedy", "full")}

    def seats(self) -> list[dict[str, Any]]:
        return [{"name": name, "row_bytes": size} for name, size in self.layout.seats.items()]

    def _launch(self, stage: DrawingStage) -> dict[str, Any]:
        args = [_NAMES.get(name) or f"buffer:{self.buffers[name]}" for name in stage.parameters]
        return {
            "group": stage.name,
            "args": args if stage.kernel is None else [*args, *_SIZES],
            "layer": "",
            "writes": [self.buffers[name] for name in stage.writes],
            "updates": [self.buffers[name] for name in stage.updates],
            "reads_cache": [],
            "writes_cache": [],
        }


def plan_drawing(buffers: Sequence[Mapping[str, Any]], output: int, most_rows: int) -> DrawingPlan:
    """`buffers` are those of the program so far, of which `output` is that of the logits. No step has more than
    `most_rows` rows of these."""
    logits = buffers[output]
    vocabulary = logits["shape"][0]
    layout = DrawingLayout(
        vocabulary,
        logits["row_bytes"] // 4,
        list_length=min(LIST_LENGTH, _whole(vocabulary, LINE // 8)),
        lists=min(LISTS, most_rows),
    )
    return DrawingPlan.of(layout, output, len(buffers))


def with_drawing_buffers(
    plan: DrawingPlan, buffers: Sequence[Mapping[str, Any]], arena: Mapping[str, int]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """All buffers, and the arena with room for those between the kernels: the lists behind what does not grow with the
    step, which moves everything that does, and the others behind the rows of logits."""
    layout = plan.layout
    lists = _whole(layout.lists * layout.list_length * 8, ARENA_ALIGNMENT)
    made = [
        dict(buffer)
        if isinstance(buffer["rows"], int)
        else {**buffer, "offset": {**buffer["offset"], "bytes": buffer["offset"]["bytes"] + lists}}
        for buffer in buffers
    ]
    fixed, end = arena["bytes"] + lists, arena["bytes_per_logit_row"]
    for name, dtype, size, stride in (
        *(("peaks", "f32", 4, layout.peak_stride), ("words", "i32", 4, layout.word_stride)),
        ("sums", "i64", 8, layout.sum_stride),
    ):
        offset = {"tokens": arena["bytes_per_token"], "logit_rows": end, "bytes": fixed}
        made.append(_buffer(name, dtype, stride, stride * size, "L", offset))
        end += stride * size
    offset = {"tokens": 0, "logit_rows": 0, "bytes": arena["bytes"]}
    made.append(_buffer("lists", "i64", layout.list_length, layout.list_length * 8, layout.lists, offset))
    return made, {**arena, "bytes": fixed, "bytes_per_logit_row": end}


def _whole(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _buffer(
    name: str, dtype: str, elements: int, row_bytes: int, rows: str | int, offset: Mapping[str, int]
) -> dict[str, Any]:
    assert row_bytes % LINE == 0, "strides are whole lines"
    return {
        "name": f"draw_{name}",
        "dtype": dtype,
        "shape": [elements],
        "row_bytes": row_bytes,
        "rows": rows,
        "offset": dict(offset),
    }


def _greedy(layout: DrawingLayout) -> tuple[DrawingStage, ...]:
    vocabulary, strides = layout.vocab_size, (layout.peak_stride, layout.word_stride)
    parts = lower_highest_of_chunks("draw_highest", vocabulary, layout.logit_stride, *strides, layout.chunk)
    fold = lower_highest_of_rows("draw_greedy", vocabulary, *strides, layout.seats["feedback"] // 4, layout.chunk)
    return (
        DrawingStage(
            *("draw_highest", ("logits", "draws", "peaks", "words"), ("peaks", "words"), ()),
            grid=tuple(parts.grid_entries),
            kernel=parts,
        ),
        DrawingStage(
            *("draw_greedy", ("draws", "peaks", "words", "feedback", "ids"), (), ()),
            grid=tuple(fold.grid_entries),
            kernel=fold,
        ),
    )


def _full(layout: DrawingLayout) -> tuple[DrawingStage, ...]:
    """Kernels that write part of what others wrote before update it."""
    written: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str | int, ...]]] = {
        "draw_scores": (("peaks", "words"), (), (layout.chunks, "L")),
        "draw_weights": (("sums",), ("words",), (layout.chunks, "L")),
        "draw_plan": ((), ("words", "sums"), ("L",)),
        "draw_narrow": ((), ("words", "sums"), (layout.chunks, "L")),
        "draw_list": (("lists",), ("words", "sums"), (layout.chunks, "L")),
        "draw_token": ((), (), ("L",)),
    }
    return tuple(DrawingStage(symbol, parameters_of(symbol), *written[symbol]) for symbol in TEXTS)
