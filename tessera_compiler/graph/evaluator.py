"""Runs a Graph IR module on NumPy: the meaning of a whole program, against which lowerings are tested."""

from __future__ import annotations

from collections.abc import Callable

from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import SSAValue

from tessera_compiler.errors import InvalidGraph
from tessera_compiler.graph.base import Array, GraphOp
from tessera_compiler.graph.dialect import WeightOp

ENTRY = "decode_graph"


def entry_function(module: ModuleOp) -> FuncOp:
    """The one function of a module, `@decode_graph`; raises InvalidGraph if the module holds anything else."""
    functions = list(module.body.block.ops)
    if len(functions) != 1 or not isinstance(functions[0], FuncOp) or functions[0].sym_name.data != ENTRY:
        raise InvalidGraph(
            f"a Graph IR module holds the function @{ENTRY} and nothing else; found {len(functions)} ops."
        )
    return functions[0]


def evaluate_module(
    module: ModuleOp,
    weights: Callable[[str], Array],
    token_ids: Array,
    positions: Array,
    logit_rows: Array,
    observe: Callable[[GraphOp, tuple[Array, ...]], None] | None = None,
) -> Array:
    """The logits [L, V] of one sequence whose positions are 0..T-1.

    `weights` gives the tensor of the checkpoint by its name; `observe` is called with each op and its results.
    """
    block = entry_function(module).body.block
    values: dict[SSAValue, Array] = dict(zip(block.args, (token_ids, positions, logit_rows), strict=True))
    remaining = {value: len(list(value.uses)) for op in block.ops for value in op.results}
    for op in block.ops:
        if isinstance(op, ReturnOp):
            return values[op.arguments[0]]
        if not isinstance(op, GraphOp):
            raise InvalidGraph(f"a Graph IR function holds ops of the dialect graph only; found {op.name}.")
        if isinstance(op, WeightOp):
            results = op.evaluate(*(weights(source.data) for source in op.sources))
        else:
            results = op.evaluate(*(values[operand] for operand in op.operands))
        values.update(zip(op.results, results, strict=True))
        if observe is not None:
            observe(op, results)
        # Real models do not fit in memory if every value is kept to the end.
        for operand in op.operands:
            if operand in remaining:
                remaining[operand] -= 1
                if remaining[operand] == 0:
                    del values[operand]
    raise InvalidGraph(f"@{ENTRY} must end in func.return.")
