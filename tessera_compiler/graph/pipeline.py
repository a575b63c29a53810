"""The passes of Graph IR, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.graph.passes.activations import RecogniseActivations, RecogniseGated
from tessera_compiler.graph.passes.cleanup import EliminateCommonSubexpressions, EliminateDeadCode
from tessera_compiler.graph.passes.folding import FoldConstants, FoldIntoLeaves, FoldScalars
from tessera_compiler.graph.passes.linears import MergeLinears, SelectRowsEarly
from tessera_compiler.graph.passes.norms import RecogniseNorms
from tessera_compiler.graph.passes.rewriting import Pass
from tessera_compiler.graph.passes.rotary import RecogniseRotary
from tessera_compiler.graph.passes.shapes import SimplifyShapes

PASSES: tuple[Pass, ...] = (
    # What was imported, in normal form: the rules below look for one spelling only.
    EliminateDeadCode(),
    FoldConstants(),
    FoldScalars(),
    FoldConstants(),
    FoldIntoLeaves(),
    SimplifyShapes(),
    EliminateCommonSubexpressions(),
    # What the model meant.
    RecogniseActivations(),
    RecogniseNorms(),
    RecogniseRotary(),
    RecogniseGated(),
    # How it is best computed.
    SelectRowsEarly(),
    MergeLinears(),
    SimplifyShapes(),
    EliminateCommonSubexpressions(),
)

Dump = Callable[[int, Pass, ModuleOp], None]


def run_passes(module: ModuleOp, passes: Sequence[Pass], dump: Dump | None = None) -> None:
    """Applies passes in order, verifying the module after each; `dump` is called with each pass's number and result."""
    for number, each in enumerate(passes):
        each.apply(module)
        module.verify()
        if dump is not None:
            dump(number, each, module)


def simplify(module: ModuleOp, dump: Dump | None = None) -> None:
    """Applies all passes of Graph IR."""
    run_passes(module, PASSES, dump)
