"""The machinery of rewrite rules: a rule looks at one op and may answer with the value that replaces its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, SSAValue

from tessera_compiler.graph.base import Array, GraphOp
from tessera_compiler.graph.dialect import ConstantOp, WeightOp
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.types import Tensor, rows_of, type_of

# More sweeps than any chain of rules needs; a rule that never settles is a defect and must not hang the compiler.
_MAX_SWEEPS = 64


class Pass(Protocol):
    """A pass: a frozen dataclass whose fields are its options and whose docstring is its rule.

    It takes a valid module and leaves a valid one that computes the same.
    """

    def apply(self, module: ModuleOp) -> None: ...


class Site:
    """Where a rule may add ops: right before the op that it looks at."""

    def __init__(self, op: GraphOp) -> None:
        self.op = op

    def make(
        self, operation: type[GraphOp], *operands: SSAValue | None, result: Tensor | None = None, **values: Any
    ) -> SSAValue:
        """Adds an op with one result and returns the result; the op keeps the module path of the op it stands for."""
        module = self.op.module
        new = operation.make(*operands, result=result, module=None if module is None else module.data, **values)
        self.add(new)
        return new.results[0]

    def constant(self, array: Any) -> SSAValue:
        """Adds a constant."""
        return self.add(ConstantOp.of(array)).results[0]

    def add(self, new: GraphOp) -> GraphOp:
        """Adds an op that was made elsewhere."""
        block = self.op.parent
        assert block is not None
        block.insert_op_before(new, self.op)
        return new


Rule: TypeAlias = Callable[[Any, Site], "SSAValue | None"]
"""Takes an op and the site before it; returns the value to use instead of its result, or None to leave it."""


def body(module: ModuleOp) -> Block:
    """The block of the module's one function."""
    return entry_function(module).body.block


def graph_ops(module: ModuleOp) -> list[GraphOp]:
    """The ops of the function, without its return."""
    return [op for op in body(module).ops if isinstance(op, GraphOp)]


def rewrite(module: ModuleOp, rules: Sequence[tuple[type[GraphOp], Rule]]) -> None:
    """Applies rules to every op of their type, front to back, until none applies; drops what becomes unused."""
    for _ in range(_MAX_SWEEPS):
        changed = False
        for op in graph_ops(module):
            if op.parent is None or not any(True for result in op.results for _ in result.uses):
                continue
            for operation, rule in rules:
                if isinstance(op, operation):
                    value = rule(op, Site(op))
                    if value is not None:
                        op.results[0].replace_all_uses_with(value)
                        changed = True
                        break
        drop_unused(module)
        if not changed:
            return
    raise RuntimeError(f"rewrite rules did not settle in {_MAX_SWEEPS} sweeps")


def drop_unused(module: ModuleOp) -> None:
    """Erases every op whose results nothing uses."""
    for op in reversed(graph_ops(module)):
        if not any(True for result in op.results for _ in result.uses):
            erase(op)


def erase(op: GraphOp) -> None:
    """Removes an op that nothing uses."""
    block = op.parent
    assert block is not None
    block.erase_op(op)


# -- looking at values ---------------------------------------------------------------------------------------------


def made_by(value: SSAValue, operation: type[GraphOp]) -> Any:
    """The op that makes this value, if it is of that type, else None."""
    return value.owner if isinstance(value.owner, operation) else None


def constant_of(value: SSAValue) -> Array | None:
    """The array of a constant, else None."""
    return value.owner.array if isinstance(value.owner, ConstantOp) else None


def scalar_of(value: SSAValue) -> float | None:
    """The number that a constant of size 1 holds, else None: the shortest decimal that rounds to it, such as 1e-06."""
    array = constant_of(value)
    return float(str(array.reshape(-1)[0])) if array is not None and array.size == 1 else None


def is_static(value: SSAValue) -> bool:
    """True if the value has no rows, so that it is the same in every step."""
    return rows_of(type_of(value)) is None


def is_weight(value: SSAValue) -> bool:
    """True if the value is a tensor of the checkpoint."""
    return isinstance(value.owner, WeightOp)


def close(a: float, b: float) -> bool:
    """True if two numbers are the same up to float32 rounding."""
    return bool(np.isclose(a, b, rtol=1e-6, atol=0.0))


def either_way(op: GraphOp) -> tuple[tuple[SSAValue, SSAValue], tuple[SSAValue, SSAValue]]:
    """The two operands of a commutative op, in both orders."""
    a, b = op.operands
    return (a, b), (b, a)
