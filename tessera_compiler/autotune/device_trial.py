"""Programs for a device that consist of one product: what a clock on the device launches to time a candidate.

They are programs like any other (docs/spec/program-gpu.md), made by the same lowering, so a kernel is timed as it runs
in a step. Their activations are buffers that no launch writes; whoever runs them fills these.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from types import TracebackType
from typing import Any, Protocol

from xdsl.dialects.builtin import ArrayAttr, DictionaryAttr, IntegerAttr, i64
from xdsl.ir import BlockArgument

from tessera_compiler.autotune.device_subjects import DeviceSubject
from tessera_compiler.errors import CompileError
from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import Tensor, rows_of, type_of
from tessera_compiler.module import CompiledTarget, WeightRecipe
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.device_blocking import SPLIT_TOKENS, DeviceBlocking
from tessera_compiler.schedule.physical import LINE, is_input, row_bytes
from tessera_compiler.schedule.views import row_shape
from tessera_compiler.targets.program import INPUTS, describe_cache
from tessera_compiler.targets.triton.target import assembled, kernel_jobs
from tessera_compiler.targets.triton.toolchain import Compilation, CompiledKernel
from tessera_compiler.tile.lowering.device_lower import DeviceProgram, lower_for_devices

COLD_BYTES = 256 << 20
"""Several times what the caches of a device hold, some of which keep more than a rotation through them should leave."""
MOST_COPIES = 128


@dataclass(frozen=True)
class DeviceTrial:
    """One candidate: a program that launches its product once, for weights that there are `copies` of."""

    name: str
    """For messages."""
    target: CompiledTarget
    copies: int


Made = dict[DeviceBlocking, "DeviceTrial | str"]
"""The trials of candidates, or why there is none."""


class Making(Protocol):
    """Trials that are being made. Used in a `with` statement, which gives up those that are not done."""

    def finish(self, seconds: float) -> Made:
        """All of them; those that are not done by then have failed."""
        ...

    def __enter__(self) -> Making: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class DeviceTrialMaker:
    """Makes trials of one subject: lowers them at once, and leaves their compilation to processes."""

    def __init__(self, subject: DeviceSubject, candidates: Iterable[DeviceBlocking], workers: int | None) -> None:
        self._subject = subject
        self._failed: Made = {}
        self._lowered: dict[DeviceBlocking, DeviceProgram] = {}
        for blocking in candidates:
            try:
                self._lowered[blocking] = self._lower(blocking)
            except (CompileError, ValueError) as error:
                self._failed[blocking] = f"it cannot be lowered: {error}"
        self._jobs = {each: kernel_jobs(program, subject.target) for each, program in self._lowered.items()}
        # One core is left to whoever measures meanwhile.
        workers = workers or max(1, (os.cpu_count() or 2) - 1)
        self._compilation = Compilation([job for jobs in self._jobs.values() for job in jobs.values()], workers)

    @property
    def copies(self) -> int:
        """Different weights: enough that none stay in a cache until they are read again."""
        return min(MOST_COPIES, -(-COLD_BYTES // max(1, self._subject.weight_bytes)))

    def finish(self, seconds: float) -> Made:
        """See `Making`."""
        compiled = iter(self._compilation.results(seconds))
        made = dict(self._failed)
        for blocking, jobs in self._jobs.items():
            kernels = {name: next(compiled) for name in jobs}
            errors = [str(kernel) for kernel in kernels.values() if isinstance(kernel, CompileError)]
            done = {name: kernel for name, kernel in kernels.items() if isinstance(kernel, CompiledKernel)}
            made[blocking] = errors[0] if errors else self._trial(blocking, done)
        return made

    def __enter__(self) -> DeviceTrialMaker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._compilation.close()

    def _lower(self, blocking: DeviceBlocking) -> DeviceProgram:
        """The group with this blocking, for any number of rows."""
        group, target = self._subject.group, self._subject.target
        planned = group.tiles
        try:
            group.tiles = DictionaryAttr({target: _as_attribute(tiles_of(blocking, self._subject.splits))})
            return lower_for_devices([group], (target,))
        finally:
            group.tiles = planned

    def _trial(self, blocking: DeviceBlocking, compiled: dict[str, CompiledKernel]) -> DeviceTrial:
        lowered, recipes = self._lowered[blocking], self._recipes()
        description = self._description(lowered, recipes)
        target = assembled(description, recipes, lowered, self._subject.target, compiled)
        return DeviceTrial(f"{self._subject.key} {blocking.listed()}", target, self.copies)

    def _recipes(self) -> tuple[WeightRecipe, ...]:
        recipes: list[WeightRecipe] = []
        for value in self._subject.group.inputs:
            name, owner = f"w{len(recipes)}", value.owner
            if isinstance(owner, schedule.WeightOp):
                type_ = type_of(value)
                element = schedule.element_name(type_)
                recipes.append(WeightRecipe(name, type_.get_shape(), element, owner.layout.data))
            elif isinstance(owner, graph.ConstantOp):
                recipes.append(WeightRecipe(name, type_of(value).get_shape(), "f32", "rows"))
        return tuple(recipes)

    def _description(self, lowered: DeviceProgram, recipes: Sequence[WeightRecipe]) -> dict[str, Any]:
        """What `describe_program` would say of a program of this one group."""
        group = self._subject.group
        arguments = lowered.arguments[0]
        buffers = _Buffers()
        args, weights = [], 0
        for value in group.inputs:
            if isinstance(value.owner, schedule.WeightOp | graph.ConstantOp):
                args.append(f"weight:{weights}")
                weights += 1
            elif is_input(type_of(value)):
                assert isinstance(value, BlockArgument)
                args.append(f"input:{INPUTS[value.index]}")
            else:
                args.append(buffers.add(type_of(value)))
        args += [f"cache_{part}:{cache}" for part, cache in arguments.caches]
        args += [buffers.add(type_of(result)) for result in group.results_]
        output = buffers.logits()
        cache = describe_cache(lowered.cache)
        # What a step has at most is for whoever runs it to say.
        return {
            "limits": {"max_tokens": 1, "max_model_len": 1, "vocab_size": 1},
            "weights": [
                {"name": each.name, "dtype": each.dtype, "shape": list(each.shape), "layout": each.layout}
                for each in recipes
            ],
            "buffers": buffers.described(),
            "arena": {"bytes_per_token": buffers.sizes["T"], "bytes_per_logit_row": buffers.sizes["L"], "bytes": 0},
            "cache": {**cache, "bytes_per_block": cache["bytes_per_block"] or 2 * LINE},
            "launches": [{"group": "", "args": args, "layer": "", "reads_cache": [], "writes_cache": []}],
            "layers": [],
            "output": output,
        }


class _Buffers:
    """All live at once."""

    def __init__(self) -> None:
        self.sizes = {"T": 0, "L": 0}
        self._listed: list[dict[str, Any]] = []

    def add(self, type_: Tensor) -> str:
        shape = list(row_shape(type_.get_shape()))
        return self._add(schedule.element_name(type_), shape, row_bytes(type_), rows_of(type_) or "T")

    def logits(self) -> int:
        """A buffer such as every program has for its logits."""
        return int(self._add("f32", [1], LINE, "L").partition(":")[2])

    def described(self) -> list[dict[str, Any]]:
        return [
            {**each, "offset": {**each["offset"], "tokens": self.sizes["T"] if each["rows"] == "L" else offset}}
            for each in self._listed
            for offset in (each["offset"]["tokens"],)
        ]

    def _add(self, element: str, shape: list[int], size: int, rows: str) -> str:
        offset = {"tokens": self.sizes["T"], "logit_rows": self.sizes["L"] if rows == "L" else 0, "bytes": 0}
        self.sizes[rows] += -(-size // LINE) * LINE
        name = f"b{len(self._listed)}"
        self._listed.append(
            {"name": name, "dtype": element, "shape": shape, "row_bytes": size, "rows": rows, "offset": offset}
        )
        return f"buffer:{len(self._listed) - 1}"


def tiles_of(blocking: DeviceBlocking, splits: int) -> tuple[DeviceBlocking, ...]:
    """A candidate as the only choice: where columns are cut, in both of the ways that many rows and few have."""
    every = replace(blocking, max_tokens=0)
    return (every,) if splits == 1 else (replace(blocking, max_tokens=SPLIT_TOKENS), every)


def _as_attribute(blockings: Sequence[DeviceBlocking]) -> ArrayAttr[Any]:
    return ArrayAttr([ArrayAttr([IntegerAttr(number, i64) for number in astuple(each)]) for each in blockings])
