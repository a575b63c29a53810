"""Buffers that a kernel's device may copy boxes of, by descriptors that the host makes."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects.builtin import MemRefType
from xdsl.ir import SSAValue

from tessera_compiler.targets.triton.functions import POINTERS
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.types import element_name, shape_of


@dataclass(frozen=True)
class Tensor:
    """What a parameter that is a descriptor describes."""

    element: str
    shape: tuple[int | str, int]
    """A buffer that has a row for each of a step's has their symbol."""
    box: tuple[int, int]

    @property
    def kind(self) -> str:
        """As a signature spells it."""
        rows, columns = self.box
        return f"tensordesc<{POINTERS[self.element][1:]}[{rows},{columns}]>"


def tensors_of(kernel: tile.KernelOp) -> dict[SSAValue, Tensor]:
    """The buffers of which a kernel loads boxes of one shape and does nothing else with them, in order."""
    found: dict[SSAValue, Tensor] = {}
    for buffer in kernel.buffers:
        users = [use.operation for use in buffer.uses]
        shapes = {shape_of(op.result.type) for op in users if isinstance(op, tile.LoadBlockOp) and op.box is not None}
        if len(shapes) == 1 and all(isinstance(op, tile.LoadBlockOp) and op.box is not None for op in users):
            (box,) = shapes
            if all(extent & (extent - 1) == 0 for extent in box):
                found[buffer] = Tensor(element_name(buffer.type), _shape(buffer, kernel), box)
    return found


def _shape(buffer: SSAValue, kernel: tile.KernelOp) -> tuple[int | str, int]:
    assert isinstance(buffer.type, MemRefType)
    rows, columns = buffer.type.get_shape()
    # What a product has a row for, its grid counts first.
    return (rows if rows >= 0 else str(kernel.grid_entries[0])[0]), columns
