"""Runs a program in NumPy, at any stage of its planning: the meaning of Schedule IR.

Lowerings are tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import ReturnOp
from xdsl.ir import Operation, SSAValue

from tessera_compiler.errors import InvalidGraph
from tessera_compiler.graph.base import Array, GraphOp
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.physical import BLOCK_TOKENS
from tessera_compiler.tile.types import round_to_bfloat16


@dataclass
class Cache:
    """A KV cache as plain arrays: (cache, part) → [block, position in block, heads, width]."""

    blocks: int
    parts: dict[tuple[int, str], Array] = field(default_factory=dict)

    def write(self, op: schedule.CacheWriteOp, x: Array, positions: Array, sequences: Array, tables: Array) -> None:
        key = (op.cache.value.data, op.part.data)
        if key not in self.parts:
            self.parts[key] = np.zeros((self.blocks, BLOCK_TOKENS, *x.shape[1:]), np.float32)
        stored = _stored(x, op.element.data)
        blocks = tables[sequences, positions // BLOCK_TOKENS]
        self.parts[key][blocks, positions % BLOCK_TOKENS] = stored

    def context(self, cache: int, part: str, position: int, table: Array) -> Array:
        """The entries of positions 0..position of one sequence."""
        places = np.arange(position + 1)
        return self.parts[cache, part][table[places // BLOCK_TOKENS], places % BLOCK_TOKENS]


def _stored(x: Array, element: str) -> Array:
    """What a cache of this element gives back of heads [..., width]."""
    if element == "i8":
        largest = np.abs(x).max(axis=-1, keepdims=True)
        with np.errstate(divide="ignore"):
            inverse = np.where(largest != 0, np.float32(127) / largest, np.float32(0))
        return np.asarray(np.rint(x * inverse) * (largest * np.float32(1 / 127)))
    if element == "f16":
        return x.astype(np.float16).astype(np.float32)
    return round_to_bfloat16(x) if element == "bf16" else x


def attend(
    op: schedule.AttendOp, cache: Cache, query: Array, positions: Array, sequences: Array, tables: Array
) -> Array:
    """As docs/spec/program.md says of attention, but that the largest score is known before weights are rounded, and
    that weights of values of bytes are not."""
    values = op.values
    _, heads, _ = query.shape
    softcap, log2_e = np.float32(values["softcap"]), np.float32(np.log2(np.e))
    rounded = round_to_bfloat16 if values["element"] == "bf16" else np.float32
    query = _stored(query * np.float32(values["scale"] * (1.0 if softcap else np.log2(np.e))), values["element"])
    shared = heads // values["key_heads"]
    result = np.empty((len(query), heads, values["value_dim"]), np.float32)
    for row, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        table = tables[sequence]
        first = max(0, position - values["window"] + 1) if values["window"] else 0
        keys = cache.context(values["cache"], "key", position, table)[first:]
        contents = cache.context(values["cache"], "value", position, table)[first:]
        for head in range(heads):
            scores = keys[:, head // shared] @ query[row, head]
            if softcap:
                scores = softcap * log2_e * np.tanh(scores / softcap)
            weights = rounded(np.exp2(scores - scores.max()))
            result[row, head] = (weights @ contents[:, head // shared]) / weights.sum()
    return result


Observer = Callable[[int, schedule.GroupOp, list[Array]], None]


def evaluate_program(
    module: ModuleOp,
    weights: Callable[[schedule.WeightOp], Array],
    inputs: Mapping[str, Array],
    cache: Cache,
    observe: Observer | None = None,
) -> Array:
    """The logits of one step; `inputs` by the names of docs/spec/program.md. `observe` is called after each group.

    A program may be one that is not cut into groups yet.
    """
    block = entry_function(module).body.block
    names = ("token_ids", "positions", "logit_rows", "sequences", "block_tables")
    values: dict[SSAValue, Array] = dict(zip(block.args, (inputs[name] for name in names), strict=True))
    count = 0
    for op in block.ops:
        if isinstance(op, ReturnOp):
            return values[op.arguments[0]]
        if isinstance(op, schedule.WeightOp):
            values[op.result] = weights(op)
        elif isinstance(op, schedule.GroupOp):
            results = evaluate_group(op, [values[v] for v in op.inputs], cache)
            values.update(zip(op.results_, results, strict=True))
            if observe is not None:
                observe(count, op, results)
            count += 1
        else:
            _evaluate(op, values, cache)
    raise InvalidGraph("a program of Schedule IR ends in func.return.")


def evaluate_group(group: schedule.GroupOp, inputs: list[Array], cache: Cache) -> list[Array]:
    values: dict[SSAValue, Array] = dict(zip(group.body.block.args, inputs, strict=True))
    for op in group.body.block.ops:
        if isinstance(op, schedule.YieldOp):
            return [values[value] for value in op.values]
        _evaluate(op, values, cache)
    raise InvalidGraph("the body of a group ends in schedule.yield.")


def _evaluate(op: Operation, values: dict[SSAValue, Array], cache: Cache) -> None:
    operands = [values[operand] for operand in op.operands]
    if isinstance(op, schedule.CacheWriteOp):
        cache.write(op, *operands)
    elif isinstance(op, schedule.AttendOp):
        values[op.result] = attend(op, cache, *operands)
    elif isinstance(op, GraphOp):
        values.update(zip(op.results, op.evaluate(*operands), strict=True))
    else:
        raise InvalidGraph(f"a program of Schedule IR holds weights, groups and ops of groups; found {op.name}.")
