"""What kernels are given: the places of all parameters of a list of launches, and the tensor maps among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.executor.gpu.driver import Driver, TensorMapShape
from tessera_runtime.executor.gpu.program import ELEMENT_BYTES, Argument, Kernel, Launch, TensorMap

TENSOR_MAP_BYTES = 128
TENSOR_MAP_ALIGNMENT = 64


@dataclass(frozen=True)
class MappedArgument:
    """A buffer or a weight that a kernel sees through a tensor map."""

    argument: Argument
    described: TensorMap


class Parameters:
    """Places in one array of values for all parameters of launches, with what goes there: each thing once, and for each
    place which of them."""

    def __init__(self, launches: Sequence[Launch], mapped: Mapping[str, Kernel], scratch_slots: int) -> None:
        """`mapped` are the kernels that have tensor maps, by their group."""
        places: list[tuple[int, int]] = []
        slots: list[int] = []
        numbers, map_slots, map_numbers = [], [], []
        distinct: dict[Argument | int, int] = {}
        maps: dict[MappedArgument, int] = {}
        count = 0
        for launch in launches:
            start = count
            kernel = mapped.get(launch.group)
            kinds = kernel.parameters if kernel is not None else ("",) * len(launch.arguments)
            described = iter(kernel.tensor_maps if kernel is not None else ())
            for kind, argument in zip(kinds, launch.arguments, strict=True):
                given: list[Argument | int] = [argument]
                if kind == "tensor_map":
                    found = MappedArgument(argument, next(described))
                    map_slots.append(count)
                    map_numbers.append(maps.setdefault(found, len(maps)))
                    given = _extents(found.described)
                    count += 1
                slots += range(count, count + len(given))
                numbers += [distinct.setdefault(each, len(distinct)) for each in given]
                count += len(given)
            # Whoever takes fewer leaves the rest alone.
            count += scratch_slots
            places.append((start, count))
        self.count = count
        self.places = tuple(places)
        """Of each launch's parameters: the first, and the one after the last."""
        self.slots, self.numbers = np.array(slots, np.int64), np.array(numbers, np.int64)
        self.map_slots, self.map_numbers = np.array(map_slots, np.int64), np.array(map_numbers, np.int64)
        self.distinct, self.distinct_maps = tuple(distinct), tuple(maps)


def _extents(described: TensorMap) -> list[Argument | int]:
    """What functions take after a map: the extents, and the elements between neighbours of each axis."""
    extents: list[Argument | int] = [
        Argument("size", extent) if isinstance(extent, str) else extent for extent in described.shape
    ]
    size = ELEMENT_BYTES[described.dtype]
    return [*extents, *(stride // size for stride in described.strides), 1]


class TensorMaps:
    """Makes the tensor maps of a step, equal ones once, where a driver can read them; those of weights are for all
    steps. They must live as long as they are launched with."""

    def __init__(
        self, driver: Driver, by_symbol: Mapping[str, int], of_weights: dict[tuple[int, TensorMap], NDArray[np.uint8]]
    ) -> None:
        self._driver = driver
        self._by_symbol = by_symbol
        self._of_weights = of_weights
        self._of_buffers: dict[tuple[int, TensorMap], NDArray[np.uint8]] = {}

    def of(self, mapped: MappedArgument, address: int) -> NDArray[np.uint8]:
        """The bytes of one map."""
        made = self._of_weights if mapped.argument.kind == "weight" else self._of_buffers
        key = address, mapped.described
        if key not in made:
            made[key] = self._make(*key)
        return made[key]

    def _make(self, address: int, described: TensorMap) -> NDArray[np.uint8]:
        extents = (self._by_symbol[each] if isinstance(each, str) else each for each in described.shape)
        shape = TensorMapShape(
            address=address,
            dtype=described.dtype,
            shape=tuple(max(1, extent) for extent in extents),
            strides=described.strides,
            box=described.box,
            swizzle=described.swizzle,
        )
        memory = np.zeros(TENSOR_MAP_BYTES + TENSOR_MAP_ALIGNMENT, np.uint8)
        aligned = memory[-memory.ctypes.data % TENSOR_MAP_ALIGNMENT :][:TENSOR_MAP_BYTES]
        aligned[:] = np.frombuffer(self._driver.tensor_map(shape), np.uint8)
        return aligned
