"""Stacks of tiles as Triton's tensors of three axes: the first counts the tiles."""

from __future__ import annotations

from collections.abc import Callable

from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.stacks import stack_shape

STACK_OPERATIONS = (tile.EmptyStackOp, tile.LoadStackOp, tile.DotStackOp, tile.SumStackOp)
_AXES = ("[:, None, None]", "[None, :, None]", "[None, None, :]")


def _along(axis: int, extent: int) -> str:
    return f"tl.arange(0, {extent}){_AXES[axis]}"


def zeros(op: tile.EmptyStackOp) -> str:
    return f"tl.zeros({stack_shape(op.result.type)}, tl.float32)"


def pointers(op: tile.LoadStackOp, base: str, stride: int) -> str:
    """`stride` lies between rows of the buffer."""
    shape, axis = stack_shape(op.result.type), op.row_axis
    parts = f"{_along(0, shape[0])} * {op.part_step.value.data}"
    rows = f"{_along(axis, shape[axis])} * {stride}"
    return f"{base} + {parts} + {rows} + {_along(3 - axis, shape[3 - axis])}"


def mask(op: tile.LoadStackOp, count: str) -> str:
    """Which elements are of rows that there are."""
    axis = op.row_axis
    return f"{_along(axis, stack_shape(op.result.type)[axis])} < {count}"


def sum_in_order(op: tile.SumStackOp, stack: str, fresh: Callable[[str], str]) -> tuple[list[str], str]:
    """Lines that take a stack apart, and the sum of its tiles, from zero on and one after the other."""
    count, rows, columns = stack_shape(op.operand.type)
    halvings = count.bit_length() - 1
    last = fresh("stack")
    halved = (2,) * halvings + (rows, columns)
    order = (halvings, halvings + 1, *range(halvings))
    lines = [f"{last} = tl.permute(tl.reshape({stack}, {halved}), {order})"]
    # Of each name, the tiles that it holds: halved by their lowest bit first.
    held = {last: list(range(count))}
    for _ in range(halvings):
        halves: dict[str, list[int]] = {}
        for name, tiles in held.items():
            even, odd = fresh("stack"), fresh("stack")
            lines.append(f"{even}, {odd} = tl.split({name})")
            halves[even], halves[odd] = tiles[0::2], tiles[1::2]
        held = halves
    names = {tiles[0]: name for name, tiles in held.items()}
    return lines, " + ".join(["0.0", *(names[number] for number in range(count))])
