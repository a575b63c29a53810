"""Barriers and places in the arena: nothing is read before it is written, or overwritten before it is read."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import pytest
from programs import compiled, tiny_model
from small_programs import RandomProgram, groups_of
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import ReturnOp

from tessera_compiler.driver import CompileOptions, compile_planned, dump_to, parse_ir, schedule_passes
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule.passes.plan_phases import caches_of
from tessera_compiler.schedule.physical import row_bytes

CLASS = "x86-64-v4"
PROGRAMS = [*product(range(40), ["fp32"]), *product(range(40, 60), ["bf16", "int8", "int4"])]


def planned(seed: int, dtype: str) -> ModuleOp:
    module = RandomProgram(seed).module
    for each in schedule_passes(CompileOptions(dtype, 48, 11, classes=(CLASS,))):
        each.apply(module)
    return module


def model_plan(name: str, dtype: str) -> ModuleOp:
    model = tiny_model(name)
    module = model.graph()
    for each in schedule_passes(model.options(dtype, (CLASS,))):
        each.apply(module)
    return module


def phases_of(module: ModuleOp) -> list[int]:
    phase, result = 0, []
    for group in groups_of(module):
        assert group.barrier is not None
        phase += int(bool(group.barrier.value.data))
        result.append(phase)
    return result


def check_barriers(module: ModuleOp) -> None:
    """What a launch reads, or writes over, was finished in an earlier phase."""
    written: dict[object, int] = {}
    read: dict[object, int] = {}
    for group, phase in zip(groups_of(module), phases_of(module), strict=True):
        caches_read, caches_written = caches_of(group)
        for thing in [*group.inputs, *caches_read]:
            assert written.get(thing, -1) < phase, f"{thing} is read in the phase in which it is written"
            read[thing] = phase
        for thing in caches_written:
            assert read.get(thing, -1) < phase, f"cache {thing} is written in the phase in which it is read"
        written.update(dict.fromkeys([*group.results_, *caches_written], phase))


def check_memory(module: ModuleOp) -> None:
    """No two values that share bytes of the arena are needed in one phase."""
    end = entry_function(module).body.block.last_op
    assert isinstance(end, ReturnOp)
    phases = phases_of(module)
    live: dict[object, tuple[str, range, set[int]]] = {}
    for group, phase in zip(groups_of(module), phases, strict=True):
        assert group.offsets is not None and len(group.offsets) == len(group.results_)
        for result, offset in zip(group.results_, group.offsets, strict=True):
            first = offset.value.data  # type: ignore[attr-defined]
            assert first % 64 == 0 and first >= 0
            place = range(first, first + row_bytes(type_of(result)))
            live[result] = (str(rows_of(type_of(result))), place, {phase})
        for value in group.inputs:
            if value in live:
                live[value][2].add(phase)
    live[end.operands[0]][2].add(phases[-1])
    for (rows, place, needed), (other_rows, other_place, other_needed) in combinations(live.values(), 2):
        overlap = rows == other_rows and place.start < other_place.stop and other_place.start < place.stop
        if overlap:
            assert max(needed) < min(other_needed) or max(other_needed) < min(needed)


@pytest.mark.parametrize(("seed", "dtype"), PROGRAMS)
def test_random_programs_are_planned_soundly(seed: int, dtype: str) -> None:
    module = planned(seed, dtype)
    check_barriers(module)
    check_memory(module)


@pytest.mark.parametrize(("name", "dtype"), [("llama", "fp32"), ("gemma2", "int8"), ("gpt2", "bf16")])
def test_models_are_planned_soundly(name: str, dtype: str) -> None:
    module = model_plan(name, dtype)
    check_barriers(module)
    check_memory(module)
    groups = groups_of(module)
    barriers = sum(phases_of(module)[i] != phases_of(module)[i - 1] for i in range(1, len(groups)))
    if name != "gpt2":  # each launch of which needs the one before
        assert barriers < len(groups) - 1, "some launches of a model run side by side"


def test_memory_is_used_again() -> None:
    """A plan that never shares would be sound, too."""
    module = model_plan("llama", "fp32")
    sizes = [row_bytes(type_of(result)) for group in groups_of(module) for result in group.results_]
    ends = [
        offset.value.data + row_bytes(type_of(result))  # type: ignore[attr-defined]
        for group in groups_of(module)
        for result, offset in zip(group.results_, group.offsets or (), strict=True)
    ]
    assert max(ends) < sum(sizes) / 3


@pytest.mark.parametrize("seed", range(5))
def test_the_checks_notice_what_is_wrong(seed: int) -> None:
    module = planned(seed, "fp32")
    groups = [group for group in groups_of(module) if group.barrier is not None and group.barrier.value.data]
    groups[-1].barrier = type(groups[-1].barrier).from_bool(False)  # type: ignore[union-attr]
    with pytest.raises(AssertionError):
        check_barriers(module)
    module = planned(seed, "fp32")
    for group in groups_of(module):
        group.offsets = type(group.offsets)([type(o)(0, o.type) for o in group.offsets or ()])  # type: ignore
    with pytest.raises(AssertionError):
        check_memory(module)


@pytest.mark.slow
def test_compilation_resumes_from_a_dump(tmp_path: Path) -> None:
    """What the last pass leaves is text; read back, it gives the same objects and the same program, byte for byte."""
    whole = compiled("llama", "int8", (CLASS,))
    dump_to(tmp_path)("PlanMemory", whole.schedule_ir)
    (dump,) = tmp_path.iterdir()
    model = tiny_model("llama")
    resumed = compile_planned(parse_ir(dump.read_text()), model.options("int8", (CLASS,)), whole.graph_ir)
    for one, other in zip(whole.targets, resumed.targets, strict=True):
        assert one.files == other.files
        assert one.program == other.program
    assert resumed.schedule_ir == whole.schedule_ir and resumed.tile_ir == whole.tile_ir
    assert [recipe.name for recipe in resumed.weights] == [recipe.name for recipe in whole.weights]
