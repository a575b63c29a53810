"""The op of Tile IR that lets one kernel do several things, each in some of its instances."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import ArrayAttr, IndexType, IntegerAttr
from xdsl.ir import Block, Region, SSAValue
from xdsl.irdl import IRDLOperation, attr_def, irdl_op_definition, operand_def, var_region_def
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.tile.base import integer
from tessera_compiler.tile.control import KernelOp, ProgramIdOp, YieldOp


@irdl_op_definition
class PartsOp(IRDLOperation):
    """Several bodies, of which each instance runs one: the first `counts[0]` along the axis of the grid whose place is
    `at` run the first, the next `counts[1]` the second, and so on to the last. Only kernels for devices have it."""

    name = "tile.parts"
    at = operand_def(IndexType)
    counts = attr_def(ArrayAttr)
    bodies = var_region_def("single_block")

    def __init__(self, at: SSAValue, counts: Sequence[int], bodies: Sequence[Region | Block]):
        super().__init__(
            operands=[at],
            attributes={"counts": ArrayAttr([integer(count) for count in counts])},
            regions=[[body if isinstance(body, Region) else Region(body) for body in bodies]],
        )

    @property
    def ends(self) -> list[int]:
        """For each body, the first place after those whose instances run it."""
        ends: list[int] = []
        for count in self.counts.data:
            assert isinstance(count, IntegerAttr)
            ends.append((ends[-1] if ends else 0) + int(count.value.data))
        return ends

    def body_of(self, place: int) -> Block:
        return next(body.block for body, end in zip(self.bodies, self.ends, strict=True) if place < end)

    def verify_(self) -> None:
        if not all(isinstance(count, IntegerAttr) and count.value.data > 0 for count in self.counts.data):
            raise VerifyException("each part is run by at least one instance")
        if len(self.bodies) != len(self.counts.data) or not self.bodies:
            raise VerifyException(f"{len(self.bodies)} bodies do not match {len(self.counts.data)} counts")
        kernel, place = self.parent_op(), self.at.owner
        if not isinstance(kernel, KernelOp) or not isinstance(place, ProgramIdOp):
            raise VerifyException("parts stand in a kernel itself, and an instance runs one by its place in the grid")
        axis = place.axis.value.data
        if axis >= len(kernel.grid_entries) or kernel.grid_entries[axis] != self.ends[-1]:
            raise VerifyException(f"the parts are run by {self.ends[-1]} instances; the grid is {kernel.grid_entries}")
        for body in self.bodies:
            last = body.block.last_op
            if body.block.args or not isinstance(last, YieldOp) or last.values:
                raise VerifyException("a part takes nothing and ends by yielding nothing")
