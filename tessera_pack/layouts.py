"""Puts weights into the layouts that programs read (docs/spec/program.md, "Layouts of weights").

A matrix is packed some rows at a time: `empty` makes the physical array with its padding in place, `place` writes rows
`start..start+len(rows)` into it. So what is held beside the result is one block of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PANEL = 16
"""Rows of a panel: the lanes of one vector."""
ROW_MULTIPLE = 16
VECTOR_MULTIPLE = 64
U8_ZERO = 128
"""What stands for zero in `u8`."""

WORD_COLUMNS, WORD_BYTES = 128, 64
"""Columns of a row that lie together in `matrix4`, and the bytes that they take."""

PANEL_DEPTH = {"panels_k1": 1, "panels_k2": 2, "panels_k4": 4, "panels_k8": 8}
STORAGE: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "bf16": np.dtype("<u2"),
    "f16": np.dtype("<f2"),
    "f8_e4m3": np.dtype("|u1"),
    "u8": np.dtype("|u1"),
    "u4": np.dtype("|u1"),
}
"""How each dtype lies in memory; bf16 is its 16 bits, f8_e4m3 its eight; two u4 share a byte."""


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def padded_rows(rows: int) -> int:
    """Np: rows of a matrix in panels, so that large matrices split evenly among wide kernels."""
    return round_up(rows, 64 if rows > 256 else PANEL)


def physical_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The shape that a tensor of this logical shape has in a package."""
    if layout == "rows":
        if len(shape) < 2:
            return (round_up(shape[0] if shape else 1, VECTOR_MULTIPLE),)
        return (*shape[:-1], round_up(shape[-1], ROW_MULTIPLE))
    depth = PANEL_DEPTH.get(layout)
    if depth is None and layout not in ("matrix", "matrix_signed", "matrix4", "columns4"):
        raise ValueError(f"no such layout: {layout!r}")
    if len(shape) != 2:
        raise ValueError(f"the layout {layout!r} is for matrices, not for a tensor of shape {shape}")
    rows, columns = shape
    if layout == "matrix4":
        return (-(-columns // WORD_COLUMNS), padded_rows(rows), WORD_BYTES)
    if layout == "columns4":
        return (-(-columns // 4), padded_rows(rows), 4)
    if depth is None:
        return (padded_rows(rows), round_up(columns, ROW_MULTIPLE))
    panels = padded_rows(rows) // PANEL
    if depth == 1:
        return (panels, columns, PANEL)
    return (panels, -(-columns // depth), PANEL, 4 if layout == "panels_k8" else depth)


def physical_bytes(shape: tuple[int, ...], dtype: str, layout: str) -> int:
    """How many bytes the tensor takes in a package."""
    size = STORAGE[dtype].itemsize
    for extent in physical_shape(shape, layout):
        size *= extent
    return size


def empty(shape: tuple[int, ...], dtype: str, layout: str) -> NDArray[Any]:
    """The physical array before anything is placed: all padding: zero, or what stands for it in `u8`."""
    zero = U8_ZERO if dtype == "u8" and layout != "matrix_signed" else 0
    return np.full(physical_shape(shape, layout), zero, STORAGE[dtype])


def place(array: NDArray[Any], rows: NDArray[Any], start: int, layout: str) -> None:
    """Writes logical rows `start..start+len(rows)` (already of the stored dtype) to where they belong in `array`.

    `rows` is [n, K], or [n] for a vector. In panels, `start` must be a multiple of 16. For `panels_k8` and `matrix4`,
    `rows` holds numbers from 0 to 15, one in a byte.
    """
    if layout == "rows":
        if rows.ndim == 1:
            array[start : start + len(rows)] = rows
        else:
            flat = array.reshape(-1, array.shape[-1])
            flat[start : start + len(rows), : rows.shape[1]] = rows
        return
    if layout == "matrix_signed":
        array[start : start + len(rows), : rows.shape[1]] = rows ^ np.uint8(U8_ZERO)
        return
    if layout == "matrix":
        array[start : start + len(rows), : rows.shape[1]] = rows
        return
    if layout == "columns4":
        array[:, start : start + len(rows)] = _whole(rows, 4).reshape(len(rows), -1, 4).transpose(1, 0, 2)
        return
    if layout == "matrix4":
        array[:, start : start + len(rows)] = _in_words(rows)
        return
    depth = PANEL_DEPTH[layout]
    if start % PANEL:
        raise ValueError(f"rows for panels must begin at a multiple of {PANEL}, not at {start}")
    if layout == "panels_k8":
        rows, depth = _in_pairs(rows), 4
    whole, rest = divmod(len(rows), PANEL)
    first = start // PANEL
    if whole:
        _place_panels(array[first : first + whole], rows[: whole * PANEL].reshape(whole, PANEL, -1), depth)
    if rest:
        # The last panel of the matrix: its missing rows stay padding.
        last = array[first + whole]
        target = last[:, :rest] if depth == 1 else last[:, :rest, :]
        _place_panels(target[None], rows[whole * PANEL :][None], depth)


def _in_pairs(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[n, K] of 0..15 as [n, 4 * ceil(K/8)] bytes: the first four of eight neighbours in the low halves of four bytes,
    the others in the high ones."""
    eights = _whole(rows, 8).reshape(len(rows), -1, 2, 4)
    paired: NDArray[np.uint8] = (eights[:, :, 0] | eights[:, :, 1] << np.uint8(4)).reshape(len(rows), -1)
    return paired


def _in_words(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[n, K] of 0..15 as [ceil(K/128), n, 64] bytes: byte 4 w + g of a block holds columns 32 g + 2 w (in its low half)
    and 32 g + 2 w + 1."""
    blocks = _whole(rows, WORD_COLUMNS).reshape(len(rows), -1, 4, 16, 2)
    paired = blocks[..., 0] | blocks[..., 1] << np.uint8(4)
    words: NDArray[np.uint8] = paired.transpose(1, 0, 3, 2).reshape(-1, len(rows), WORD_BYTES)
    return words


def _whole(rows: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """With columns of zeros up to a multiple."""
    count, columns = rows.shape
    if columns % multiple == 0:
        return rows
    padded = np.zeros((count, round_up(columns, multiple)), np.uint8)
    padded[:, :columns] = rows
    return padded


def _place_panels(target: NDArray[Any], panels: NDArray[Any], depth: int) -> None:
    """`panels` is [p, n, K]; `target` is [p, K, n] for depth 1, else [p, ceil(K/depth), n, depth]."""
    if depth == 1:
        target[...] = panels.transpose(0, 2, 1)
        return
    count, rows, columns = panels.shape
    whole = columns // depth
    size = depth * panels.itemsize
    if columns == whole * depth and panels.flags.c_contiguous and size <= 8:
        # The `depth` neighbours move together, so they are moved as one wider integer: four times as fast.
        wide = np.dtype(f"<u{size}")
        target.view(wide)[..., 0] = panels.view(wide).transpose(0, 2, 1)
        return
    body = panels[:, :, : whole * depth].reshape(count, rows, whole, depth)
    target[:, :whole] = body.transpose(0, 2, 1, 3)
    if columns % depth:
        target[:, whole, :, : columns % depth] = panels[:, :, whole * depth :]


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16, ties to even. NaN stays NaN, and quiet; what is too large becomes infinity."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)
    result: NDArray[np.uint16] = rounded.astype(np.uint16)
    not_a_number = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    if not_a_number.any():
        quiet = ((bits >> np.uint32(16)) | np.uint32(0x0040)).astype(np.uint16)
        result = np.where(not_a_number, quiet, result)
    return result


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values of bfloat16 bits; exact."""
    values: NDArray[np.float32] = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values
