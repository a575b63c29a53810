"""Small modules, written op by op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Block, Region, SSAValue

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.evaluator import ENTRY, evaluate_module
from tessera_compiler.graph.types import DYNAMIC, I32, LOGIT_ROWS, TOKENS, Tensor, tensor

IDS = 11


class Sketch:
    """Collects ops; `module` closes the function."""

    def __init__(self) -> None:
        inputs = [tensor([DYNAMIC], I32, rows) for rows in (TOKENS, TOKENS, LOGIT_ROWS)]
        self.block = Block(arg_types=inputs)
        self.token_ids, self.positions, self.logit_rows = self.block.args

    def make(
        self, kind: type[graph.GraphOp], *operands: SSAValue | None, module: str | None = None, **values: Any
    ) -> SSAValue:
        result: Tensor | None = values.pop("result", None)
        op = kind.make(*operands, result=result, module=module, **values)
        self.block.add_op(op)
        return op.results[0]

    def weight(self, name: str, *shape: int) -> SSAValue:
        return self.make(graph.WeightOp, result=tensor(shape), name=name, sources=(name,))

    def constant(self, array: Any) -> SSAValue:
        op = graph.ConstantOp.of(array)
        self.block.add_op(op)
        return op.result

    def hidden(self, name: str, width: int) -> SSAValue:
        """Some rows [T, width]."""
        return self.make(graph.EmbeddingOp, self.weight(name, IDS, width), self.token_ids, offset=0)

    def reshape(self, x: SSAValue, *shape: int) -> SSAValue:
        return self.make(graph.ReshapeOp, x, result=tensor([DYNAMIC, *shape], rows=TOKENS))

    def slice(self, x: SSAValue, axis: int, start: int, size: int, step: int = 1) -> SSAValue:
        return self.make(graph.SliceOp, x, axis=axis, start=start, size=size, step=step)

    def module(self, result: SSAValue) -> ModuleOp:
        """The module that returns `result`, a value with rows `T` or `L`."""
        self.block.add_op(ReturnOp(result))
        types = [argument.type for argument in self.block.args]
        function = FuncOp(ENTRY, (types, [result.type]), Region(self.block))
        module = ModuleOp([function], sym_name=StringAttr("main"))
        module.verify()
        return module


def run(module: ModuleOp, tokens: int = 5) -> np.ndarray[Any, Any]:
    """What a module computes with weights that depend on their names alone, for a sequence of random tokens."""
    shapes = {
        name.data: _source_shape(op) for op in module.walk() if isinstance(op, graph.WeightOp) for name in op.sources
    }

    def weight(name: str) -> np.ndarray[Any, Any]:
        seed = int.from_bytes(name.encode(), "little") % (1 << 32)
        return np.random.default_rng(seed).normal(size=shapes[name]).astype(np.float32)

    ids = np.random.default_rng(1).integers(0, IDS - 1, tokens).astype(np.int32)
    return evaluate_module(
        module, weight, ids, np.arange(tokens, dtype=np.int32), np.asarray([0, tokens - 1], dtype=np.int32)
    )


def _source_shape(op: graph.WeightOp) -> Sequence[int]:
    shape = list(op.result.type.get_shape())
    shape[0] //= len(op.sources)
    return shape[::-1] if op.transposed is not None else shape
