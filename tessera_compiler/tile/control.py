"""The ops of Tile IR that give a kernel its shape: the kernel itself, indices, loops."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from xdsl.dialects.builtin import ArrayAttr, IndexType, IntegerAttr, MemRefType, StringAttr, UnitAttr, VectorType
from xdsl.ir import Attribute, Block, Region, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    attr_def,
    irdl_op_definition,
    operand_def,
    opt_attr_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.traits import IsTerminator, SymbolOpInterface
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.tile.base import TileOperation, integer
from tessera_compiler.tile.blocks import LoadBlockOp, StoreBlockOp
from tessera_compiler.tile.memory import LoadIndexOp, LoadOp, LoadPackedOp, LoadPackedRowOp, StoreOp
from tessera_compiler.tile.panels import LoadPanelsOp, StorePanelOp
from tessera_compiler.tile.stacks import LoadStackOp
from tessera_compiler.tile.types import INDEX

_GRID = re.compile(r"[QDC]|[TL](/[1-9][0-9]*)?")

_LOADS = (LoadOp, LoadIndexOp, LoadPackedOp, LoadPackedRowOp, LoadPanelsOp, LoadBlockOp, LoadStackOp)


@irdl_op_definition
class KernelOp(IRDLOperation):
    """A kernel. Block arguments: its buffers, then the indices T, L and W. `grid` says how many instances there are,
    `given` which buffers no launch of a step writes, so that a target may read them before it waits for any."""

    name = "tile.kernel"
    sym_name = attr_def(StringAttr)
    grid = attr_def(ArrayAttr)
    given = opt_attr_def(ArrayAttr)
    body = region_def("single_block")
    traits = traits_def(SymbolOpInterface())

    def __init__(self, symbol: str, grid: Sequence[str | int], body: Region, given: Sequence[int] = ()):
        entries = [StringAttr(g) if isinstance(g, str) else integer(g) for g in grid]
        attributes: dict[str, Attribute] = {"sym_name": StringAttr(symbol), "grid": ArrayAttr(entries)}
        if given:
            attributes["given"] = ArrayAttr([integer(number) for number in given])
        super().__init__(attributes=attributes, regions=[body])

    @property
    def symbol(self) -> str:
        return self.sym_name.data

    @property
    def grid_entries(self) -> list[str | int]:
        return [e.data if isinstance(e, StringAttr) else e.value.data for e in self.grid.data]

    @property
    def buffers(self) -> list[SSAValue]:
        return [a for a in self.body.block.args if isinstance(a.type, MemRefType)]

    @property
    def given_buffers(self) -> list[SSAValue]:
        """Those that no launch of a step writes."""
        return [self.buffers[each.value.data] for each in self.given.data] if self.given is not None else []

    def verify_(self) -> None:
        types = [argument.type for argument in self.body.block.args]
        if types[-3:] != [INDEX, INDEX, INDEX] or not all(isinstance(t, MemRefType) for t in types[:-3]):
            raise VerifyException("a kernel takes its buffers, then three indices: T, L and W")
        for entry in self.grid_entries:
            if not (_GRID.fullmatch(entry) if isinstance(entry, str) else entry >= 1):
                raise VerifyException(
                    f"an entry of a grid is a positive integer, Q, D, C, T, L, T/m or L/m; found {entry!r}"
                )
        if "Q" in self.grid_entries[:-1]:
            raise VerifyException("Q, which no kernel is told, is the last entry of a grid")
        stored = {id(op.buffer) for op in self.walk() if isinstance(op, StoreOp | StorePanelOp | StoreBlockOp)}
        for op in self.walk():
            if isinstance(op, ProgramIdOp) and not 0 <= op.axis.value.data < len(self.grid_entries):
                raise VerifyException(f"a grid of {len(self.grid_entries)} axes has no axis {op.axis.value.data}")
            if isinstance(op, _LOADS) and id(op.buffer) in stored:
                raise VerifyException(
                    f"{self.symbol} loads from a buffer that it stores to; instances must be independent"
                )


@irdl_op_definition
class ReturnOp(IRDLOperation):
    """Ends a kernel."""

    name = "tile.return"
    traits = traits_def(IsTerminator())


@irdl_op_definition
class ProgramIdOp(TileOperation):
    """This instance's place along one axis of the grid."""

    name = "tile.program_id"
    axis = attr_def(IntegerAttr)
    result = result_def(IndexType)

    def __init__(self, axis: int):
        super().__init__(attributes={"axis": integer(axis)}, result_types=[INDEX])


