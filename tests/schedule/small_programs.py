"""Small programs for the passes of Schedule IR: written as text, or at random."""

from __future__ import annotations

from typing import Any

import numpy as np
from decode_function import decode_function
from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Block, Region, SSAValue

from tessera_compiler.driver import parse_ir
from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.evaluator import ENTRY, entry_function
from tessera_compiler.graph.passes.cleanup import EliminateDeadCode
from tessera_compiler.graph.types import DYNAMIC, I32, LOGIT_ROWS, TOKENS, tensor, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.evaluator import Cache
from tessera_pack.quantize_groups import quantize_groups

Array = NDArray[Any]
IDS = 11


def program(body: str, result: str, type_: str) -> ModuleOp:
    """A module whose function has these ops and gives `result`; `%ids`, `%positions` and `%rows` are its inputs."""
    return parse_ir(decode_function(body, result, type_))


class RandomProgram:
    """A program of ops chosen at random, over few widths so that they combine; every value stays small."""

    def __init__(self, seed: int, size: int = 24) -> None:
        self.random = np.random.default_rng(seed)
        self.block = Block(arg_types=[tensor([DYNAMIC], I32, rows) for rows in (TOKENS, TOKENS, LOGIT_ROWS)])
        self.weights: dict[str, Array] = {}
        self.layers = 0
        ids, _, rows = self.block.args
        self.values: list[SSAValue] = [self._make(graph.EmbeddingOp, self._weight(IDS, 8), ids, offset=0)]
        for _ in range(size):
            self.values.append(self._random_op())
        last = self._flat(self.values[-1])
        wanted = self._make(graph.SelectRowsOp, last, rows)
        logits = self._make(graph.LinearOp, wanted, self._weight(IDS, type_of(wanted).get_shape()[1]))
        self.block.add_op(ReturnOp(logits))
        types = [argument.type for argument in self.block.args]
        function = FuncOp(ENTRY, (types, [logits.type]), Region(self.block))
        self.module = ModuleOp([function], sym_name=StringAttr("main"))
        EliminateDeadCode().apply(self.module)
        self.module.verify()

    def _make(self, kind: type[graph.GraphOp], *operands: SSAValue, **values: Any) -> SSAValue:
        op = kind.make(*operands, **values)
        self.block.add_op(op)
        return op.results[0]

    def _weight(self, *shape: int) -> SSAValue:
        name = f"w{len(self.weights)}"
        self.weights[name] = (self.random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        return self._make(graph.WeightOp, result=tensor(shape), name=name, sources=(name,))

    def _pick(self, shape: tuple[int, ...] | None = None) -> SSAValue:
        fitting = [v for v in self.values if shape is None or type_of(v).get_shape() == shape]
        return fitting[int(self.random.integers(len(fitting)))]

    def _flat(self, x: SSAValue) -> SSAValue:
        shape = type_of(x).get_shape()
        if len(shape) == 2:
            return x
        return self._make(graph.ReshapeOp, x, result=tensor([DYNAMIC, int(np.prod(shape[1:]))], rows=TOKENS))

    def _heads(self, x: SSAValue, count: int) -> SSAValue:
        width = type_of(self._flat(x)).get_shape()[1]
        return self._make(graph.ReshapeOp, x, result=tensor([DYNAMIC, count, width // count], rows=TOKENS))

    def _random_op(self) -> SSAValue:
        x = self._pick()
        shape = type_of(x).get_shape()
        width = shape[-1]
        kind = self.random.choice(
            [
                "add",
                "add",
                "mul",
                "tanh",
                "norm",
                "bias",
                "linear",
                "linear",
                "heads",
                "slice",
                "sum",
                "concat",
                "turn",
                "attention",
            ]
        )
        if kind in ("add", "mul"):
            return self._make(
                graph.AddOp if kind == "add" else graph.MulOp, self._make(graph.TanhOp, x), self._pick(shape)
            )
        if kind == "norm":
            return self._make(graph.RmsNormOp, x, self._weight(width), eps=1e-3, weight_offset=0.0)
        if kind == "bias":
            return self._make(graph.AddOp, x, self._weight(width))
        if kind == "linear":
            flat = self._flat(x)
            outputs = int(self.random.choice([6, 8, 12]))
            return self._make(graph.LinearOp, flat, self._weight(outputs, type_of(flat).get_shape()[1]))
        if kind == "heads" and np.prod(shape[1:]) % 2 == 0:
            return self._heads(x, 2)
        if kind == "slice" and width > 2:
            step = int(self.random.integers(1, 3))
            size = (width - 1) // step
            return self._make(graph.SliceOp, x, axis=len(shape) - 1, start=1, size=size, step=step)
        if kind == "sum":
            return self._make(graph.AddOp, x, self._make(graph.ReduceSumOp, x))
        if kind == "concat":
            return self._make(graph.ConcatOp, x, self._make(graph.NegOp, x), axis=len(shape) - 1)
        if kind == "turn" and len(shape) == 3:
            return self._make(graph.TransposeOp, x, permutation=(0, 2, 1))
        if kind == "attention" and np.prod(shape[1:]) % 4 == 0 and self.layers < 2:
            self.layers += 1
            query, key = self._heads(x, 2), self._heads(self._make(graph.TanhOp, x), 1)
            key = self._make(graph.SliceOp, key, axis=2, start=0, size=type_of(query).get_shape()[2], step=1)
            options = {"layer": self.layers - 1, "scale": 0.5, "window": 3 * (self.layers - 1), "softcap": 0.0}
            return self._make(graph.AttentionOp, query, key, self._make(graph.NegOp, key), **options)
        return self._make(graph.TanhOp, x)


def weight_values(op: schedule.WeightOp, weights: dict[str, Array]) -> Array:
    """What a weight of Schedule IR holds, logically, given the checkpoint's tensors."""
    parts = [weights[source.data] for source in op.sources]
    whole = np.concatenate([part.T if op.transposed is not None else part for part in parts])
    element = schedule.element_name(type_of(op.result))
    if element == "bf16":
        return schedule.round_to_bfloat16(whole)
    if op.group is not None:
        numbers, parameters = quantize_groups(whole, op.group.value.data, op.weight_name.data)
        if op.scales_of is None:
            return numbers
        return parameters.factors if op.part is None else getattr(parameters, op.part.data)
    if op.scales_of is not None or element == "u8":
        scale = (np.abs(whole).max(axis=1) / np.float32(127)).astype(np.float32)
        if op.scales_of is not None:
            return scale
        return (np.rint(whole / np.where(scale > 0, scale, 1)[:, None]) + 128).astype(np.uint8)
    return whole


def step_inputs(tokens: int, ids: int = IDS, seed: int = 0) -> dict[str, Array]:
    """One sequence from its start, in shuffled blocks, with the logits of three rows."""
    random = np.random.default_rng(seed)
    return {
        "token_ids": random.integers(0, ids, tokens).astype(np.int32),
        "positions": np.arange(tokens, dtype=np.int32),
        "logit_rows": np.array([0, tokens // 2, tokens - 1], np.int32),
        "sequences": np.zeros(tokens, np.int32),
        "block_tables": np.array([[3, 0, 2]], np.int32),
    }


def fresh_cache() -> Cache:
    return Cache(4)


def groups_of(module: ModuleOp) -> list[schedule.GroupOp]:
    return [op for op in entry_function(module).body.block.ops if isinstance(op, schedule.GroupOp)]


def body_of(group: schedule.GroupOp) -> list[str]:
    """The ops of a group, by their short names."""
    ops = [op for op in group.body.block.ops if not isinstance(op, schedule.YieldOp)]
    return [op.name.split(".")[1] for op in ops]
