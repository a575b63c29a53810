"""The toy program on a device whose clock counts what its kernels do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
for folder in ("gpu", "engine"):
    sys.path.insert(0, str(TESTS / folder))

from fake_driver import FakeDriver  # noqa: E402
from toy_program import ToyWeights, toy_driver, toy_program, write_code  # noqa: E402

from benchmarks.gpu_models import GpuModel  # noqa: E402
from tessera_runtime.executor.gpu.executor import GpuExecutor  # noqa: E402
from tessera_runtime.executor.gpu.program import read_program  # noqa: E402

MICROSECONDS = {"draw": 5, "head": 3}
"""Of an instance of a kernel; of others, one."""


class Clocked(FakeDriver):
    """Time passes only while kernels run."""

    clock = 0.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._reached: dict[int, float] = {}

    def record_event(self, event: int, stream: int) -> None:
        super().record_event(event, stream)
        queue = self._streams[stream].queue
        queue.insert(len(queue) - 1, (lambda: self._reached.update({event: self.clock}), None))

    def seconds_between(self, first: int, second: int) -> float:
        super().seconds_between(first, second)
        return self._reached[second] - self._reached[first]

    def _execute(self, name: str, values: list[int], grid: tuple[int, int, int]) -> None:
        super()._execute(name, values, grid)
        self.clock += MICROSECONDS.get(name, 1) * 1e-6 * grid[0] * grid[1] * grid[2]


def toy_model(folder: Path, **limits: int) -> GpuModel:
    raw = toy_program(**limits)
    write_code(folder, raw)
    return GpuModel("toy", folder, {}, raw, read_program(raw))


def toy_on_a_clock(model: GpuModel) -> tuple[GpuExecutor, Clocked]:
    like = toy_driver(model.program)
    driver = Clocked(like.parameters, like.kernels)
    return GpuExecutor(driver, model.program, model.folder, ToyWeights()), driver
