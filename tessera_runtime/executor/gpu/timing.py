"""What the device itself says a step takes, measured with events: for benchmarks and for people who tune.

Launches run again and again over the same inputs, each overwriting its own results, so nothing may be read from the
executor's cache afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera_runtime.executor.gpu.binding import BoundLaunches
from tessera_runtime.executor.gpu.driver import Driver


@dataclass(frozen=True)
class LaunchTime:
    """One launch of a step."""

    group: str
    layer: str
    seconds: float


def time_graph(driver: Driver, stream: int, graph: int, repeats: int) -> float:
    """Seconds of one run of a graph, run back to back."""
    first, last = driver.create_event(), driver.create_event()
    try:
        driver.launch_graph(graph, stream)
        driver.record_event(first, stream)
        for _ in range(repeats):
            driver.launch_graph(graph, stream)
        driver.record_event(last, stream)
        driver.synchronize(stream)
        return driver.seconds_between(first, last) / repeats
    finally:
        driver.destroy_event(first)
        driver.destroy_event(last)


def time_launches(driver: Driver, stream: int, bound: BoundLaunches, repeats: int) -> list[tuple[int, float]]:
    """Index and seconds of each launch, from a graph that holds it `repeats` times."""
    times = []
    for launch in bound.launches:
        driver.begin_capture(stream)
        for _ in range(repeats):
            driver.launch(launch.prepared, launch.parameters, stream)
        graph = driver.end_capture(stream)
        try:
            times.append((launch.index, time_graph(driver, stream, graph, 3) / repeats))
        finally:
            driver.destroy_graph(graph)
    return times
