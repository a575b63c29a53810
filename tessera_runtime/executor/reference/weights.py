"""The weights of a program: where they lie in a package, and their values when someone asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tessera_runtime.errors import ProgramInvalid, WeightsInvalid
from tessera_runtime.executor.cpu.weight_table import physical_shape
from tessera_runtime.executor.reference.numbers import ZERO_POINT, Array, widen

_STORAGE: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(np.uint16),
    "u8": np.dtype(np.uint8),
    "u4": np.dtype(np.uint8),
}
_PANEL = 16
_BLOCK_ELEMENTS = 1 << 22
"""How much of a weight that is not kept is unpacked at once."""


class UnpackedMemory:
    """How many bytes of unpacked weights may still be kept.

    Those that come first stay, and later ones are unpacked at each use. A step uses every weight once, in the same
    order, so to throw out the one used longest ago would always throw out the one needed next.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, size: int) -> bool:
        if size > self._left:
            return False
        self._left -= size
        return True


class Weight:
    """One tensor of `program.weights`: logical rows as float32; those of `u8` are `w - 128`, not yet scaled, but for
    what belongs to the groups of `u4`, which is as it is stored."""

    def __init__(self, description: Mapping[str, Any], stored: Array, memory: UnpackedMemory) -> None:
        """`stored` has the physical shape of the layout. Raises ProgramInvalid or WeightsInvalid."""
        self.name: str = description["name"]
        self.dtype: str = description["dtype"]
        self.shape: tuple[int, ...] = tuple(description["shape"])
        self._layout: str = description["layout"]
        self._memory = memory
        self._kept: Array | None = None
        storage = _STORAGE.get(self.dtype)
        if storage is None:
            raise ProgramInvalid(f"The weight {self.name!r} is of dtype {self.dtype!r}, which programs do not have.")
        physical = physical_shape(self.shape, self._layout)
        if (self.dtype == "u4") != (self._layout == "panels_k8"):
            raise ProgramInvalid(
                f"The weight {self.name!r} is {self.dtype} in {self._layout}, which programs do not have."
            )
        if stored.dtype != storage or stored.shape != physical:
            raise WeightsInvalid(
                f"The program needs the tensor {self.name!r} as {storage} {list(physical)}, and the package has it as "
                f"{stored.dtype} {list(stored.shape)}.",
                hint="Pack the model again.",
            )
        self._stored = stored

    def values(self) -> Array:
        """The whole tensor in its logical shape."""
        if self._kept is not None:
            return self._kept
        if len(self.shape) < 2:
            values = self._as_float(self._stored[: self.shape[0]] if self.shape else self._stored[0])
        elif self._layout == "rows":
            values = self._as_float(self._stored[..., : self.shape[-1]])
        else:
            values = self._unpack(0, self.shape[0])
        if self._memory.take(values.nbytes):
            self._kept = values
        return values

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """The rows of a matrix: (number of the first, [n, K]), all at once if they are kept, else some at a time."""
        count, columns = self.shape
        if self._kept is not None or self._memory.take(4 * count * columns):
            if self._kept is None:
                self._kept = self._unpack(0, count)
            yield 0, self._kept
            return
        size = max(1, _BLOCK_ELEMENTS // max(1, columns) // _PANEL) * _PANEL
        for start in range(0, count, size):
            yield start, self._unpack(start, min(count, start + size))

    def rows(self, numbers: Array) -> Array:
        """The rows with these numbers, [n, K]; nothing else of the matrix is unpacked."""
        count, columns = self.shape
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < count:
            raise IndexError(f"rows {int(numbers.min())} to {int(numbers.max())} of {self.name!r}, which has {count}")
        if self._layout == "rows":
            return self._as_float(self._stored[numbers, :columns])
        picked = self._stored[numbers // _PANEL, :, numbers % _PANEL]
        return self._as_float(self._numbers(picked.reshape(len(numbers), -1))[:, :columns])

    def _unpack(self, start: int, stop: int) -> Array:
        """Rows start..stop; `start` is a multiple of 16."""
        columns = self.shape[1]
        if self._layout == "rows":
            return self._as_float(self._stored[start:stop, :columns])
        panels = self._stored[start // _PANEL : -(-stop // _PANEL)]
        # [panel, k, n, k within its packet] (the last is 1 for panels_k1) becomes [panel, n, k].
        packets = panels.reshape(len(panels), panels.shape[1], _PANEL, -1).transpose(0, 2, 1, 3)
        rows = self._numbers(packets.reshape(len(panels) * _PANEL, -1))
        return self._as_float(rows[: stop - start, :columns])

    def _numbers(self, stored: Array) -> Array:
        """[n, 4 * ceil(K/8)] bytes of `panels_k8` as [n, K] numbers; of other layouts what they are."""
        if self._layout != "panels_k8":
            return stored
        fours = stored.reshape(len(stored), -1, 1, 4)
        return np.concatenate([fours & 15, fours >> 4], axis=2).reshape(len(stored), -1)

    def _as_float(self, stored: Array) -> Array:
        if self.dtype == "bf16":
            return widen(stored)
        values = stored.astype(np.float32)
        # What belongs to groups of columns lies in panels_k1 and is not centred.
        return values - np.float32(ZERO_POINT) if self.dtype == "u8" and self._layout != "panels_k1" else values


def bind_weights(
    descriptions: list[Mapping[str, Any]], tensors: Mapping[str, Array], memory: UnpackedMemory
) -> list[Weight]:
    """The weights of a program, in its order, from the tensors of a package."""
    weights = []
    for description in descriptions:
        name = description["name"]
        if name not in tensors:
            raise WeightsInvalid(
                f"The package has no tensor {name!r}, which its program needs.", hint="Pack the model again."
            )
        weights.append(Weight(description, tensors[name], memory))
    return weights
