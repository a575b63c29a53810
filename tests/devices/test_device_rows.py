"""Kernels of rows for devices: several heads of a token to an instance, each number loaded once and all of them first;
and that nobody can tell by the results."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import pytest
from device_machine import DevicePlan, plan_for, run_in_numpy
from interpreting import run_in_triton
from programs import slow_from
from test_together import PROGRAMS, TARGET, TOKENS, random_buffers
from transformers import AutoConfig
from xdsl.dialects.builtin import VectorType

from benchmarks.gpu_models import CONFIGS
from tessera_compiler.device_driver import DeviceOptions, device_passes
from tessera_compiler.frontends.huggingface import import_model
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.pipeline import simplify
from tessera_compiler.schedule.dialect import GroupOp
from tessera_compiler.targets.program import ProgramLimits
from tessera_compiler.targets.triton.architectures import architecture_of
from tessera_compiler.targets.triton.emission import emit_source
from tessera_compiler.targets.triton.toolchain import Job, compile_all
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.lowering import device_rows
from tessera_compiler.tile.lowering.device_lower import DeviceProgram, lower_for_devices
from tessera_compiler.tile.lowering.device_rows import lower_device_rows, together_of
from tessera_compiler.tile.lowering.device_together import rows_arguments


@cache
def plan_of(name: str, dtype: str) -> DevicePlan:
    return plan_for(name, dtype, (TARGET,))


def groups_of_heads(plan: DevicePlan) -> list[GroupOp]:
    return [group for group in plan.groups if group.kind.data == "rows" and together_of(group) > 1]


def lowered(plan: DevicePlan, group: GroupOp) -> tile.KernelOp:
    return lower_device_rows(group, rows_arguments(group, plan.lowered.cache), "heads")


def test_an_instance_takes_as_many_heads_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("qwen3", "bf16")
    queries, keys, values = groups_of_heads(plan)[:3]
    assert [together_of(each) for each in (queries, keys, values)] == [4, 2, 2]
    assert lowered(plan, queries).grid_entries == ["T", 1]
    monkeypatch.setattr(device_rows, "MOST_TOGETHER", 3)
    assert [together_of(each) for each in (queries, keys, values)] == [2, 2, 2]
    assert lowered(plan, queries).grid_entries == ["T", 2]
    monkeypatch.setattr(device_rows, "MOST_NUMBERS", 16)
    assert [together_of(each) for each in (queries, keys, values)] == [1, 1, 1]


def test_what_is_no_heads_stays_a_row_to_an_instance() -> None:
    plan = plan_of("qwen3", "bf16")
    others = [each for each in plan.groups if each.kind.data == "rows" and together_of(each) == 1]
    assert {tuple(lowered(plan, each).grid_entries) for each in others} == {("T",), ("L",)}


@pytest.mark.parametrize(("name", "dtype"), slow_from(3, PROGRAMS))
def test_heads_get_together_what_each_gets_alone(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, on the same numbers."""
    plan = plan_of(name, dtype)
    groups = groups_of_heads(plan)[:4]
    kernels = [lowered(plan, group) for group in groups]
    monkeypatch.setattr(device_rows, "MOST_TOGETHER", 1)
    for together, group in zip(kernels, groups, strict=True):
        alone = lowered(plan, group)
        assert alone.grid_entries != together.grid_entries
        before = random_buffers(alone)
        one, other = (
            run_in_numpy(kernel, [each.copy() for each in before], tokens=TOKENS, table_width=2)
            for kernel in (alone, together)
        )
        assert any(not np.array_equal(found, given) for found, given in zip(one, before, strict=True))
        for found, wanted in zip(other, one, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_pieces_are_added_up_as_the_whole_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("qwen3", "bf16")
    group = groups_of_heads(plan)[0]
    kernels = [lowered(plan, group)]
    monkeypatch.delattr(device_rows._DeviceRowFunctions, "reduce")
    kernels.append(lowered(plan, group))
    sums = [sum(isinstance(op, tile.ReduceOp) for op in kernel.walk()) for kernel in kernels]
    assert sums == [1, 2]
    one, other = (run_in_numpy(kernel, random_buffers(kernel), tokens=TOKENS, table_width=2) for kernel in kernels)
    np.testing.assert_allclose(one[-1], other[-1], rtol=1e-5)


@pytest.mark.parametrize("heads", [2, 4])
def test_triton_computes_heads_together(heads: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of fewer rows than a product takes are not padded."""
    monkeypatch.setattr(device_rows, "MOST_TOGETHER", heads)
    plan = plan_of("qwen3", "bf16")
    for group in groups_of_heads(plan)[:3]:
        kernel = lowered(plan, group)
        text = emit_source(kernel).text
        assert f"tl.arange(0, {together_of(group)})[:, None]" in text and "mask" not in text
        before = random_buffers(kernel)
        wanted = run_in_numpy(kernel, [each.copy() for each in before], tokens=TOKENS, table_width=2)
        found = run_in_triton(kernel, before, tmp_path, tokens=TOKENS, table_width=2)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(("name", "dtype"), PROGRAMS)
def test_each_number_of_a_head_is_loaded_once(name: str, dtype: str) -> None:
    plan = plan_of(name, dtype)
    for group in groups_of_heads(plan):
        kernel = lowered(plan, group)
        loads = [op for op in kernel.walk() if isinstance(op, tile.LoadOp)]
        assert len({(op.buffer, op.row, op.column, op.result.type) for op in loads}) == len(loads)
        product = [op for op in loads if op.buffer is kernel.buffers[0]]
        columns = sum(op.result.type.get_shape()[1] for op in product if isinstance(op.result.type, VectorType))
        assert columns == head_width(group)


def head_width(group: GroupOp) -> int:
    heads = [op.operands[0] if not op.results else op.results[0] for op in group.body.block.ops if op.operands]
    return int(max(value.type.get_shape()[-1] for value in heads if len(value.type.get_shape()) == 3))  # type: ignore[attr-defined]


def test_all_is_asked_for_first() -> None:
    plan = plan_of("qwen3", "bf16")
    for kernel in plan.lowered.kernels().values():
        if not kernel.symbol.startswith("rows"):
            continue
        for part in re.split(
            r"^    (?:if|elif|else)\b.*:$", emit_source(kernel, dependent=True).text, flags=re.MULTILINE
        ):
            computed = re.search(r"tl\.sum|div_rn|tl\.store", part)
            assert computed is None or "tl.load" not in part[computed.end() :], part


@cache
def of_real_heads() -> DeviceProgram:
    """One layer of a model whose heads are as wide as they usually are."""
    config = {**CONFIGS["qwen3-0.6b"], "num_hidden_layers": 1, "vocab_size": 512}
    imported = import_model(AutoConfig.for_model(**config), 256)
    simplify(imported.module)
    for each in device_passes(DeviceOptions((TARGET,), "bf16", ProgramLimits(128, 256, imported.vocab_size))):
        each.apply(imported.module)
    groups = [op for op in entry_function(imported.module).body.block.ops if isinstance(op, GroupOp)]
    return lower_for_devices(groups, (TARGET,))


def test_compiled_heads_move_sixteen_bytes_at_a_time_and_share_nothing() -> None:
    lowered_ = of_real_heads()
    (group,) = [each for each in lowered_.groups.values() if len(each.parts) == 3]
    (variant,) = group.stages[0].variants[TARGET]
    kernel = variant.kernel
    assert kernel is not None and kernel.grid_entries == ["T", 2 + 1 + 1] and variant.warps == 4
    (code,) = compile_all([Job(emit_source(kernel, dependent=True), architecture_of(TARGET), 4, 1)])
    assert code.spilled_bytes == 0 and code.registers <= 64
    text = code.ptx.decode()
    assert "bar.sync" not in text and "shared" not in text.partition("{")[2]
    for part in text.split("griddepcontrol.wait")[1:]:
        after = part.partition("\tret;")[0]
        loads = re.findall(r"ld\.global\S*\.(?:v\d\.)?b32", after.partition("bra")[0])
        assert loads and all(".v4." in load for load in loads)
        sum_ = after.find("shfl")
        assert sum_ < 0 or "ld.global" not in after[sum_ : after.find("st.global")]
