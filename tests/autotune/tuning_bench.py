"""A tiny planned program whose kernels can be tuned, and a bench with times made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from programs import tiny_model
from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.autotune.subjects import Subject
from tessera_compiler.autotune.trial import Operand, Trial
from tessera_compiler.driver import schedule_passes
from tessera_compiler.module import CompiledTarget
from tessera_compiler.schedule.passes.plan_tiles import Blocking
from tessera_compiler.targets.cpu.object_code import CPU_CLASSES
from tessera_runtime.executor.cpu.processor import choose_class, read_processor

CPU_CLASS = choose_class(
    {name: {"features": entry.required_flags} for name, entry in CPU_CLASSES.items()}, read_processor()
)
"""What this machine runs best."""


def planned(dtype: str) -> ModuleOp:
    model = tiny_model("qwen3")
    module = model.graph()
    for each in schedule_passes(model.options(dtype, (CPU_CLASS,))):
        each.apply(module)
    return module


class Clock:
    """Moves only when something is measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeMaker:
    """Compiles nothing."""

    def __init__(self, subject: Subject, cpu_class: str) -> None:
        pass

    def operands(self) -> tuple[Operand, ...]:
        return ()

    def trial(self, blocking: Blocking) -> Trial:
        return Trial(CompiledTarget("cpu", {"blocking": blocking}), launches=10)


class FakeBench:
    """`cost` says how long a launch takes, by blocking and tokens."""

    def __init__(self, cost: Callable[[Blocking, int], float], clock: Clock, seconds_each: float = 0.1) -> None:
        self.cost = cost
        self.clock = clock
        self.seconds_each = seconds_each
        self.measured: list[tuple[Blocking, int]] = []
        self.outputs: dict[Blocking, bytes] = {}

    def __call__(self, operands: tuple[Operand, ...]) -> FakeBench:
        return self

    def seconds(self, trial: Trial, tokens: int, launches: int, steps: int) -> Any:
        self.clock.now += self.seconds_each
        blocking = trial.target.program["blocking"]
        self.measured.append((blocking, tokens))
        return np.full((steps, launches - 1), self.cost(blocking, tokens))

    def output(self, trial: Trial, tokens: int) -> bytes:
        return self.outputs.get(trial.target.program["blocking"], b"same")
