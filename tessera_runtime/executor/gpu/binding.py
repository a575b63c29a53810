"""Binds launches to addresses: for steps of given sizes, every kernel's parameters as the driver reads them.

Layers name the same few things again and again, so each is resolved once for a size and then spread over all
parameters; when a step is launched, nothing is looked up any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.executor.gpu.driver import Driver, LaunchShape, TensorMapShape
from tessera_runtime.executor.gpu.grid import StepSizes, evaluate_grid
from tessera_runtime.executor.gpu.metadata import MetadataLayout
from tessera_runtime.executor.gpu.modules import ModuleLibrary
from tessera_runtime.executor.gpu.program import Argument, GpuProgram, Kernel, Launch, TensorMap, Variant

TENSOR_MAP_BYTES = 128


@dataclass(frozen=True)
class Addresses:
    """Where everything lies that launches name."""

    weights: Sequence[int]
    arena: int
    metadata: int
    cache: int
    scratch: Sequence[int]
    """Two areas in turn: a launch may start before the one before it has ended."""
    seats: dict[str, int]
    results: dict[str, int]


@dataclass(frozen=True)
class BoundLaunch:
    index: int
    """In its list of launches."""
    prepared: Any
    parameters: int


@dataclass(frozen=True)
class BoundLaunches:
    """Launches of one size, ready to be queued any number of times."""

    launches: tuple[BoundLaunch, ...]
    memory: tuple[NDArray[Any], ...]
    """What `parameters` point into; must live as long."""

    def queue(self, driver: Driver, stream: int, end: int | None = None) -> None:
        """Queues all launches, or those before index `end`."""
        for launch in self.launches:
            if end is None or launch.index < end:
                driver.launch(launch.prepared, launch.parameters, stream)


class LaunchBinder:
    """Binds one list of launches of a program; everything that does not depend on sizes is done once."""

    def __init__(
        self,
        driver: Driver,
        program: GpuProgram,
        modules: ModuleLibrary,
        launches: Sequence[Launch],
    ) -> None:
        self._driver = driver
        self._program = program
        self._modules = modules
        self._launches = launches
        self._scratch_slots = max((kernel.scratch_pointers for kernel in program.kernels.values()), default=0)
        self._starts: list[int] = []
        self._count = 0
        slots, numbers = [], []
        distinct: dict[Argument, int] = {}
        self._maps: list[tuple[int, int]] = []
        for launch in launches:
            self._starts.append(self._count)
            for slot, argument in enumerate(launch.arguments, self._count):
                if argument.kind == "tensor_map":
                    self._maps.append((slot, argument.index))
                else:
                    slots.append(slot)
                    numbers.append(distinct.setdefault(argument, len(distinct)))
            self._count += len(launch.arguments) + self._scratch_slots
        self._slots, self._numbers = np.array(slots, np.int64), np.array(numbers, np.int64)
        self._distinct = tuple(distinct)

    def bind(self, sizes: StepSizes, layout: MetadataLayout, addresses: Addresses) -> BoundLaunches:
        """Loads the kernels that are needed and not yet loaded."""
        values = np.zeros(max(1, self._count), np.uint64)
        pointers = values.ctypes.data + 8 * np.arange(len(values), dtype=np.uint64)
        by_symbol = sizes.by_symbol()
        resolved = [self._value(argument, by_symbol, layout, addresses) for argument in self._distinct]
        values[self._slots] = np.array(resolved, np.uint64)[self._numbers]
        maps: dict[int, NDArray[np.uint8]] = {}
        for slot, number in self._maps:
            if number not in maps:
                maps[number] = self._tensor_map(number, sizes, addresses)
            pointers[slot] = maps[number].ctypes.data
        shapes: dict[str, tuple[Kernel, Any] | None] = {}
        bound = []
        for index, launch in enumerate(self._launches):
            if launch.group not in shapes:
                shapes[launch.group] = self._shape(launch.group, by_symbol)
            shape = shapes[launch.group]
            if shape is None:
                continue
            kernel, prepared = shape
            start = self._starts[index]
            if kernel.scratch_bytes:
                values[start + len(launch.arguments)] = addresses.scratch[index % 2]
            bound.append(BoundLaunch(index, prepared, pointers.ctypes.data + 8 * start))
        return BoundLaunches(tuple(bound), (values, pointers, *maps.values()))

    def _shape(self, group: str, by_symbol: dict[str, int]) -> tuple[Kernel, Any] | None:
        """What is launched for a group at these sizes; None for nothing."""
        variant = choose_variant(self._program.groups[group], by_symbol)
        if variant.kernel is None:
            return None
        grid = evaluate_grid(variant.grid, by_symbol, f"groups.{group}")
        if 0 in grid:
            return None
        kernel = self._program.kernels[variant.kernel]
        shape = LaunchShape(
            function=self._modules.function(variant.kernel),
            grid=grid,
            threads=kernel.warps * self._program.warp_size,
            shared_bytes=kernel.shared_bytes,
            cluster=kernel.cluster,
            dependent=kernel.dependent,
        )
        return kernel, self._driver.prepare(shape)

    def _value(
        self, argument: Argument, by_symbol: dict[str, int], layout: MetadataLayout, addresses: Addresses
    ) -> int:
        kind, index = argument.kind, argument.index
        if kind == "buffer":
            return addresses.arena + self._program.buffers[index].place(by_symbol["T"], by_symbol["L"])[0]
        if kind == "weight":
            return addresses.weights[index]
        if kind == "input":
            return addresses.metadata + layout.offsets[argument.name]
        if kind == "cache_key":
            return addresses.cache + self._program.cache.layers[index].key_offset
        if kind == "cache_value":
            return addresses.cache + self._program.cache.layers[index].value_offset
        if kind == "seat":
            return addresses.seats[argument.name]
        if kind == "result":
            return addresses.results[argument.name]
        return by_symbol[argument.name]

    def _tensor_map(self, index: int, sizes: StepSizes, addresses: Addresses) -> NDArray[np.uint8]:
        described: TensorMap = self._program.tensor_maps[index]
        if described.of.kind == "buffer":
            place, _ = self._program.buffers[described.of.index].place(sizes.tokens, sizes.logit_rows)
            address = addresses.arena + place
        else:
            address = addresses.weights[described.of.index]
        rows = {"T": sizes.tokens, "L": sizes.logit_rows}
        shape = TensorMapShape(
            address=address,
            dtype=described.dtype,
            shape=tuple(max(1, rows[extent]) if isinstance(extent, str) else extent for extent in described.shape),
            strides=described.strides,
            box=described.box,
            swizzle=described.swizzle,
        )
        # The driver reads a map at a multiple of 64.
        memory = np.zeros(TENSOR_MAP_BYTES + 64, np.uint8)
        aligned = memory[-memory.ctypes.data % 64 :][:TENSOR_MAP_BYTES]
        aligned[:] = np.frombuffer(self._driver.tensor_map(shape), np.uint8)
        return aligned


def choose_variant(variants: Sequence[Variant], by_symbol: dict[str, int]) -> Variant:
    """The first whose limits hold; the last has none."""
    for variant in variants:
        if variant.holds(by_symbol):
            return variant
    return variants[-1]


def scratch_bytes(program: GpuProgram, largest: StepSizes) -> int:
    """What one area of scratch has to hold for any step up to `largest`."""
    most = 0
    by_symbol = largest.by_symbol()
    for name, variants in program.groups.items():
        for variant in variants:
            kernel = None if variant.kernel is None else program.kernels[variant.kernel]
            if kernel is None or not kernel.scratch_bytes:
                continue
            limited = dict(by_symbol)
            for symbol, limit in variant.limits:
                limited[symbol] = min(limited[symbol], limit)
            instances = 1
            for extent in evaluate_grid(variant.grid, limited, f"groups.{name}"):
                instances *= extent
            alignment = max(1, kernel.scratch_alignment)
            most = max(most, instances * (-(-kernel.scratch_bytes // alignment) * alignment))
    return most
