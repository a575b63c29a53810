"""The reference target: groups as lists of plain operations, which the runtime interprets in NumPy.

It is slow, needs no particular processor, and says in the simplest terms what every other target must compute.
"""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import DYNAMIC, type_of
from tessera_compiler.module import CompiledTarget
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.targets.program import SCRATCH, TILES
from tessera_compiler.tile.lowering.context import SCALE
from tessera_compiler.tile.lowering.lower import LoweredProgram

_NOT_MEANING = ("module", "layer_output")


def compile_reference(
    description: dict[str, Any], groups: list[schedule.GroupOp], lowered: LoweredProgram
) -> CompiledTarget:
    program = dict(description)
    program["target"] = "reference"
    if "arena" in description:
        program["arena"] = {**description["arena"], "bytes": 0}
    program["launches"] = [
        {**launch, "args": [argument for argument in launch["args"] if _is_meant(argument)]}
        for launch in description.get("launches", ())
    ]
    described: dict[str, Any] = {}
    for group, name in zip(groups, lowered.names, strict=True):
        if name not in described:
            described[name] = _describe(group)
    program["groups"] = described
    return CompiledTarget("reference", program)


def _is_meant(argument: str) -> bool:
    """Scales of a cache come with its part, and nothing here is computed by tiles of tokens."""
    kind, _, which = argument.partition(":")
    return not (kind.startswith("cache_") and kind.endswith(SCALE)) and which != TILES and argument != SCRATCH


def _describe(group: schedule.GroupOp) -> dict[str, Any]:
    """`body` is a list of `{op, operands, attributes, shapes}`; values are numbered: inputs first, then
    results in order.

    In `shapes`, the dynamic first axis is null.
    """
    numbers: dict[SSAValue, int] = {argument: index for index, argument in enumerate(group.body.block.args)}
    body = []
    for op in group.body.block.ops:
        if isinstance(op, schedule.YieldOp):
            break
        assert isinstance(op, graph.GraphOp)
        attributes = {key: value for key, value in op.values.items() if key not in _NOT_MEANING}
        if isinstance(op, graph.ConstantOp):
            attributes["value"] = op.array.reshape(-1).tolist()
        body.append(
            {
                "op": op.name,
                "operands": [numbers[operand] for operand in op.operands],
                "attributes": attributes,
                "shapes": [[None if n == DYNAMIC else n for n in type_of(r).get_shape()] for r in op.results],
                "dtypes": [str(type_of(r).get_element_type()) for r in op.results],
            }
        )
        for result in op.results:
            numbers[result] = len(numbers)
    return {
        "inputs": len(group.body.block.args),
        "body": body,
        "outputs": [numbers[value] for value in group.yielded],
    }
