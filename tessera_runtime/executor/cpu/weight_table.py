"""Finds the program's weights among a package's tensors and makes the table of pointers that native code reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.errors import ProgramInvalid, WeightsInvalid
from tessera_runtime.executor.cpu.memory import ALIGNMENT, address_of

_DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(np.uint16),
    "u8": np.dtype(np.uint8),
    "u4": np.dtype(np.uint8),
}
_PANEL_DEPTHS = {"panels_k1": 1, "panels_k2": 2, "panels_k4": 4, "panels_k8": 8}


def physical_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The shape that a weight of this logical shape lies in (docs/spec/program.md, "Layouts of weights")."""
    if layout == "rows":
        if len(shape) < 2:
            return (_round_up(shape[0] if shape else 1, 64),)
        return (*shape[:-1], _round_up(shape[-1], 16))
    if layout not in _PANEL_DEPTHS or len(shape) != 2:
        raise ProgramInvalid(f"A weight of shape {list(shape)} has the layout {layout!r}, which programs do not have.")
    rows, columns = shape
    panels = _round_up(rows, 64 if rows > 256 else 16) // 16
    depth = _PANEL_DEPTHS[layout]
    # Eight numbers of four bits lie in four bytes.
    return (panels, columns, 16) if depth == 1 else (panels, -(-columns // depth), 16, min(depth, 4))


def bind_weights(
    descriptions: list[dict[str, Any]], tensors: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.uint64], list[NDArray[Any]]]:
    """The table of pointers, one per entry of `program.weights`, and the arrays that must live as long as it."""
    table = np.zeros(max(1, len(descriptions)), np.uint64)
    arrays = []
    for index, description in enumerate(descriptions):
        name, dtype = description["name"], _DTYPES.get(description["dtype"])
        if dtype is None:
            raise ProgramInvalid(
                f"The weight {name!r} is of dtype {description['dtype']!r}, which programs do not have."
            )
        if name not in tensors:
            raise WeightsInvalid(
                f"The package has no tensor {name!r}, which its program needs.", hint="Pack the model again."
            )
        array = tensors[name]
        shape = physical_shape(tuple(description["shape"]), description["layout"])
        if array.dtype.itemsize != dtype.itemsize or array.shape != shape or not array.flags.c_contiguous:
            raise WeightsInvalid(
                f"The program needs the tensor {name!r} as {description['dtype']} {list(shape)}, and the package "
                f"has it as {array.dtype} {list(array.shape)}.",
                hint="Pack the model again.",
            )
        if address_of(array) % ALIGNMENT:
            raise WeightsInvalid(
                f"The tensor {name!r} does not lie at a multiple of {ALIGNMENT} bytes.", hint="Pack the model again."
            )
        table[index] = address_of(array)
        arrays.append(array)
    return table, arrays


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
