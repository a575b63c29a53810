"""Groups that one launch computes: which they are, what it says of them, and that each gives what it would alone."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from device_machine import DevicePlan, plan_for, run_in_numpy
from numpy.typing import NDArray
from programs import slow_from
from xdsl.dialects.builtin import BoolAttr

from tessera_compiler.schedule.dialect import GroupOp
from tessera_compiler.schedule.passes.plan_phases import caches_of, phases
from tessera_compiler.targets.triton.emission import emit_source
from tessera_compiler.targets.triton.target import _layers
from tessera_compiler.tile.dialect import KernelOp, PartsOp, StoreOp
from tessera_compiler.tile.lowering import device_together
from tessera_compiler.tile.lowering.device_together import LoweredRows, RowsOfGroups, join_rows, launched_together
from tessera_compiler.tile.types import element_name, numpy_dtype, shape_of

Array = NDArray[Any]
TARGET = "cuda-sm90"
PROGRAMS = [("qwen3", "bf16"), ("llama", "int8"), ("gpt2", "bf16"), ("gemma2", "fp32"), ("llama", "fp8")]
TOKENS = 3


@cache
def plan_of(name: str, dtype: str) -> DevicePlan:
    return plan_for(name, dtype, (TARGET,))


def rows_of(plan: DevicePlan) -> RowsOfGroups:
    return RowsOfGroups(plan.groups, plan.lowered.cache)


def joined(plan: DevicePlan) -> list[tuple[int, ...]]:
    return [unit for unit in plan.lowered.units if len(unit) > 1]


def test_queries_keys_and_values_are_one_launch() -> None:
    plan = plan_of("qwen3", "bf16")
    launches = {launch["group"]: launch for launch in plan.program["launches"]}
    heads = [launch for launch in launches.values() if launch["writes_cache"]]
    (name,) = {launch["group"] for launch in heads}
    group = plan.lowered.groups[name]
    assert group.source.count(";") == 2 and group.source.count("cache_write") == 2
    (variant,) = plan.program["groups"][name]["variants"]
    assert variant["grid"] == ["T", 1 + 1 + 1]
    (kernel,) = [each for each in plan.lowered.kernels().values() if each.symbol == name]
    (parts,) = [op for op in kernel.body.block.ops if isinstance(op, PartsOp)]
    assert parts.ends == [1, 2, 3]
    assert {shape_of(op.value.type)[0] for op in parts.walk() if isinstance(op, StoreOp)} == {4, 2}


@pytest.mark.parametrize(("name", "dtype"), PROGRAMS)
def test_a_launch_says_what_all_its_groups_do(name: str, dtype: str) -> None:
    plan = plan_of(name, dtype)
    launches = iter(plan.program["launches"])
    assert joined(plan)
    for unit in plan.lowered.units:
        group = plan.lowered.groups[plan.lowered.names[unit[0]]]
        found = [next(launches) for _ in group.stages]
        if len(unit) == 1:
            continue
        apart = [plan.description["launches"][number] for number in unit]
        (launch,) = found
        *given, tokens, rows, width = launch["args"]
        assert [tokens, rows, width] == ["size:T", "size:L", "size:W"]
        assert len(set(given)) == len(given)
        assert set(given) - {"seat:feedback"} == {argument for each in apart for argument in each["args"]}
        made = sum(len(plan.groups[number].results_) for number in unit)
        assert len(launch["writes"]) == made and not launch["updates"]
        assert launch["writes_cache"] == sorted({each for number in unit for each in caches_of(plan.groups[number])[1]})
        assert launch["layer"] == apart[0]["layer"]
    assert next(launches, None) is None


@pytest.mark.parametrize(("name", "dtype"), PROGRAMS)
def test_only_what_runs_side_by_side_is_joined(name: str, dtype: str) -> None:
    plan = plan_of(name, dtype)
    assert [number for unit in plan.lowered.units for number in unit] == list(range(len(plan.groups)))
    phase_of = phases(plan.groups)
    for unit in joined(plan):
        groups = [plan.groups[number] for number in unit]
        assert len({phase_of[number] for number in unit}) == 1
        assert {group.kind.data for group in groups} == {"rows"}
        written = {result for group in groups for result in group.results_}
        assert not any(value in written for group in groups for value in group.inputs)


@pytest.mark.parametrize(("name", "dtype"), slow_from(2, PROGRAMS))
def test_together_they_compute_what_each_does_alone(name: str, dtype: str) -> None:
    """Bit by bit, on the same numbers; what none of them writes stays as it was."""
    plan = plan_of(name, dtype)
    for unit in joined(plan)[:2]:
        rows = [rows_of(plan).of(number) for number in unit]
        kernel = join_rows(rows, "together")
        buffers = random_buffers(kernel)
        alone = [buffer.copy() for buffer in buffers]
        run_in_numpy(kernel, buffers, tokens=TOKENS, table_width=2)
        for each, own in zip(rows, device_together.joined_parameters(rows), strict=True):
            run_in_numpy(each.kernel, [alone[number] for number in own], tokens=TOKENS, table_width=2)
        written = 0
        for found, wanted, before in zip(buffers, alone, random_buffers(kernel), strict=True):
            np.testing.assert_array_equal(found, wanted)
            written += not np.array_equal(found, before)
        assert written >= len(unit)


def random_buffers(kernel: KernelOp) -> list[Array]:
    """Numbers for floats; for indices, and for what they choose among, a few small ones."""
    random = np.random.default_rng(3)
    buffers = []
    for each in kernel.buffers:
        shape = [8 if size < 0 else size for size in each.type.get_shape()]  # type: ignore[attr-defined]
        dtype = numpy_dtype(element_name(each.type))
        whole = np.issubdtype(dtype, np.integer)
        values = random.integers(0, 4, [64] if len(shape) == 1 else shape) if whole else random.normal(size=shape)
        buffers.append(np.ascontiguousarray(values.astype(dtype)))
    return buffers


def test_what_two_groups_share_is_one_parameter() -> None:
    plan = plan_of("qwen3", "bf16")
    unit = next(unit for unit in joined(plan) if len(unit) == 3)
    rows = [rows_of(plan).of(number) for number in unit]
    parameters = device_together.joined_parameters(rows)
    assert len({own[0] for own in parameters}) == 1, "all read the same product"
    results = [own[-1] for own in parameters]
    assert len(set(results)) == 3
    used = sorted({number for own in parameters for number in own})
    assert used == list(range(len(used))) and len(used) < sum(len(own) for own in parameters)


def over(plan: DevicePlan, number: int, grid: list[str | int]) -> LoweredRows:
    """A group's kernel with another grid."""
    rows = rows_of(plan).of(number)
    return replace(rows, kernel=KernelOp("alone", grid, rows.kernel.body.clone()))


