"""A toy program of three launches, written by hand, that needs its barriers to be right."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llvmlite import ir

from tessera_compiler.targets.cpu.object_code import CPU_CLASSES, CpuClass, compile_ir
from tessera_compiler.targets.cpu.step_protocol import EXPORTS, INTEGER, POINTER, StepProtocol
from tessera_runtime.executor.cpu.executor import CpuExecutor
from tessera_runtime.executor.cpu.processor import choose_class, read_processor
from tessera_runtime.executor.interface import StepBatch

VOCABULARY = 16
BLOCK_TOKENS = 4


class _Toy:
    """Builds `first[t] = token[t] + weight`, `second[t] = first[T - 1 - t] * 2`, `logits[l] = second[row[l]]`."""

    def __init__(self, cpu_class: CpuClass) -> None:
        self.module = ir.Module()
        self.protocol = StepProtocol(self.module, cpu_class.machine)
        body = self.protocol.declare_body()
        self.context, self.thread = body.args
        self.builder = ir.IRBuilder(body.append_basic_block())
        for number, kernel in enumerate((self._first, self._second, self._logits)):
            if number:
                self.protocol.barrier(self.builder, self.context)
            self._launch(number, kernel, "logit_count" if number == 2 else "tokens")
        self.builder.ret_void()
        self.protocol.finish(body, abi=1)

    def _own(self, start: ir.Block) -> ir.Value:
        """Every n-th item, whichever thread is faster, so that the next launch reads what another thread wrote."""
        item = self.builder.phi(INTEGER)
        item.add_incoming(self.thread, start)
        return item

    def _field(self, name: str) -> ir.Value:
        return self.protocol.load(self.builder, self.context, name)

    def _launch(self, number: int, kernel: Callable[[ir.Value], None], count: str) -> None:
        builder = self.builder
        allowed = builder.icmp_unsigned("<", ir.Constant(INTEGER, number), self._field("launch_limit"))
        with builder.if_then(allowed):
            head, each, done = (builder.append_basic_block() for _ in range(3))
            start = builder.block
            builder.branch(head)
            builder.position_at_end(head)
            item = self._own(start) if number == 0 else self.protocol.claim(builder, self.context, number, 1)
            builder.cbranch(builder.icmp_unsigned("<", item, self._field(count)), each, done)
            builder.position_at_end(each)
            kernel(item)
            if number == 0:
                item.add_incoming(builder.add(item, self._field("threads")), builder.block)
            builder.branch(head)
            builder.position_at_end(done)

    def _at(self, base: ir.Value, index: ir.Value, kind: ir.Type = ir.FloatType()) -> ir.Value:  # noqa: B008
        return self.builder.gep(base, [index], source_etype=kind)

    def _buffer(self, index: int, row: ir.Value) -> ir.Value:
        """Rows of 64 bytes; buffer i starts at 64 * T * i."""
        start = self.builder.mul(self._field("tokens"), ir.Constant(INTEGER, index))
        offset = self.builder.mul(self.builder.add(start, row), ir.Constant(INTEGER, 64))
        return self.builder.gep(self._field("arena"), [offset], source_etype=ir.IntType(8))

    def _each_lane(self, source: Callable[[int], ir.Value], target: ir.Value) -> None:
        for lane in range(VOCABULARY):
            self.builder.store(source(lane), self._at(target, ir.Constant(INTEGER, lane)))

    def _lane(self, base: ir.Value, lane: int) -> ir.Value:
        return self.builder.load(self._at(base, ir.Constant(INTEGER, lane)), typ=ir.FloatType())

    def _first(self, item: ir.Value) -> None:
        weight = self.builder.load(self._field("weights"), typ=POINTER)
        token = self.builder.load(self._at(self._field("token_ids"), item, ir.IntType(32)), typ=ir.IntType(32))
        value = self.builder.sitofp(token, ir.FloatType())
        self._each_lane(lambda lane: self.builder.fadd(value, self._lane(weight, lane)), self._buffer(0, item))

    def _second(self, item: ir.Value) -> None:
        last = self.builder.sub(self._field("tokens"), ir.Constant(INTEGER, 1))
        source = self._buffer(0, self.builder.sub(last, item))
        two = ir.Constant(ir.FloatType(), 2.0)
        self._each_lane(lambda lane: self.builder.fmul(self._lane(source, lane), two), self._buffer(1, item))

    def _logits(self, item: ir.Value) -> None:
        row = self.builder.load(self._at(self._field("logit_rows"), item, ir.IntType(32)), typ=ir.IntType(32))
        source = self._buffer(1, self.builder.zext(row, INTEGER))
        self._each_lane(lambda lane: self._lane(source, lane), self._buffer(2, item))


def toy_text(cpu_class: CpuClass) -> str:
    return str(_Toy(cpu_class).module)


@pytest.fixture(scope="session")
def toy_objects() -> dict[str, bytes]:
    """CPU class → the toy's shared object."""
    return {name: compile_ir(toy_text(entry), entry) for name, entry in CPU_CLASSES.items()}


