"""Queues the kernels of a step: directly the first time a size comes, from a recorded graph from the second on.

Recording costs as much as launching, and a graph takes memory: sizes that come once are not worth it.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from tessera_runtime.errors import DeviceLost, DeviceMemoryTooSmall, ExecutionError, TesseraError
from tessera_runtime.executor.gpu.binding import Addresses, BoundLaunches, LaunchBinder, scratch_bytes
from tessera_runtime.executor.gpu.buckets import BucketRule
from tessera_runtime.executor.gpu.driver import Driver
from tessera_runtime.executor.gpu.grid import StepSizes
from tessera_runtime.executor.gpu.metadata import MetadataLayout
from tessera_runtime.executor.gpu.modules import ModuleLibrary
from tessera_runtime.executor.gpu.program import GpuProgram
from tessera_runtime.executor.gpu.timing import LaunchTime, time_graph, time_launches

Form = Literal["logits", "greedy", "full"]
"""What a step ends in: its logits, or tokens drawn in one of the two ways."""
MOST_GRAPHS = 256
MOST_BOUND = 64


class StepRunner:
    """Owns the graphs. `place` must be called before the first step and after every `forget`."""

    def __init__(self, driver: Driver, program: GpuProgram, modules: ModuleLibrary, stream: int) -> None:
        self._driver = driver
        self._program = program
        self._stream = stream
        self._binders: dict[str, LaunchBinder] = {
            form: LaunchBinder(driver, program, modules, (*program.launches, *launches))
            for form, launches in {"logits": (), **program.drawing}.items()
        }
        limits, cache = program.limits, program.cache
        self.buckets = BucketRule(
            graph_tokens=program.graph_tokens,
            max_tokens=limits.max_tokens,
            max_width=-(-limits.max_model_len // cache.block_tokens),
            block_tokens=cache.block_tokens,
            chunk_tokens=cache.chunk_tokens,
        )
        self._addresses: Addresses | None = None
        self._graphs: OrderedDict[tuple[Form, StepSizes], int] = OrderedDict()
        self._bound: OrderedDict[tuple[Form, StepSizes], BoundLaunches] = OrderedDict()

    @property
    def ready(self) -> bool:
        return self._addresses is not None

    @property
    def recorded(self) -> int:
        return len(self._graphs)

    def scratch_bytes(self, sizes: StepSizes) -> int:
        return -(-scratch_bytes(self._program, sizes) // 256) * 256

    def place(
        self,
        *,
        weights: Sequence[int],
        arena: int,
        metadata: int,
        cache: int,
        scratch: tuple[int, int],
        seats: dict[str, int],
        results: dict[str, int],
    ) -> None:
        """Where everything lies from now on."""
        self._addresses = Addresses(weights, arena, metadata, cache, scratch, seats, results)

    def forget(self) -> None:
        """Something moves: what was recorded is of no use. Nothing may be running."""
        for graph in self._graphs.values():
            self._driver.destroy_graph(graph)
        self._graphs.clear()
        self._bound.clear()
        self._addresses = None

    def run(self, form: Form, sizes: StepSizes, layout: MetadataLayout, end: int | None = None) -> None:
        """Queues the kernels of a step whose inputs are on their way; with `end`, only launches before it."""
        key = (form, sizes)
        graph = self._graphs.get(key) if end is None else None
        if graph is None and end is None and key in self._bound:
            # A graph takes memory, of which another process may have left none; the step itself needs no more.
            with contextlib.suppress(DeviceMemoryTooSmall):
                graph = self.record(form, sizes, layout)
        if graph is not None:
            self._graphs.move_to_end(key)
            self._driver.launch_graph(graph, self._stream)
            return
        self._bind(form, sizes, layout).queue(self._driver, self._stream, end)

    def record(self, form: Form, sizes: StepSizes, layout: MetadataLayout) -> int:
        """The graph of a step, recorded now if it was not before. Nothing is run."""
        key = (form, sizes)
        found = self._graphs.get(key)
        if found is not None:
            return found
        bound = self._bind(form, sizes, layout)
        self._driver.begin_capture(self._stream)
        try:
            bound.queue(self._driver, self._stream)
        except DeviceLost:
            raise
        except TesseraError:
            # A stream left recording would take every later call for part of the graph.
            with contextlib.suppress(ExecutionError):
                self._driver.destroy_graph(self._driver.end_capture(self._stream))
            raise
        graph = self._driver.end_capture(self._stream)
        while len(self._graphs) >= MOST_GRAPHS:
            _, oldest = self._graphs.popitem(last=False)
            self._driver.synchronize(self._stream)
            self._driver.destroy_graph(oldest)
        self._graphs[key] = graph
        return graph

    def time_step(self, form: Form, sizes: StepSizes, layout: MetadataLayout, repeats: int) -> float:
        """Seconds of a step whose inputs are on the device, run back to back (`timing`)."""
        return time_graph(self._driver, self._stream, self.record(form, sizes, layout), repeats)

    def time_launches(self, form: Form, sizes: StepSizes, layout: MetadataLayout, repeats: int) -> list[LaunchTime]:
        """Seconds of each launch of such a step."""
        launches = (*self._program.launches, *self._program.drawing.get(form, ()))
        times = time_launches(self._driver, self._stream, self._bind(form, sizes, layout), repeats)
        return [LaunchTime(launches[index].group, launches[index].layer, seconds) for index, seconds in times]

    def _bind(self, form: Form, sizes: StepSizes, layout: MetadataLayout) -> BoundLaunches:
        key = (form, sizes)
        found = self._bound.get(key)
        if found is None:
            if self._addresses is None:
                raise ExecutionError("A step was queued before its memory was placed.")
            found = self._binders[form].bind(sizes, layout, self._addresses)
            self._bound[key] = found
            if len(self._bound) > MOST_BOUND:
                self._bound.popitem(last=False)
        self._bound.move_to_end(key)
        return found
