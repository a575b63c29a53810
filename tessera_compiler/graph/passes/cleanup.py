"""Passes that remove what is not needed twice, or not at all."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Attribute, SSAValue

from tessera_compiler.graph.passes.rewriting import drop_unused, graph_ops


@dataclass(frozen=True)
class EliminateDeadCode:
    """`x = op(…)` with no use of `x` --> nothing."""

    def apply(self, module: ModuleOp) -> None:
        drop_unused(module)


@dataclass(frozen=True)
class EliminateCommonSubexpressions:
    """`x = op(a); y = op(a)` --> `x = op(a)`, with `x` in place of `y`. The module path of the first stays."""

    def apply(self, module: ModuleOp) -> None:
        seen: dict[tuple[object, ...], tuple[SSAValue, ...]] = {}
        for op in graph_ops(module):
            attributes: list[tuple[str, Attribute]] = sorted(
                ((key, value) for key, value in op.attributes.items() if key != "module"), key=lambda item: item[0]
            )
            key = (op.name, tuple(op.operands), tuple(attributes), tuple(result.type for result in op.results))
            first = seen.setdefault(key, tuple(op.results))
            if first != tuple(op.results):
                for old, new in zip(op.results, first, strict=True):
                    old.replace_all_uses_with(new)
        drop_unused(module)
