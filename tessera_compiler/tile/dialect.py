"""Tile IR: how one kernel works on tiles. docs/spec/tile-ir.md is the page; `evaluate` of each op is the definition.

Every tile is two-dimensional. A kernel is a function of its buffers and of the ids of one program instance;
instances are independent, and no instance loads from a buffer that the kernel stores to. Arithmetic is in the
element type that is written: nothing is contracted or reordered.
"""

from __future__ import annotations

from xdsl.ir import Dialect, Operation

from tessera_compiler.tile.arithmetic import (
    CASTS,
    BinaryOp,
    CastOp,
    CompareOp,
    DotOp,
    FullOp,
    IotaOp,
    ReduceOp,
    SelectOp,
    UnaryOp,
)
from tessera_compiler.tile.base import TileOperation
from tessera_compiler.tile.control import (
    INDEX_FUNCTIONS,
    ConstantIndexOp,
    ForOp,
    IndexOp,
    KernelOp,
    ProgramIdOp,
    ReturnOp,
    YieldOp,
)
from tessera_compiler.tile.memory import LoadIndexOp, LoadOp, LoadPackedOp, LoadPackedRowOp, StoreOp

TILE_OPERATIONS: list[type[Operation]] = [
    KernelOp,
    ReturnOp,
    ProgramIdOp,
    ConstantIndexOp,
    IndexOp,
    LoadIndexOp,
    LoadOp,
    StoreOp,
    LoadPackedOp,
    LoadPackedRowOp,
    FullOp,
    IotaOp,
    UnaryOp,
    BinaryOp,
    CompareOp,
    SelectOp,
    CastOp,
    ReduceOp,
    DotOp,
    ForOp,
    YieldOp,
]
Tile = Dialect("tile", TILE_OPERATIONS, [])

__all__ = [
    "CASTS",
    "INDEX_FUNCTIONS",
    "TILE_OPERATIONS",
    "Tile",
    "TileOperation",
    "BinaryOp",
    "CastOp",
    "CompareOp",
    "ConstantIndexOp",
    "DotOp",
    "ForOp",
    "FullOp",
    "IndexOp",
    "IotaOp",
    "KernelOp",
    "LoadIndexOp",
    "LoadOp",
    "LoadPackedOp",
    "LoadPackedRowOp",
    "ProgramIdOp",
    "ReduceOp",
    "ReturnOp",
    "SelectOp",
    "StoreOp",
    "UnaryOp",
    "YieldOp",
]
