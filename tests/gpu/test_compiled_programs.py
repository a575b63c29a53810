"""Programs as the compiler really makes them, replayed. Their code objects are stand-ins: Triton is not needed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from programs import MAX_MODEL_LEN, slow_from, tiny_model
from replay import replay

from tessera_compiler.device_driver import DeviceOptions, compile_for_devices
from tessera_compiler.module import CompiledTarget
from tessera_compiler.targets.program import ProgramLimits
from tessera_compiler.targets.triton import target as triton_target
from tessera_compiler.targets.triton.toolchain import Box, CompiledKernel, Job
from tessera_runtime.executor.gpu.arena_check import check_arena, sizes_to_try
from tessera_runtime.executor.gpu.program import read_program
from tessera_runtime.package.gpu_program_check import gpu_checks

CASES = [
    ("qwen3", "bf16", "cuda-sm90"),
    ("llama", "fp32", "cuda-sm80"),
    ("gemma2", "int8", "hip-gfx942"),
    ("qwen3", "int4", "cuda-sm90"),
    ("llama", "fp8", "hip-gfx942"),
    ("gpt2", "bf16", "cuda-sm90"),
]


def stand_ins(jobs: Sequence[Job], workers: int | None = None) -> list[CompiledKernel]:
    return [
        CompiledKernel(
            code=f"code {number}".encode(),
            ptx=f"ptx {number}".encode(),
            entry=f"entry_{number}",
            warps=job.warps,
            shared_bytes=1024,
            scratch_bytes=128 * (number % 2),
            scratch_alignment=128,
            registers=64,
            spilled_bytes=0,
            code_bytes=1000,
            boxes=tuple(Box((each.box[0], min(each.box[1], 64)), 128) for each in job.source.tensors),
        )
        for number, job in enumerate(jobs)
    ]


def compiled(name: str, dtype: str, target: str) -> CompiledTarget:
    model = tiny_model(name)
    options = DeviceOptions((target,), dtype, ProgramLimits(128, MAX_MODEL_LEN, model.vocab_size))
    return compile_for_devices(model.graph(), options).targets[0]


@pytest.mark.parametrize(("name", "dtype", "target"), slow_from(1, CASES))
def test_a_compiled_program_can_be_replayed_at_every_size(
    name: str, dtype: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_target, "compile_all", stand_ins)
    made = compiled(name, dtype, target)
    program = read_program(made.program)
    check_arena(program)
    for sizes in sizes_to_try(program):
        for form in ("logits", *program.drawing):
            assert replay(program, sizes, form) > 10
    checks = gpu_checks(made.program, dict, made.files.__getitem__)
    for check in ("launches", "arena", "cache", "code objects"):
        checks[check]()
