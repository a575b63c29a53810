"""Kernels compiled for real architectures, with no GPU: what they take, that they are always the same, and errors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import programs
import pytest
from device_machine import DevicePlan, plan_for
from programs import slow_from

from tessera_compiler.module import CompiledTarget
from tessera_compiler.targets.triton import target as triton_target
from tessera_compiler.targets.triton import toolchain
from tessera_compiler.targets.triton.architectures import ARCHITECTURES, architecture_of
from tessera_compiler.targets.triton.emission import Source, emit_source
from tessera_compiler.targets.triton.target import compile_triton, kernel_jobs
from tessera_compiler.targets.triton.toolchain import (
    Job,
    KernelNotCompiled,
    KernelTooLarge,
    compile_all,
)

MOST_BYTES = 5 * 2**18
"""Of the code of a tiny model for one device, of which the kernels that draw take up to a quarter."""


SPILLED = {"fp32": 128}
FEW_SPILLED = 32
"""Bytes that a kernel that decodes may spill: what a loop does not change, so that four blocks share the registers."""


@cache
def plan_of(name: str, dtype: str, target: str) -> DevicePlan:
    return plan_for(name, dtype, (target,))


@cache
def compiled(name: str, dtype: str, target: str) -> CompiledTarget:
    plan = plan_of(name, dtype, target)
    return compile_triton(plan.description, plan.recipes, plan.lowered, (target,))[0]


@pytest.mark.parametrize("target", slow_from(1, ["cuda-sm90", *sorted(set(ARCHITECTURES) - {"cuda-sm90"})]))
@pytest.mark.parametrize(
    ("name", "dtype"),
    slow_from(
        2,
        [
            ("qwen3", "bf16"),
            ("qwen3", "int4"),
            ("gemma2", "int8"),
            ("llama", "fp32"),
            ("qwen3", "fp16"),
            ("qwen3", "fp8"),
        ],
    ),
)
def test_kernels_fit(name: str, dtype: str, target: str) -> None:
    if dtype == "fp8" and architecture_of(target).float8 is None:
        return
    result = compiled(name, dtype, target)
    assert sum(len(data) for name, data in result.files.items() if name.endswith(("cubin", "hsaco"))) < MOST_BYTES
    for symbol, kernel in result.program["kernels"].items():
        assert kernel["registers"] > 0 and kernel["code_bytes"] > 0, symbol
        assert kernel["shared_bytes"] <= architecture_of(target).shared_bytes, symbol
    most = SPILLED.get(dtype, FEW_SPILLED)
    for group in result.program["groups"].values():
        for variant in group["variants"]:
            if variant["kernel"] and (group["kind"] != "linear" or min(variant["limits"].values(), default=99) <= 16):
                assert result.program["kernels"][variant["kernel"]]["spilled_bytes"] <= most, variant


def job(symbol: str, *, target: str = "cuda-sm90", warps: int = 4, stages: int = 3) -> Job:
    kernel = plan_of("qwen3", "bf16", "cuda-sm90").lowered.kernels()[symbol]
    return Job(emit_source(kernel), architecture_of(target), warps, stages)


def linears(rows: int) -> list[str]:
    kernels = plan_of("qwen3", "bf16", "cuda-sm90").lowered.kernels()
    return [symbol for symbol in kernels if symbol.startswith("linear_0") and f"_{rows}x" in symbol]


def test_matrix_units_of_hopper_are_used() -> None:
    (code,) = compile_all([job(linears(64)[0])])
    assert b"wgmma" in code.ptx


def test_weights_are_asked_for_before_the_launches_before_have_ended() -> None:
    kernel = plan_of("qwen3", "bf16", "cuda-sm90").lowered.kernels()[linears(64)[0]]
    source = emit_source(kernel, dependent=True)
    (code,) = compile_all([Job(source, architecture_of("cuda-sm90"), 4, 3)])
    before, wait, after = code.ptx.partition(b"griddepcontrol.wait")
    assert wait and b"prefetch.global.L2" in before and b"prefetch.global.L2" not in after
    assert b"ld.global" not in before and b"cp.async" not in before
    assert b"prefetch" not in emit_source(kernel).text.encode()


def test_biases_and_a_residual_fit_behind_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of blocks so large that their sums take half of the registers, as of any model with so many outputs."""
    monkeypatch.setitem(programs.MODELS, "starcoder2", {**programs.MODELS["qwen3"], "hidden_size": 256})
    kernels = plan_for("starcoder2", "bf16", ("cuda-sm90",)).lowered.kernels()
    large = [kernel for symbol, kernel in kernels.items() if symbol.endswith("_boxes_128x128x64")]
    sources = [emit_source(kernel, dependent=True, descriptors=True) for kernel in large]
    adding = [source for source in sources if len(source.signature) == 8]  # rows, weight, biases, residual, result
    assert adding and compile_all([Job(source, architecture_of("cuda-sm90"), 4, 3) for source in adding])


