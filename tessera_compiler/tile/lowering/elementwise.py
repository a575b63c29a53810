"""Elementwise ops of Graph IR as tile ops; the same for row kernels and for the epilogues of linear maps."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import Operation, SSAValue

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.elementwise import BinaryOp, CompareOp, UnaryOp
from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.functions import COMPARE
from tessera_compiler.tile.types import element_name

_RENAMED = {"logical_and": "and", "logical_not": "not"}


def is_elementwise(op: Operation) -> bool:
    return isinstance(
        op,
        UnaryOp
        | BinaryOp
        | CompareOp
        | graph.SelectOp
        | graph.CastOp
        | graph.SoftcapOp
        | graph.GatedOp
        | schedule.RoundOp
        | schedule.CopyOp,
    )


def scalar(op: graph.ConstantOp) -> float:
    return float(op.array.reshape(-1)[0])


def emit_elementwise(builder: KernelBuilder, op: Operation, tiles: Sequence[SSAValue]) -> SSAValue:
    """The tile that `op` makes of the tiles of its operands."""
    name = op.name.split(".", 1)[1]
    name = _RENAMED.get(name, name)
    if isinstance(op, schedule.CopyOp):
        return tiles[0]
    if isinstance(op, schedule.RoundOp):
        return builder.cast(tiles[0], op.values.get("element", "bf16"))
    if isinstance(op, graph.CastOp):
        target = schedule_element(op)
        return _cast(builder, tiles[0], target)
    if isinstance(op, graph.SelectOp):
        return builder.select(*tiles)
    if isinstance(op, graph.SoftcapOp):
        cap = op.values["cap"]
        return builder.binary("mul", builder.unary("tanh", builder.binary("div", tiles[0], cap)), cap)
    if isinstance(op, graph.GatedOp):
        return builder.binary("mul", builder.unary(op.values["activation"], tiles[0]), tiles[1])
    if isinstance(op, UnaryOp):
        return builder.unary(name, tiles[0])
    if name in COMPARE:
        return builder.compare(name, *tiles)
    return builder.binary(name, *tiles)


def schedule_element(op: Operation) -> str:
    element = type_of(op.results[0]).get_element_type()
    return {"i1": "i1", "i32": "i32", "f32": "f32"}[str(element)]


def _cast(builder: KernelBuilder, tile: SSAValue, target: str) -> SSAValue:
    source = element_name(tile.type)
    if (source, target) == ("f32", "i32"):
        # Graph IR truncates towards zero, as NumPy and torch do; the tile cast wants whole numbers.
        magnitude = builder.unary("floor", builder.unary("abs", tile))
        negative = builder.compare("less", tile, builder.full(0.0))
        tile = builder.select(negative, builder.unary("neg", magnitude), magnitude)
    if (source, target) == ("f32", "i1"):
        return builder.compare("not_equal", tile, builder.full(0.0))
    if (source, target) == ("i1", "i32"):
        return builder.cast(builder.cast(tile, "f32"), "i32")
    return builder.cast(tile, target)
