"""A KV cache of bytes: what is written to it, and attention through it, kernel by kernel, against Schedule IR."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from cases import Array, generator
from native_kernels import NATIVE_CLASSES, NativeKernels, object_of
from programs import slow_from
from xdsl.ir import Block, SSAValue

from tessera_compiler.graph.types import DYNAMIC, I32, TOKENS, tensor
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.evaluator import Cache, attend
from tessera_compiler.schedule.passes.choose_numerics import tensor_of_tables
from tessera_compiler.targets.cpu.object_code import CPU_CLASSES
from tessera_compiler.targets.reference.interpreter import run_kernel
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.lowering.attention import lower_attention
from tessera_compiler.tile.lowering.context import CachePlan, GroupArguments
from tessera_compiler.tile.lowering.rows import lower_rows
from tessera_compiler.tile.types import element_name
from tessera_runtime.executor.cpu.object_check import check_object

BLOCKS = 24
LENGTHS = (150, 21, 1)
PARTS = ("key", "value")


@dataclass(frozen=True)
class Shape:
    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    window: int = 0
    softcap: float = 0.0


SHAPES = {
    "grouped": Shape(6, 2, 64, 64),
    "one key head": Shape(4, 1, 40, 40),
    "a head for each": Shape(3, 3, 80, 96),
    "ragged, with a window": Shape(2, 1, 22, 50, window=40),
    "narrow values, with a cap": Shape(4, 2, 96, 16, softcap=3.0),
}
CASES = [
    *((name, NATIVE_CLASSES[0]) for name in SHAPES),
    *((name, other) for other in NATIVE_CLASSES[1:] for name in ("grouped", "ragged, with a window")),
]


@dataclass(frozen=True)
class Kernels:
    """The kernels that write each part and the one that attends, with the op of each."""

    writes: dict[str, tuple[schedule.CacheWriteOp, tile.KernelOp]]
    attends: tuple[schedule.AttendOp, tile.KernelOp]


@cache
def kernels_of(shape: Shape) -> Kernels:
    common = {"cache": 0, "element": "i8"}
    groups = {
        part: _group("rows", (shape.key_heads, width), schedule.CacheWriteOp, part=part, **common)
        for part, width in (("key", shape.key_dim), ("value", shape.value_dim))
    }
    groups["attend"] = _group(
        "attention",
        (shape.heads, shape.key_dim),
        schedule.AttendOp,
        key_heads=shape.key_heads,
        value_dim=shape.value_dim,
        scale=0.3,
        window=shape.window,
        softcap=shape.softcap,
        **common,
    )
    plan = CachePlan.of(list(groups.values()))
    made = {}
    for name, group in groups.items():
        arguments = GroupArguments.of(group, plan)
        kernel = (
            lower_attention(group, arguments, name).whole if name == "attend" else lower_rows(group, arguments, name)
        )
        made[name] = (group.body.block.first_op, kernel)
    return Kernels({part: made[part] for part in PARTS}, made["attend"])  # type: ignore[arg-type, misc]


def _group(kind: str, row: tuple[int, int], op: type[schedule.ScheduleOp], **values: object) -> schedule.GroupOp:
    rows = tensor([DYNAMIC], I32, TOKENS)
    types = [tensor((DYNAMIC, *row), rows=TOKENS), rows, rows, tensor_of_tables()]
    outside, block = Block(arg_types=types), Block(arg_types=types)
    made = op.make(*block.args, **values)
    results: list[SSAValue] = list(made.results)
    block.add_ops([made, schedule.YieldOp(results)])
    return schedule.GroupOp(kind, list(outside.args), [result.type for result in results], block)


@dataclass(frozen=True)
class Step:
    """All tokens of three sequences, whose blocks lie anywhere."""

    positions: Array
    sequences: Array
    tables: Array

    @staticmethod
    def whole() -> Step:
        positions = np.concatenate([np.arange(length) for length in LENGTHS]).astype(np.int32)
        sequences = np.repeat(np.arange(len(LENGTHS)), LENGTHS).astype(np.int32)
        width = -(-max(LENGTHS) // 16)
        order = generator("blocks").permutation(BLOCKS)
        tables = np.full((len(LENGTHS), width), -1, np.int32)
        start = 0
        for row, length in enumerate(LENGTHS):
            count = -(-length // 16)
            tables[row, :count] = order[start : start + count]
            start += count
        return Step(positions, sequences, tables)

    def inputs(self) -> list[Array]:
        return [self.positions, self.sequences, self.tables.reshape(-1)]


class Processor:
    """Runs kernels one way: interpreted, or natively with one class."""

    def __init__(self, shape: Shape, cpu_class: str | None) -> None:
        self.kernels = kernels_of(shape)
        every = [*(kernel for _, kernel in self.kernels.writes.values()), self.kernels.attends[1]]
        self._native = NativeKernels(every, cpu_class) if cpu_class is not None else None

    def run(self, kernel: tile.KernelOp, buffers: list[Array], tokens: int, width: int, tiles: int) -> list[Array]:
        if self._native is not None:
            return self._native.run(kernel, buffers, tokens=tokens, table_width=width, tiles=tiles)
        buffers = [np.array(buffer) for buffer in buffers]
        with np.errstate(all="ignore"):
            run_kernel(kernel, buffers, tokens=tokens, table_width=width, tiles=tiles)
        return buffers

    def write(self, part: str, x: Array, step: Step) -> tuple[Array, Array]:
        """The bytes and the scales of a part, in a cache that held nothing but NaN and ones."""
        kernel = self.kernels.writes[part][1]
        parameters = [buffer.type.get_shape()[1] for buffer in kernel.buffers[4:]]  # type: ignore[attr-defined]
        elements = [element_name(buffer.type) for buffer in kernel.buffers[4:]]
        caches = [
            np.full((BLOCKS, size), 0xFF, np.uint8).view(np.int8)
            if element == "i8"
            else np.full((BLOCKS, size), *((0xFF, np.uint8) if element == "u8" else (np.nan, np.float32)))
            for size, element in zip(parameters, elements, strict=True)
        ]
        buffers = [_row_major(x, kernel.buffers[0]), *step.inputs(), *caches]
        found = self.run(kernel, buffers, len(x), step.tables.shape[1], 0)
        return found[4], found[5]

    def attend(self, query: Array, caches: list[Array], step: Step, tiles: Array) -> Array:
        op, kernel = self.kernels.attends
        buffers = [_row_major(query, kernel.buffers[0]), *step.inputs(), *caches, tiles.reshape(-1)]
        for parameter in kernel.buffers[len(buffers) :]:
            width = parameter.type.get_shape()[1]  # type: ignore[attr-defined]
            buffers.append(np.full((len(query), width), 7.0, np.float32))
        found = self.run(kernel, buffers, len(query), step.tables.shape[1], len(tiles))[-1]
        heads, width = op.result.type.get_shape()[1:]  # type: ignore[attr-defined]
        return found[:, : heads * width].reshape(-1, heads, width)


@cache
def processor_of(shape: Shape, cpu_class: str) -> Processor:
    return Processor(shape, cpu_class)


def _row_major(x: Array, parameter: SSAValue) -> Array:
    padded = np.zeros((len(x), parameter.type.get_shape()[1]), np.float32)  # type: ignore[attr-defined]
    padded[:, : x[0].size] = x.reshape(len(x), -1)
    return padded


def drawn(shape: Shape) -> dict[str, Array]:
    """Queries, keys and values: heads of very different sizes, one of them zero, one with a single large column."""
    random = generator("quantized", repr(shape))
    count = sum(LENGTHS)
    found = {}
    for name, heads, width in (
        ("query", shape.heads, shape.key_dim),
        ("key", shape.key_heads, shape.key_dim),
        ("value", shape.key_heads, shape.value_dim),
    ):
        x = random.standard_normal((count, heads, width)) * 2.0 ** random.integers(-3, 3, (count, heads, 1))
        x[5] = 0
        x[7, :, 1] *= 40
        found[name] = x.astype(np.float32)
    return found


def expected(shape: Shape, data: dict[str, Array], step: Step) -> Array:
    kernels, held = kernels_of(shape), Cache(BLOCKS)
    where = (step.positions, step.sequences, step.tables)
    for part, (op, _) in kernels.writes.items():
        held.write(op, data[part], *where)
    return attend(kernels.attends[0], held, data["query"], *where)


def tiles_of(step: Step, most: int) -> Array:
    """The tokens of each sequence in tiles of at most so many, the last sequence first."""
    starts = np.cumsum([0, *LENGTHS])
    found = [
        (first, min(most, start + length - first))
        for start, length in zip(starts, LENGTHS, strict=False)
        for first in range(start, start + length, most)
    ]
    return np.array(found[::-1], np.int32)


@pytest.mark.parametrize(("name", "cpu_class"), slow_from(3, CASES))
def test_attention_through_bytes(name: str, cpu_class: str) -> None:
    """Against Schedule IR, and, token by token or sixteen at a time, the same bits."""
    shape, step = SHAPES[name], Step.whole()
    data, processor = drawn(shape), processor_of(shape, cpu_class)
    written = {part: processor.write(part, data[part], step) for part in PARTS}
    caches = [written["key"][0], written["value"][0], written["key"][1], written["value"][1]]
    whole, single = (processor.attend(data["query"], caches, step, tiles_of(step, most)) for most in (16, 1))
    assert np.isfinite(whole).all() and whole.tobytes() == single.tobytes()
    wanted = expected(shape, data, step)
    size = np.abs(wanted).max(axis=-1, keepdims=True)
    # Weights are whole numbers, up to 65,535 for the largest of a step; there are two steps.
    assert (np.abs(whole - wanted) <= 2e-4 * size + 1e-6).all()


@pytest.mark.parametrize("name", slow_from(1, ["grouped", "ragged, with a window"]))
def test_the_interpreter_writes_and_attends_alike(name: str) -> None:
    shape, step = SHAPES[name], Step.whole()
    data = drawn(shape)
    oracle, native = Processor(shape, None), processor_of(shape, NATIVE_CLASSES[0])
    written = {}
    for part in PARTS:
        written[part] = native.write(part, data[part], step)
        for found, wanted in zip(written[part], oracle.write(part, data[part], step), strict=True):
            assert found.tobytes() == wanted.tobytes()
    caches = [written["key"][0], written["value"][0], written["key"][1], written["value"][1]]
    tiles = tiles_of(step, 16)[:4]
    rows = np.concatenate([np.arange(first, first + count) for first, count in tiles])
    found, wanted = (each.attend(data["query"], caches, step, tiles)[rows] for each in (native, oracle))
    assert (np.abs(found - wanted) <= 1e-4 * np.abs(wanted).max(axis=-1, keepdims=True) + 1e-6).all()


def test_small_weights_beside_a_large_one_are_not_lost() -> None:
    """One key takes nearly all of the weight; the rest is spread over what single bytes would round to nothing."""
    shape, step = SHAPES["grouped"], Step.whole()
    data = drawn(shape)
    rare = np.zeros_like(data["key"])
    rare[0, :, 0] = 1.0
    data["key"], data["query"] = rare, np.zeros_like(data["query"])
    data["query"][:, :, 0] = np.log(1000.0) / 0.3
    data["value"] = np.ones_like(data["value"])
    # Its scale is that of the others: else what it takes would not be large, and nothing could be lost beside it.
    data["value"][0, :, 1:] = 0.0
    processor = processor_of(shape, NATIVE_CLASSES[0])
    written = {part: processor.write(part, data[part], step) for part in PARTS}
    caches = [written["key"][0], written["value"][0], written["key"][1], written["value"][1]]
    last = LENGTHS[0] - 1
    found = processor.attend(data["query"], caches, step, tiles_of(step, 16))[last]
    others = last / (last + 1000)
    np.testing.assert_allclose(found[:, 1:], others, rtol=2e-2)


@pytest.mark.parametrize("name", slow_from(1, list(SHAPES)))
def test_kernels_stand_alone_on_aarch64(name: str) -> None:
    kernels = kernels_of(SHAPES[name])
    every = [*(kernel for _, kernel in kernels.writes.values()), kernels.attends[1]]
    data = object_of(every, CPU_CLASSES["aarch64"])
    check_object(data, "aarch64", [kernel.symbol for kernel in every], page_bytes=65536)