@pytest.fixture(scope="session")
def toy_program() -> dict[str, Any]:
    def buffer(name: str, rows: str, index: int) -> dict[str, Any]:
        offset = {"tokens": 64 * index, "logit_rows": 0, "bytes": 0}
        return {"name": name, "dtype": "f32", "shape": [16], "row_bytes": 64, "rows": rows, "offset": offset}

    return {
        "abi": 1,
        "target": "cpu",
        "limits": {"max_tokens": 64, "max_model_len": 64, "vocab_size": VOCABULARY},
        "weights": [{"name": "bias", "dtype": "f32", "shape": [16], "layout": "rows"}],
        "buffers": [buffer("first", "T", 0), buffer("second", "T", 1), buffer("logits", "L", 2)],
        "arena": {"bytes": 0, "bytes_per_token": 128, "bytes_per_logit_row": 64},
        "cache": {"block_tokens": BLOCK_TOKENS, "bytes_per_block": 64, "layers": []},
        "launches": [{"group": name, "args": [], "barrier": True} for name in ("first", "second", "logits")],
        "layers": [{"path": "first", "end": 1, "buffer": 0}, {"path": "second", "end": 2, "buffer": 1}],
        "output": 2,
        "groups": {},
        "classes": {
            name: {"object": f"{name}.so", "features": list(entry.required_flags), "kernels": {}}
            for name, entry in CPU_CLASSES.items()
        },
        "exports": list(EXPORTS),
    }


@pytest.fixture(scope="session")
def toy_weights() -> dict[str, np.ndarray]:
    raw = np.zeros(64 + 16, np.float32)
    aligned = raw[-raw.ctypes.data % 64 // 4 :][:64]
    aligned[:16] = np.arange(16) / 16
    return {"bias": aligned}


@pytest.fixture
def open_toy(
    tmp_path: Path, toy_objects: dict[str, bytes], toy_program: dict[str, Any], toy_weights: dict[str, np.ndarray]
) -> Iterator[Callable[..., CpuExecutor]]:
    """Makes executors of the toy on this machine's best class, with a cache; closes them after the test."""
    opened: list[CpuExecutor] = []

    def make(threads: int | None = 1, **changes: Any) -> CpuExecutor:
        name = choose_class(toy_program["classes"], read_processor())
        # Each its own file: to write over one that is mapped kills whoever runs it.
        path = Path(tempfile.mkdtemp(dir=tmp_path)) / f"{name}.so"
        path.write_bytes(changes.pop("data", toy_objects[name]))
        weights = changes.pop("weights", toy_weights)
        executor = CpuExecutor({**toy_program, **changes}, path, weights, threads)
        opened.append(executor)
        executor.allocate_cache(32)
        return executor

    yield make
    for executor in opened:
        executor.close()


def make_batch(tokens: int, **changes: Any) -> StepBatch:
    """One sequence of `tokens` tokens with ids 0, 1, 2, …; logits of the last and the first token."""
    blocks = -(-tokens // BLOCK_TOKENS)
    fields: dict[str, Any] = {
        "token_ids": np.arange(tokens) % VOCABULARY,
        "positions": np.arange(tokens),
        "sequences": np.zeros(tokens),
        "block_tables": np.arange(blocks)[None],
        "logit_rows": [tokens - 1, 0][:tokens],
    }
    return StepBatch(**{name: np.array(value, np.int32, order="C") for name, value in (fields | changes).items()})


def expected_logits(batch: StepBatch, bias: np.ndarray) -> np.ndarray:
    first = batch.token_ids[:, None].astype(np.float32) + bias[:16]
    return (first[::-1] * 2)[batch.logit_rows]


@pytest.fixture
def batch_of() -> Callable[..., StepBatch]:
    return make_batch


@pytest.fixture
def expect() -> Callable[[StepBatch, np.ndarray], np.ndarray]:
    return expected_logits


@pytest.fixture(scope="session")
def toy_ir() -> Callable[[CpuClass], str]:
    return toy_text