def test_what_does_not_fit_together_stays_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("qwen3", "bf16")
    first, second = next(unit for unit in joined(plan) if len(unit) == 3)[:2]
    one, other = rows_of(plan).of(first), rows_of(plan).of(second)
    assert device_together._fit([one], other)
    assert not device_together._fit([one], over(plan, second, ["L", 2]))
    assert not device_together._fit([one], over(plan, second, ["T", 65_535]))
    assert device_together._fit([one], over(plan, second, ["T", 65_534]))
    one, other = over(plan, first, ["T", 2]), over(plan, second, ["T", 2])
    monkeypatch.setattr(device_together, "warps_of", lambda kernel: 1 if kernel is one.kernel else 2)
    assert device_together._fit([one], other) and device_together._fit([other], one)
    monkeypatch.setattr(device_together, "warps_of", lambda kernel: 1 if kernel is one.kernel else 4)
    assert not device_together._fit([one], other) and not device_together._fit([other], one)
    single = over(plan, first, ["T"])
    monkeypatch.setattr(device_together, "warps_of", lambda kernel: 1 if kernel is single.kernel else 4)
    assert device_together._fit([single], over(plan, second, ["T"]))


def test_a_barrier_parts_them() -> None:
    plan = plan_for("qwen3", "bf16", (TARGET,))
    unit = next(unit for unit in joined(plan) if len(unit) == 3)
    group: GroupOp = plan.groups[unit[1]]
    group.barrier = BoolAttr.from_bool(True)
    units = launched_together(plan.groups, rows_of(plan))
    assert unit[:1] in units and unit[1:] in units


def test_each_part_waits_on_its_own_once_it_has_what_is_given() -> None:
    plan = plan_of("qwen3", "bf16")
    (kernel,) = [each for each in plan.lowered.kernels().values() if each.grid_entries == ["T", 3]]
    text = emit_source(kernel, dependent=True).text
    parts = re.split(r"^    (?:if|elif|else)\b.*:$", text, flags=re.MULTILINE)[1:]
    assert len(parts) == 3
    product, tables = "tl.load(b0 ", "tl.load(b8 "
    for part in parts:
        before, wait, after = part.partition("gdc_wait()")
        assert wait and product not in before and product in after and "tl.store" not in before
        assert tables not in after
    assert tables in parts[1] and "gdc" not in emit_source(kernel).text


def test_ends_of_layers_count_launches() -> None:
    plan = plan_of("qwen3", "bf16")
    launches = plan.program["launches"]
    for unit in plan.lowered.units:
        for number in unit:
            (found,) = _layers({"layers": [{"path": "x", "end": number + 1, "buffer": 0}]}, plan.lowered)
            last = launches[found["end"] - 1]
            group = plan.lowered.groups[plan.lowered.names[number]]
            assert last["group"] == group.stages[-1].name
            wanted = {each for each in plan.description["launches"][number]["args"] if each.startswith("buffer:")}
            assert wanted <= set(last["args"])
