"""Binds launches to addresses: for steps of given sizes, every kernel's parameters as the driver reads them.

Layers name the same few things again and again, so each is resolved once for a size and then spread over all
parameters; when a step is launched, nothing is looked up any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.executor.gpu.driver import Driver, LaunchShape
from tessera_runtime.executor.gpu.grid import StepSizes, evaluate_grid
from tessera_runtime.executor.gpu.metadata import MetadataLayout
from tessera_runtime.executor.gpu.modules import ModuleLibrary
from tessera_runtime.executor.gpu.parameters import Parameters, TensorMaps
from tessera_runtime.executor.gpu.program import Argument, GpuProgram, Kernel, Launch, TensorMap, Variant


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
        self._parameters: dict[tuple[tuple[str, str], ...], Parameters] = {}
        self._maps_of_weights: dict[tuple[int, TensorMap], NDArray[np.uint8]] = {}

    def bind(self, sizes: StepSizes, layout: MetadataLayout, addresses: Addresses) -> BoundLaunches:
        """Loads the kernels that are needed and not yet loaded."""
        by_symbol = sizes.by_symbol()
        groups = dict.fromkeys(launch.group for launch in self._launches)
        shapes = {group: self._shape(group, by_symbol) for group in groups}
        parameters = self._parameters_of(shapes)
        values = np.zeros(max(1, parameters.count), np.uint64)
        pointers = values.ctypes.data + 8 * np.arange(len(values), dtype=np.uint64)
        resolved = [
            each if isinstance(each, int) else self._value(each, by_symbol, layout, addresses)
            for each in parameters.distinct
        ]
        values[parameters.slots] = np.array(resolved, np.uint64)[parameters.numbers]
        made = TensorMaps(self._driver, by_symbol, self._maps_of_weights)
        maps = [
            made.of(each, self._value(each.argument, by_symbol, layout, addresses)) for each in parameters.distinct_maps
        ]
        if maps:
            pointers[parameters.map_slots] = np.array([each.ctypes.data for each in maps])[parameters.map_numbers]
        bound = []
        for index, launch in enumerate(self._launches):
            shape = shapes[launch.group]
            if shape is None:
                continue
            kernel, prepared = shape
            start, end = parameters.places[index]
            if kernel.scratch_bytes:
                values[end - self._scratch_slots] = addresses.scratch[index % 2]
            bound.append(BoundLaunch(index, prepared, pointers.ctypes.data + 8 * start))
        return BoundLaunches(tuple(bound), (values, pointers, *maps))

    def _parameters_of(self, shapes: Mapping[str, tuple[Kernel, Any] | None]) -> Parameters:
        """Where everything goes: the same for all steps but for kernels with tensor maps."""
        mapped = {group: shape[0] for group, shape in shapes.items() if shape is not None and shape[0].tensor_maps}
        key = tuple((group, kernel.name) for group, kernel in mapped.items())
        if key not in self._parameters:
            self._parameters[key] = Parameters(self._launches, mapped, self._scratch_slots)
        return self._parameters[key]

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
