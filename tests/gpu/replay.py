"""Replays the launches of a whole GPU program at given sizes, on memory that knows what belongs to whom.

The parameters are read back as a driver would read them, and must be what the program says at that place: inside the
right allocation, aligned, with room for all rows. Every byte of the arena remembers which buffer wrote it last, so a
launch that reads a buffer whose bytes another has overwritten is found, whatever `check_arena` believes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fake_driver import FakeDriver

from tessera_runtime.executor.drawing import LOGPROB_WORDS
from tessera_runtime.executor.gpu.arena_check import buffers_of
from tessera_runtime.executor.gpu.binding import Addresses, LaunchBinder, choose_variant, scratch_bytes
from tessera_runtime.executor.gpu.grid import StepSizes
from tessera_runtime.executor.gpu.metadata import MetadataLayout
from tessera_runtime.executor.gpu.modules import ModuleLibrary
from tessera_runtime.executor.gpu.program import GpuProgram, Kernel, Launch
from tessera_runtime.executor.gpu.weights import weight_offsets

LINE = 64
SEATS = 4
BLOCKS = 2


class Mismatch(AssertionError):
    """A launch that gets something other than the program says."""


class FakeModules(ModuleLibrary):
    """Functions without code."""

    def __init__(self, driver: FakeDriver, program: GpuProgram) -> None:
        super().__init__(driver, program, Path())
        self._names = {name: driver.declare(name, kernel.shared_bytes) for name, kernel in program.kernels.items()}

    def function(self, kernel: str) -> int:
        return self._names[kernel]


def replay(program: GpuProgram, sizes: StepSizes, form: str = "logits") -> int:
    """Binds and checks all launches; returns how many there are. Raises `Mismatch` or `Misuse`."""
    driver = FakeDriver({}, capacity=1 << 40, poison=False)
    launches = (*program.launches, *program.drawing.get(form, ()))
    layout = MetadataLayout.of(sizes)
    offsets, total = weight_offsets(program.weights)
    weights = driver.allocate(max(1, total))
    arena_size = program.arena_bytes(sizes.tokens, sizes.logit_rows)
    scratch = [driver.allocate(max(1, scratch_bytes(program, sizes))) for _ in range(2)]
    addresses = Addresses(
        weights=[weights + offset for offset in offsets],
        arena=driver.allocate(max(1, arena_size)),
        metadata=driver.allocate(layout.size),
        cache=driver.allocate(BLOCKS * program.cache.bytes_per_block),
        scratch=scratch,
        seats={name: driver.allocate(SEATS * size) for name, size in program.seats.items()},
        results={
            "ids": driver.allocate(max(1, 4 * sizes.logit_rows)),
            "logprobs": driver.allocate(max(1, 4 * LOGPROB_WORDS * sizes.logit_rows)),
        },
    )
    bound = LaunchBinder(driver, program, FakeModules(driver, program), launches).bind(sizes, layout, addresses)
    by_symbol = sizes.by_symbol()
    # Index + 1 of the buffer whose bytes these are; 0: nobody's. Rows are multiples of 64 bytes.
    owners = np.zeros(-(-arena_size // LINE), np.uint16)
    for one in bound.launches:
        launch = launches[one.index]
        variant = choose_variant(program.groups[launch.group], by_symbol)
        assert variant.kernel is not None
        kernel = program.kernels[variant.kernel]
        where = f"launch {one.index} ({launch.group})"
        values = driver.decode(one.parameters, kernel.function_parameters)
        places = _places(kernel)
        _check_maps(driver, program, sizes, launch, kernel, one.parameters, values)
        for argument, place in zip(launch.arguments, places, strict=True):
            value = values[place]
            expected, room = _expected(program, sizes, layout, addresses, argument.kind, argument.name, argument.index)
            if value != expected:
                raise Mismatch(f"{where} gets {value:#x} for {argument.kind}:{argument.name}, not {expected:#x}")
            if argument.kind != "size":
                if value % 64:
                    raise Mismatch(f"{where} gets {argument.kind}:{argument.name} at no multiple of 64")
                driver.memory.view(value, room, where)
        if kernel.scratch_bytes:
            instances = int(np.prod(one.prepared.grid))
            driver.memory.view(values[-kernel.scratch_pointers], instances * kernel.scratch_bytes, f"{where}: scratch")
        for index in buffers_of(program, launch):
            start, size = program.buffers[index].place(sizes.tokens, sizes.logit_rows)
            mine = owners[start // LINE : (start + size) // LINE]
            if start + size > arena_size:
                raise Mismatch(f"{where}: the buffer {index} leaves the arena")
            if (
                index not in launch.writes
                and not isinstance(program.buffers[index].rows, int)
                and (mine != index + 1).any()
            ):
                raise Mismatch(f"{where} reads the buffer {index}, which another has overwritten or nobody has written")
        written = [program.buffers[i].place(sizes.tokens, sizes.logit_rows) for i in (*launch.writes, *launch.updates)]
        for index in buffers_of(program, launch) - set(launch.updates):
            start, size = program.buffers[index].place(sizes.tokens, sizes.logit_rows)
            if sum(start < other + extent and other < start + size for other, extent in written) > (
                index in launch.writes
            ):
                raise Mismatch(f"{where} writes over the buffer {index}, which it names too")
        for index in (*launch.writes, *launch.updates):
            start, size = program.buffers[index].place(sizes.tokens, sizes.logit_rows)
            owners[start // LINE : (start + size) // LINE] = index + 1
    return len(bound.launches)


def _places(kernel: Kernel) -> list[int]:
    """Where in all that a function takes its arguments stand: a map has two extents and two strides behind it."""
    places, place = [], 0
    for parameter in kernel.parameters:
        places.append(place)
        place += 5 if parameter == "tensor_map" else 1
    return places


def _check_maps(
    driver: FakeDriver,
    program: GpuProgram,
    sizes: StepSizes,
    launch: Launch,
    kernel: Kernel,
    parameters: int,
    values: Sequence[int],
) -> None:
    """A map has a row for each of the buffer or the weight, and what comes behind it says the same."""
    where = f"the launch of {launch.group}"
    described = iter(kernel.tensor_maps)
    for parameter, argument, place in zip(kernel.parameters, launch.arguments, _places(kernel), strict=True):
        if parameter != "tensor_map":
            continue
        found, wanted = driver.map_of(parameters, place), next(described)
        rows, columns = found.shape
        if argument.kind == "buffer":
            buffer = program.buffers[argument.index]
            there = {"T": sizes.tokens, "L": sizes.logit_rows}.get(str(buffer.rows), buffer.rows)
            if rows != there or found.strides != (buffer.row_bytes,) or found.dtype != buffer.dtype:
                raise Mismatch(f"{where} maps {found}, but the buffer has {there} rows of {buffer.row_bytes} bytes")
        elif rows * found.strides[0] > program.weights[argument.index].size:
            raise Mismatch(f"{where} maps {found}, which is more than the weight")
        if found.box != wanted.box or list(values[place + 1 : place + 5]) != [rows, columns, columns, 1]:
            raise Mismatch(f"{where} gets {values[place + 1 : place + 5]} for {found}")


def _expected(
    program: GpuProgram,
    sizes: StepSizes,
    layout: MetadataLayout,
    addresses: Addresses,
    kind: str,
    name: str,
    index: int,
) -> tuple[int, int]:
    """A parameter's value, and how many bytes must lie behind a pointer. Worked out apart from the binder."""
    if kind == "buffer":
        buffer = program.buffers[index]
        rows = {"T": sizes.tokens, "L": sizes.logit_rows}.get(str(buffer.rows), buffer.rows)
        place = buffer.offset + buffer.per_token * sizes.tokens + buffer.per_logit_row * sizes.logit_rows
        return addresses.arena + place, int(rows) * buffer.row_bytes
    if kind == "weight":
        return addresses.weights[index], program.weights[index].size
    if kind == "input":
        ends = sorted([*layout.offsets.values(), layout.size])
        start = layout.offsets[name]
        return addresses.metadata + start, next((end for end in ends if end > start), start) - start
    if kind in ("cache_key", "cache_value"):
        layer = program.cache.layers[index]
        start, size = (
            (layer.key_offset, layer.key_bytes) if kind == "cache_key" else (layer.value_offset, layer.value_bytes)
        )
        return addresses.cache + start, (BLOCKS - 1) * program.cache.bytes_per_block + size
    if kind == "seat":
        return addresses.seats[name], SEATS * program.seats[name]
    if kind == "result":
        return addresses.results[name], sizes.logit_rows * (4 if name == "ids" else 4 * LOGPROB_WORDS)
    return sizes.by_symbol()[name], 0
