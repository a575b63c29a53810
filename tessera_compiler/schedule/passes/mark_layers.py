"""Notes which values are the outputs of the model's layers, so that numerics can be compared layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.ir import Operation

from tessera_compiler.graph.evaluator import entry_function


@dataclass(frozen=True)
class MarkLayers:
    """op --> op {layer_output = path}, for the last op of each of the modules `paths` whose result others use."""

    paths: tuple[str, ...]

    def apply(self, module: ModuleOp) -> None:
        last: dict[str, Operation] = {}
        for op in entry_function(module).body.block.ops:
            path = self._layer(op)
            if path is not None and any(
                self._layer(use.operation) != path for result in op.results for use in result.uses
            ):
                last[path] = op
        for path, op in last.items():
            op.attributes["layer_output"] = StringAttr(path)

    def _layer(self, op: Operation) -> str | None:
        mark = op.attributes.get("module")
        if not isinstance(mark, StringAttr):
            return None
        return next((path for path in self.paths if mark.data == path or mark.data.startswith(f"{path}.")), None)
