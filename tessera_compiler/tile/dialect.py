"""Tile IR: how one kernel works on tiles. docs/spec/tile-ir.md is the page; `evaluate` of each op is the definition.

Every tile is two-dimensional; a stack is several of one shape. A kernel is a function of its buffers and of the ids of
one program instance; instances are independent, and no instance loads from a buffer that the kernel stores to.
Arithmetic is in the element type that is written: nothing is contracted or reordered.
"""

from __future__ import annotations

from xdsl.ir import Dialect, Operation

from tessera_compiler.tile.arithmetic import (
    CASTS,
    BinaryOp,
    CastOp,
    ColumnsOp,
    CompareOp,
    DotOp,
    FullOp,
    IotaOp,
    MultiplyAddOp,
    ReduceOp,
    SelectOp,
    UnaryOp,
)
from tessera_compiler.tile.base import TileOperation
from tessera_compiler.tile.blocks import LoadBlockOp, PrefetchOp, StoreBlockOp
from tessera_compiler.tile.control import (
    INDEX_FUNCTIONS,
    ConstantIndexOp,
    ForOp,
    IndexOp,
    KernelOp,
    ProgramIdOp,
    ReturnOp,
    WhenOp,
    YieldOp,
)
from tessera_compiler.tile.memory import LoadIndexOp, LoadOp, LoadPackedOp, LoadPackedRowOp, StoreOp
from tessera_compiler.tile.panels import LoadPanelsOp, StorePanelOp
from tessera_compiler.tile.parts import PartsOp
from tessera_compiler.tile.rearranging import TransposeOp, UnpackOp
from tessera_compiler.tile.stacks import DotStackOp, EmptyStackOp, LoadStackOp, SumStackOp

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
    LoadPanelsOp,
    StorePanelOp,
    FullOp,
    IotaOp,
    UnaryOp,
    BinaryOp,
    CompareOp,
    SelectOp,
    CastOp,
    ColumnsOp,
    ReduceOp,
    DotOp,
    ForOp,
    YieldOp,
]
BLOCK_OPERATIONS: list[type[Operation]] = [
    *(LoadBlockOp, StoreBlockOp, PrefetchOp, TransposeOp, UnpackOp, PartsOp),
    MultiplyAddOp,
    *(EmptyStackOp, LoadStackOp, DotStackOp, SumStackOp, WhenOp),
]
"""What only kernels for devices are made of."""

ALL_OPERATIONS = [*TILE_OPERATIONS, *BLOCK_OPERATIONS]
Tile = Dialect("tile", ALL_OPERATIONS, [])

__all__ = [
    "ALL_OPERATIONS",
    "BLOCK_OPERATIONS",
    "CASTS",
    "INDEX_FUNCTIONS",
    "TILE_OPERATIONS",
    "Tile",
    "TileOperation",
    "BinaryOp",
    "CastOp",
    "ColumnsOp",
    "CompareOp",
    "ConstantIndexOp",
    "DotOp",
    "DotStackOp",
    "EmptyStackOp",
    "ForOp",
    "FullOp",
    "IndexOp",
    "IotaOp",
    "KernelOp",
    "LoadIndexOp",
    "LoadBlockOp",
    "LoadOp",
    "LoadPackedOp",
    "LoadPackedRowOp",
    "LoadPanelsOp",
    "LoadStackOp",
    "MultiplyAddOp",
    "PartsOp",
    "PrefetchOp",
    "ProgramIdOp",
    "ReduceOp",
    "ReturnOp",
    "SelectOp",
    "StoreBlockOp",
    "StoreOp",
    "StorePanelOp",
    "SumStackOp",
    "TransposeOp",
    "UnaryOp",
    "UnpackOp",
    "WhenOp",
    "YieldOp",
]
