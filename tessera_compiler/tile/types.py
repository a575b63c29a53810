"""The types that Tile IR is written in, and what each is in NumPy.

A *tile* is a builtin `vector<RxCxelement>` of static shape; a *buffer* is a builtin `memref` that a kernel is
handed; a scalar is an `index`. Tiles of bfloat16 or of eight-bit floats are float32 arrays in NumPy whose values these
can hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    BFloat16Type,
    Float8E4M3FNType,
    Float16Type,
    Float32Type,
    IndexType,
    IntegerType,
    MemRefType,
    Signedness,
    VectorType,
)
from xdsl.ir import Attribute
from xdsl.utils.exceptions import VerifyException

F32 = Float32Type()
BF16 = BFloat16Type()
F16 = Float16Type()
F8 = Float8E4M3FNType()
I1 = IntegerType(1)
I8 = IntegerType(8)
I32 = IntegerType(32)
U8 = IntegerType(8, Signedness.UNSIGNED)
U4 = IntegerType(4, Signedness.UNSIGNED)
INDEX = IndexType()

ELEMENTS: dict[str, Attribute] = {
    "f32": F32,
    "bf16": BF16,
    "f16": F16,
    "f8_e4m3": F8,
    "i1": I1,
    "i8": I8,
    "i32": I32,
    "u8": U8,
    "u4": U4,
}
_NAMES = {element: name for name, element in ELEMENTS.items()}
_NUMPY: dict[str, type[np.generic]] = {
    "f32": np.float32,
    "bf16": np.float32,
    "f16": np.float16,
    "f8_e4m3": np.float32,
    "i1": np.bool_,
    "i8": np.int8,
    "i32": np.int32,
    "u8": np.uint8,
    "u4": np.uint8,
}
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "f8_e4m3": 1, "i8": 1, "i32": 4, "u8": 1}


def tile_type(rows: int, columns: int, element: str) -> VectorType[Attribute]:
    return VectorType(ELEMENTS[element], [rows, columns])


def buffer_type(shape: Sequence[int | None], element: str) -> MemRefType[Attribute]:
    """A buffer; `None` stands for a dimension known only at run time."""
    return MemRefType(ELEMENTS[element], [DYNAMIC_INDEX if size is None else size for size in shape])


def element_name(type_: Attribute) -> str:
    """A name of `ELEMENTS`, of a tile or of a buffer."""
    element = type_.element_type if isinstance(type_, VectorType | MemRefType) else None
    if element not in _NAMES:
        raise VerifyException(f"tiles and buffers hold {', '.join(ELEMENTS)}; found {type_}")
    return _NAMES[element]


def shape_of(type_: Attribute) -> tuple[int, int]:
    """Rows and columns of a tile."""
    shape = type_.get_shape() if isinstance(type_, VectorType) else ()
    if len(shape) != 2:
        raise VerifyException(f"every tile has rows and columns; found {type_}")
    return shape[0], shape[1]


def numpy_dtype(element: str) -> type[np.generic]:
    return _NUMPY[element]


def round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest bfloat16 of each value, ties to even, as float32."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), np.float32(np.nan), rounded.view(np.float32)).astype(np.float32)
