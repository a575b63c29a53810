"""Programs that consist of one kernel, launched again and again: what a runner executes to time a candidate.

They are programs like any other (docs/spec/program.md), made by the same lowering and driven by the same step, so a
kernel is timed as it runs in a step: on all threads, behind barriers. Every launch reads weights of its own, so that
they come from memory as those of a model do; what a step would have computed before is a weight here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import ArrayAttr, DictionaryAttr, IntegerAttr, MemRefType, i64
from xdsl.ir import BlockArgument, SSAValue

from tessera_compiler.autotune.subjects import Subject, weight_bytes
from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import type_of
from tessera_compiler.module import CompiledTarget
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.passes.plan_tiles import Blocking
from tessera_compiler.schedule.physical import BLOCK_TOKENS, LINE, is_input
from tessera_compiler.schedule.views import row_shape
from tessera_compiler.targets.cpu.target import compile_cpu
from tessera_compiler.targets.program import ABI, INPUTS, describe_cache
from tessera_compiler.tile.lowering.lower import LoweredProgram, lower_groups
from tessera_compiler.tile.types import BYTES, element_name

MAX_TOKENS = 512
COLD_BYTES = 96 << 20
"""More than the caches of a processor hold that cores share."""
MOST_COPIES, FEWEST_COPIES = 128, 3

_AS_WEIGHT = {1: "u8", 2: "bf16", 4: "f32"}
"""How values that are no weights in a model are described here, by the size of an element."""


@dataclass(frozen=True)
class Operand:
    """An array that launches read. `dtype`, `shape` and `layout` are those of program.json, `holds` what is in it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str
    holds: str

    def description(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "layout": self.layout}


@dataclass(frozen=True)
class Trial:
    """One candidate: a program of `launches` launches, each with weights of its own."""

    target: CompiledTarget
    launches: int


class Bench(Protocol):
    """Operands in memory, and a way to run trials on them."""

    def seconds(self, trial: Trial, tokens: int, launches: int, steps: int) -> NDArray[np.float64]:
        """How long each of the first `launches` - 1 launches took, [steps, launches - 1]."""
        ...

    def output(self, trial: Trial, tokens: int) -> bytes:
        """What the first launch computes."""
        ...


Runner = Callable[[tuple[Operand, ...]], Bench]
"""Makes a bench whose operands hold numbers: whole ones where the element is `i32`, any otherwise. Operands whose
names differ only in what follows the last dot hold the same.
"""


@dataclass(frozen=True)
class TrialMaker:
    """Makes trials of one subject on one CPU class."""

    subject: Subject
    cpu_class: str

    @property
    def launches(self) -> int:
        """Launches of a step: enough that their weights do not stay in a cache."""
        copies = -(-COLD_BYTES // max(1, weight_bytes(self.subject)))
        return min(MOST_COPIES, max(FEWEST_COPIES, copies))

    @property
    def copies(self) -> int:
        """Different weights; a matrix that no cache holds needs no second one."""
        return 1 if weight_bytes(self.subject) >= COLD_BYTES else self.launches

    def operands(self) -> tuple[Operand, ...]:
        found = []
        lowered = lower_groups([self.subject.group], ())
        for index, value in enumerate(self.subject.group.inputs):
            operand = self._operand(value, index, lowered.arguments[0].buffers[index])
            if isinstance(value.owner, schedule.WeightOp):
                found += [replace(operand, name=f"{index}.{copy}") for copy in range(self.copies)]
            elif not is_input(type_of(value)):
                found.append(operand)
        return tuple(found)

    def trial(self, blocking: Blocking) -> Trial:
        """The group with this blocking, for any number of rows."""
        group = self.subject.group
        planned = group.tiles
        try:
            group.tiles = DictionaryAttr({self.cpu_class: _as_attribute(blocking)})
            lowered = lower_groups([group], (self.cpu_class,))
        finally:
            group.tiles = planned
        repeated = replace(lowered, names=lowered.names * self.launches, arguments=lowered.arguments * self.launches)
        return Trial(compile_cpu(self._description(lowered), repeated, (self.cpu_class,)), self.launches)

    def _description(self, lowered: LoweredProgram) -> dict[str, Any]:
        operands = self.operands()
        numbers = {operand.name: number for number, operand in enumerate(operands)}
        group = self.subject.group
        cache = describe_cache(lowered.cache)
        buffers, offset = [], 0
        for index in range(len(group.results_)):
            buffer = lowered.arguments[0].buffers[lowered.arguments[0].result_parameter(index)]
            assert isinstance(buffer, MemRefType)
            width, element = math.prod(row_shape(type_of(group.results_[index]).get_shape())), element_name(buffer)
            size = buffer.get_shape()[-1] * BYTES[element]
            place = {"tokens": offset, "logit_rows": 0, "bytes": 0}
            buffers.append(
                {"name": f"b{index}", "dtype": element, "shape": [width], "row_bytes": size, "rows": "T"}
                | {"offset": place}
            )
            offset += size
        launches = []
        for launch in range(self.launches):
            args = []
            for index, value in enumerate(group.inputs):
                if is_input(type_of(value)):
                    assert isinstance(value, BlockArgument)
                    args.append(f"input:{INPUTS[value.index]}")
                    continue
                is_weight = isinstance(value.owner, schedule.WeightOp)
                name = f"{index}.{launch % self.copies}" if is_weight else f"{index}."
                args.append(f"weight:{numbers[name]}")
            args += [f"cache_{part}:{cache}" for part, cache in lowered.arguments[0].caches]
            args += [f"buffer:{index}" for index in range(len(buffers))]
            launches.append(
                {"group": lowered.names[0], "args": args, "barrier": True, "layer": "", "reads_cache": []}
                | {"writes_cache": []}
            )
        return {
            "abi": ABI,
            "limits": {"max_tokens": MAX_TOKENS, "max_model_len": BLOCK_TOKENS, "vocab_size": 1},
            "weights": [operand.description() for operand in operands],
            "buffers": buffers,
            "arena": {"bytes_per_token": offset, "bytes_per_logit_row": 0, "bytes": 0},
            "cache": {**cache, "bytes_per_block": cache["bytes_per_block"] or LINE},
            "launches": launches,
            "layers": [],
            "output": 0,
        }

    @staticmethod
    def _operand(value: SSAValue, index: int, buffer: MemRefType[Any]) -> Operand:
        owner = value.owner
        if isinstance(owner, schedule.WeightOp):
            type_ = type_of(value)
            element = schedule.element_name(type_)
            return Operand(f"{index}.0", element, type_.get_shape(), owner.layout.data, element)
        if isinstance(owner, graph.ConstantOp):
            return Operand(f"{index}.", "f32", type_of(value).get_shape(), "rows", "f32")
        element = element_name(buffer)
        shape = (MAX_TOKENS, buffer.get_shape()[-1])
        return Operand(f"{index}.", _AS_WEIGHT[BYTES[element]], shape, "rows", element)


def _as_attribute(blocking: Blocking) -> ArrayAttr[Any]:
    return ArrayAttr([ArrayAttr([IntegerAttr(number, i64) for number in astuple(blocking)])])