@irdl_op_definition
class ConstantIndexOp(TileOperation):
    """An index known at compile time."""

    name = "tile.constant_index"
    value = attr_def(IntegerAttr)
    result = result_def(IndexType)

    def __init__(self, value: int):
        super().__init__(attributes={"value": integer(value)}, result_types=[INDEX])

    def evaluate(self) -> tuple[int]:
        return (self.value.value.data,)


INDEX_FUNCTIONS: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a // b,
    "rem": lambda a, b: a % b,
    "min": min,
    "max": max,
}


@irdl_op_definition
class IndexOp(TileOperation):
    """Arithmetic on indices: add, sub, mul, div, rem (of non-negative numbers), min, max (signed)."""

    name = "tile.index"
    function = attr_def(StringAttr)
    left = operand_def(IndexType)
    right = operand_def(IndexType)
    result = result_def(IndexType)

    def __init__(self, function: str, left: SSAValue, right: SSAValue):
        super().__init__(operands=[left, right], attributes={"function": StringAttr(function)}, result_types=[INDEX])

    def verify_(self) -> None:
        if self.function.data not in INDEX_FUNCTIONS:
            raise VerifyException(f"unknown index function {self.function.data!r}; known: {', '.join(INDEX_FUNCTIONS)}")

    def evaluate(self, left: int, right: int) -> tuple[int]:
        return (int(INDEX_FUNCTIONS[self.function.data](left, right)),)


@irdl_op_definition
class ForOp(IRDLOperation):
    """Counts an index from lower to upper by step, carrying tiles from one round to the next. With `once`, which only
    kernels for processors have, there is no second round."""

    name = "tile.for"
    lower = operand_def(IndexType)
    upper = operand_def(IndexType)
    step = operand_def(IndexType)
    initial = var_operand_def(VectorType)
    results_ = var_result_def(VectorType)
    once = opt_attr_def(UnitAttr)
    body = region_def("single_block")

    def __init__(
        self,
        lower: SSAValue,
        upper: SSAValue,
        step: SSAValue,
        initial: Sequence[SSAValue],
        body: Region | Block,
        *,
        once: bool = False,
    ):
        region = body if isinstance(body, Region) else Region(body)
        super().__init__(
            operands=[lower, upper, step, list(initial)],
            attributes={"once": UnitAttr() if once else None},
            result_types=[[value.type for value in initial]],
            regions=[region],
        )

    def verify_(self) -> None:
        carried = [value.type for value in self.initial]
        last = self.body.block.last_op
        if [a.type for a in self.body.block.args] != [INDEX, *carried]:
            raise VerifyException("the body of a loop takes the index, then the carried tiles")
        if not isinstance(last, YieldOp) or [v.type for v in last.values] != carried:
            raise VerifyException("the body of a loop ends by yielding the carried tiles")
        if [result.type for result in self.results_] != carried:
            raise VerifyException("a loop gives the carried tiles")
        if not isinstance(self.step.owner, ConstantIndexOp) or self.step.owner.value.value.data < 1:
            raise VerifyException("the step of a loop is a constant of at least 1")


@irdl_op_definition
class WhenOp(IRDLOperation):
    """What the body yields where the index `at` is 0; else the initial tiles, and the body is not run. Only kernels for
    devices have it."""

    name = "tile.when"
    at = operand_def(IndexType)
    initial = var_operand_def(VectorType)
    results_ = var_result_def(VectorType)
    body = region_def("single_block")

    def __init__(self, at: SSAValue, initial: Sequence[SSAValue], body: Region | Block):
        super().__init__(
            operands=[at, list(initial)],
            result_types=[[value.type for value in initial]],
            regions=[body if isinstance(body, Region) else Region(body)],
        )

    def verify_(self) -> None:
        kept = [value.type for value in self.initial]
        last = self.body.block.last_op
        if self.body.block.args or not isinstance(last, YieldOp) or [v.type for v in last.values] != kept:
            raise VerifyException("what may be done takes nothing, and ends by yielding tiles like the initial ones")
        if [result.type for result in self.results_] != kept:
            raise VerifyException("what may be done gives tiles like the initial ones")


@irdl_op_definition
class YieldOp(IRDLOperation):
    """Hands the carried tiles to the next round, or to what follows."""

    name = "tile.yield"
    values = var_operand_def(VectorType)
    traits = traits_def(IsTerminator())

    def __init__(self, values: Sequence[SSAValue]):
        super().__init__(operands=[list(values)])
