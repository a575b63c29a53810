"""Triton source of every op, function and kernel, in Triton's interpreter, against Tile IR's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from block_table import BLOCK_TABLE
from device_machine import DeviceMachine, run_in_numpy
from interpreting import run_in_triton
from programs import slow_from
from test_device_programs import PROGRAMS, Conversation, packed, plan_of, run

from tessera_compiler.targets.triton import functions
from tessera_compiler.targets.triton.emission import emit_source
from tessera_compiler.tile import dialect
from tessera_compiler.tile import functions as tile_functions

TABLE = BLOCK_TABLE
LARGER = {"binary pow": 128.0}
"""Budgets of functions that a device makes of its fast exponentials (docs/spec/tile-ir.md)."""


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_triton_computes_what_the_interpreter_does(name: str, tmp_path: Path) -> None:
    for case in TABLE[name]():
        case.budget = LARGER.get(name, case.budget)
        counts = {"tokens": case.tokens, "logit_rows": case.logit_rows, "table_width": case.table_width}
        found = run_in_triton(case.kernel, case.buffers, tmp_path, **counts)
        if name.startswith("reduce"):
            check_reduction(name, case, found)
        else:
            case.check(found)


def check_reduction(name: str, case: Any, found: list[Any]) -> None:
    """A device adds in an order of its own, and its largest and smallest leave NaN out."""
    numbers = ~np.isnan(case.buffers[0].astype(np.float64)[:, : widest(case)]).any(axis=1)
    for wanted, got in zip(case.expected()[1:], found[1:], strict=True):
        if name.endswith("sum") and wanted.dtype == np.float32:
            np.testing.assert_allclose(got[numbers], wanted[numbers], rtol=1e-4, atol=1e-3)
        else:
            np.testing.assert_array_equal(got[numbers], wanted[numbers])


def widest(case: Any) -> int:
    """How many columns the kernel reads; the rest of the buffer is a pattern."""
    return max(op.result.type.get_shape()[1] for op in case.kernel.walk() if isinstance(op, dialect.LoadOp))


def test_no_function_is_missing() -> None:
    assert set(functions.UNARY) == set(tile_functions.UNARY)
    assert set(functions.BINARY) == set(tile_functions.BINARY) == set(functions.INTEGER_BINARY)
    assert set(functions.COMPARE) == set(tile_functions.COMPARE)
    assert set(functions.REDUCE) == set(tile_functions.REDUCE)
    assert set(functions.INDEX) == set(dialect.INDEX_FUNCTIONS)


@pytest.mark.parametrize(("name", "dtype"), slow_from(1, PROGRAMS))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_whole_programs_give_the_same_logits(name: str, dtype: str, tmp_path: Path) -> None:
    """Every kernel that the program launches has run, in both interpreters, on what the ones before left."""
    plan = plan_of(name, dtype)
    tensors = packed(plan, name, tmp_path)

    def in_triton(kernel: Any, buffers: Any, **counts: int) -> Any:
        return run_in_triton(kernel, buffers, tmp_path, **counts)

    machines = [DeviceMachine(plan, "cuda-sm90", tensors, runner) for runner in (run_in_numpy, in_triton)]
    conversation = Conversation(len(tensors) and 160)
    for parts in ([(0, 67), (1, 3), (2, 1)], [(0, 1), (1, 1), (2, 1)]):
        step = conversation.step(*parts)
        wanted, found = (run(machine, step) for machine in machines)
        assert np.abs(found - wanted).max() <= (1e-5 if dtype == "fp32" else 2e-2) * np.abs(wanted).max()
    tiles = "attention_0_tiles16" if dtype == "fp32" else "attention_0_tiles128"
    assert {tiles, "attention_0_blocks16", "attention_0_fold"} <= set(machines[1].launched)


def test_a_mistake_in_the_source_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(functions.BINARY, "add", "{x} - {y}")
    case = next(TABLE["binary add"]())
    with pytest.raises(AssertionError, match="beyond the budget"):
        case.check(run_in_triton(case.kernel, case.buffers, tmp_path, tokens=case.tokens))


def test_sources_are_readable() -> None:
    kernels = plan_of("llama", "bf16").lowered.kernels()
    text = emit_source(kernels["attention_0_tiles128"]).text
    assert max(len(line) for line in text.splitlines()) < 300
    assert re.search(r"# b0: f32 \[\?, \d+\]", text) and "for step1 in range(" in text
    assert "gdc_wait()" not in text and "gdc_wait()" in emit_source(kernels["rows_0"], dependent=True).text
