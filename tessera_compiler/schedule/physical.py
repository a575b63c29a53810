"""How tensors of Schedule IR lie in memory (docs/spec/program.md: Arena, Layouts of weights)."""

from __future__ import annotations

import math

from xdsl.dialects.builtin import MemRefType
from xdsl.ir import Attribute

from tessera_compiler.graph.types import DYNAMIC, Tensor, rows_of
from tessera_compiler.schedule.dialect import element_name
from tessera_compiler.schedule.views import row_shape
from tessera_compiler.tile.types import BYTES, buffer_type

BLOCK_TOKENS = 16
"""Positions in a block of the KV cache: as many as lanes, so that the scores of a block are one vector."""

PANEL = 16
"""Outputs that a panel of a weight holds."""

LINE = 64
"""Rows of buffers start on cache lines."""

PACKED = {"panels_k1": 1, "panels_k2": 2, "panels_k4": 4, "panels_k8": 8}


def padded_rows(count: int) -> int:
    """N rounded up as weights in panels are."""
    multiple = 64 if count > 256 else 16
    return -(-count // multiple) * multiple


def row_elements(type_: Tensor) -> int:
    """Elements from one row of a buffer to the next: what a row holds, padded as panels are and to whole cache
    lines.
    """
    count = padded_rows(math.prod(row_shape(type_.get_shape())))
    size = BYTES[element_name(type_)]
    return -(-count * size // LINE) * LINE // size


def row_bytes(type_: Tensor) -> int:
    return row_elements(type_) * BYTES[element_name(type_)]


def buffer_of(type_: Tensor) -> MemRefType[Attribute]:
    """The buffer of a value with rows, as a kernel sees it."""
    assert rows_of(type_) is not None
    return buffer_type([None, row_elements(type_)], element_name(type_))


WORDS, WORD_COLUMNS = 16, 128
"""Of the layout `matrix4`: words of eight numbers of four bits that lie together for each row, and columns that they
hold."""

IN_WORDS = ("matrix4", "columns4")
"""Layouts that kernels see as words of four bytes."""


def weight_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The physical shape of a weight, in elements: two of `panels_k8` share a byte; of those
    `IN_WORDS`, in words."""
    if layout == "rows":
        if len(shape) < 2:
            return (1, -(-max(1, math.prod(shape)) // LINE) * LINE)
        columns = shape[-1]
        return (math.prod(shape[:-1]), -(-columns // 16) * 16)
    if layout in ("matrix", "matrix_signed"):
        return (padded_rows(shape[0]), -(-shape[1] // 16) * 16)
    if layout == "matrix4":
        return (-(-shape[1] // WORD_COLUMNS) * padded_rows(shape[0]), WORDS)
    if layout == "columns4":
        return (-(-shape[1] // 4), padded_rows(shape[0]))
    packed = PACKED[layout]
    rows, columns = shape
    return (padded_rows(rows) // 16, -(-columns // packed), 16, packed)


def weight_buffer(type_: Tensor, layout: str) -> MemRefType[Attribute]:
    element = "i32" if layout in IN_WORDS else "i8" if layout == "matrix_signed" else element_name(type_)
    return buffer_type(list(weight_shape(type_.get_shape(), layout)), element)


def input_buffer(type_: Tensor) -> MemRefType[Attribute]:
    """Inputs of the program: vectors, or block tables seen as one."""
    return buffer_type([None], "i32")


def is_input(type_: Tensor) -> bool:
    return all(size == DYNAMIC for size in type_.get_shape()) and element_name(type_) == "i32"
