"""Tuning for a device without one: programs planned for it, kernels that are stand-ins, times made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from types import TracebackType

import pytest
from programs import tiny_model
from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.autotune import device_trial
from tessera_compiler.autotune.device_subjects import DeviceSubject, device_subjects_of
from tessera_compiler.autotune.device_trial import DeviceTrial, Made
from tessera_compiler.autotune.racing import CandidateFailed
from tessera_compiler.device_driver import DeviceOptions, device_passes
from tessera_compiler.errors import CompileError
from tessera_compiler.module import CompiledTarget
from tessera_compiler.schedule.device_blocking import DeviceBlocking
from tessera_compiler.targets.program import ProgramLimits
from tessera_compiler.targets.triton.toolchain import Box, CompiledKernel, Job, KernelTooLarge

TARGET = "cuda-sm90"


def planned_for_device(dtype: str, name: str = "qwen3") -> ModuleOp:
    model = tiny_model(name)
    module = model.graph()
    for each in device_passes(DeviceOptions((TARGET,), dtype, ProgramLimits(128, 160, model.vocab_size))):
        each.apply(module)
    return module


@cache
def planned_subjects(dtype: str) -> tuple[DeviceSubject, ...]:
    return tuple(device_subjects_of([planned_for_device(dtype)], TARGET))


def subjects(dtype: str = "bf16") -> list[DeviceSubject]:
    """Those of a tiny model, the most worthwhile first."""
    return list(planned_subjects(dtype))


class StandInCompilation:
    """`toolchain.Compilation` that compiles nothing: code that the fake driver reads, named after the source."""

    refused: Callable[[Job], bool] = staticmethod(lambda job: False)

    def __init__(self, jobs: Sequence[Job], workers: int | None = None) -> None:
        self._jobs = jobs

    def results(self, seconds: float | None = None) -> list[CompiledKernel | CompileError]:
        return [
            KernelTooLarge(f"{job.source.symbol} is too large.") if self.refused(job) else _stand_in(job)
            for job in self._jobs
        ]

    def close(self) -> None:
        pass


def _stand_in(job: Job) -> CompiledKernel:
    return CompiledKernel(
        code=json.dumps([_entry(job)]).encode(),
        ptx=b"",
        entry=_entry(job),
        warps=job.warps,
        shared_bytes=1024,
        scratch_bytes=128,
        scratch_alignment=128,
        registers=64,
        spilled_bytes=0,
        code_bytes=1000,
        boxes=tuple(Box((each.box[0], min(each.box[1], 64)), 128) for each in job.source.tensors),
    )


def _entry(job: Job) -> str:
    return f"{job.source.symbol}_w{job.warps}s{job.stages}"


@pytest.fixture
def compiled_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_trial, "Compilation", StandInCompilation)


class Clock:
    """Moves only when something is compiled or measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeMaking:
    """Compiles nothing, in `seconds`; what `refused` names has no trial."""

    def __init__(
        self, candidates: Sequence[DeviceBlocking], clock: Clock, seconds: float, refused: frozenset[DeviceBlocking]
    ) -> None:
        self._candidates, self._clock, self._seconds, self._refused = candidates, clock, seconds, refused
        self.closed = False

    def finish(self, seconds: float) -> Made:
        self._clock.now += min(self._seconds, seconds)
        late = seconds < self._seconds
        return {
            blocking: "it is refused"
            if late or blocking in self._refused
            else DeviceTrial(str(blocking), CompiledTarget(TARGET, {"blocking": blocking}), 4)
            for blocking in self._candidates
        }

    def __enter__(self) -> FakeMaking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True


class FakeWorkshop:
    """Makes makings and benches; `cost` says how long a launch takes, by blocking and rows."""

    def __init__(self, cost: Callable[[DeviceBlocking, int], float], *, seconds_each: float = 0.01) -> None:
        self.cost, self.seconds_each = cost, seconds_each
        self.clock = Clock()
        self.compiling = 1.0
        self.refused: frozenset[DeviceBlocking] = frozenset()
        self.failing: frozenset[DeviceBlocking] = frozenset()
        self.outputs: dict[DeviceBlocking, bytes] = {}
        self.measured: list[tuple[DeviceBlocking, int]] = []
        self.makings: list[FakeMaking] = []
        self.open = 0

    def maker(self, subject: DeviceSubject, candidates: Sequence[DeviceBlocking]) -> FakeMaking:
        self.makings.append(FakeMaking(candidates, self.clock, self.compiling, self.refused))
        return self.makings[-1]

    def runner(self, trial: DeviceTrial, most_rows: int) -> FakeWorkshop:
        self.open += 1
        return self

    def seconds(self, trial: DeviceTrial, rows: int) -> float:
        blocking = trial.target.program["blocking"]
        if blocking in self.failing:
            raise CandidateFailed("the driver refused it")
        self.clock.now += self.seconds_each
        self.measured.append((blocking, rows))
        return self.cost(blocking, rows)

    def output(self, trial: DeviceTrial, rows: int) -> bytes:
        return self.outputs.get(trial.target.program["blocking"], b"same")

    def close(self) -> None:
        self.open -= 1