@pytest.mark.parametrize("target", ["cuda-sm120", "hip-gfx942"])
def test_tiles_of_wide_heads_fit(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(programs.MODELS, "gemma", {**programs.MODELS["qwen3"], "head_dim": 256})
    plan = plan_for("gemma", "bf16", (target,))
    tiles = {name: job for name, job in kernel_jobs(plan.lowered, target).items() if "_tiles" in name}
    assert len(tiles) == 1 and compile_all(list(tiles.values()))


@pytest.mark.parametrize("target", ARCHITECTURES)
def test_attention_in_float32_fits(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matrix units, operands lie in registers, in several threads at a time."""
    monkeypatch.setitem(programs.MODELS, "smollm3", {**programs.MODELS["qwen3"], "head_dim": 128})
    jobs = kernel_jobs(plan_for("smollm3", "fp32", (target,)).lowered, target)
    assert len(compile_all([job for name, job in jobs.items() if name.startswith("attention")])) == 4


def test_a_kernel_that_only_fails_is_refused() -> None:
    """As Triton makes them when sums do not fit in the matrix units' own memory."""
    made = job("rows_0", warps=1)
    (code,) = compile_all([made])
    with pytest.raises(KernelNotCompiled, match="rows_0 for cuda-sm100 a kernel that does nothing but fail"):
        toolchain._check(replace(code, ptx=b".visible .entry rows_0()\n{\n\ttrap;\n"), made, "rows_0 for cuda-sm100")


def test_the_same_source_gives_the_same_bytes() -> None:
    """Compiled in other folders, by other processes, in another order."""
    jobs = [job(linears(64)[0]), job("rows_0", warps=1), job(linears(64)[0], target="hip-gfx942")]
    first, second = compile_all(jobs, workers=1), compile_all(jobs[::-1], workers=2)[::-1]
    assert [(each.code, each.ptx) for each in first] == [(each.code, each.ptx) for each in second]
    assert len({each.code for each in first}) == 3


def test_equal_code_is_stored_once() -> None:
    result = compiled("qwen3", "bf16", "cuda-sm90")
    assert len(result.program["modules"]) == len(result.files)
    assert len(result.files) <= len(result.program["kernels"])


def test_ptx_is_kept_where_it_helps() -> None:
    plan = plan_of("qwen3", "bf16", "cuda-sm80")
    result = compile_triton(plan.description, plan.recipes, plan.lowered, ("cuda-sm80",))[0]
    kinds = {module["kind"] for module in result.program["modules"]}
    assert kinds == {"cubin", "ptx"}
    for kernel in result.program["kernels"].values():
        module = result.program["modules"][kernel["module"]]
        assert result.program["modules"][module["fallback"]]["kind"] == "ptx"


def test_a_kernel_that_is_refused_is_named() -> None:
    broken = Source("broken", "import triton\n\n\n@triton.jit\ndef broken(b0):\n    nothing(b0)\n", (("b0", "*fp32"),))
    with pytest.raises(KernelNotCompiled, match=r"broken for cuda-sm90: CompilationError"):
        compile_all([Job(broken, architecture_of("cuda-sm90"), 4, 1)])


def test_a_compiler_that_ends_is_reported() -> None:
    text = "import os\nos._exit(3)\n"
    with pytest.raises(KernelNotCompiled, match="Triton ended while compiling sudden"):
        compile_all([Job(Source("sudden", text, ()), architecture_of("cuda-sm90"), 4, 1)])


def test_kernels_beyond_the_budget_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "MOST_SPILLED_BYTES", -1)
    with pytest.raises(KernelTooLarge, match=r"rows_0 for cuda-sm90 keeps \d+ bytes"):
        compile_all([job("rows_0", warps=1)])


def test_too_much_shared_memory_is_refused() -> None:
    wide = max(linears(64), key=lambda symbol: int(symbol.rpartition("x")[2]))
    architecture = architecture_of("cuda-sm90")
    small = type(architecture)("cuda-sm90", "cuda", 90, 32, 64, 12000)
    source = emit_source(plan_of("qwen3", "bf16", "cuda-sm90").lowered.kernels()[wide])
    with pytest.raises(KernelTooLarge, match="a block has at most 64"):
        compile_all([Job(source, small, 4, 3)])


def test_programs_name_what_they_launch() -> None:
    program = compiled("qwen3", "bf16", "cuda-sm90").program
    used = {
        variant["kernel"] for group in program["groups"].values() for variant in group["variants"] if variant["kernel"]
    }
    assert used == set(program["kernels"])
    assert triton_target.SCRATCH_POINTERS == 2
