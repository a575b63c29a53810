"""Turns Triton sources into code objects, in worker processes, with no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera_compiler.errors import CompileError
from tessera_compiler.targets.triton.architectures import Architecture
from tessera_compiler.targets.triton.code_object import describe_cubin
from tessera_compiler.targets.triton.emission import Source

MOST_SPILLED_BYTES = 256
"""That a thread may keep in memory for want of registers."""


class TritonMissing(CompileError):
    """Triton, which compiles for devices, is not installed."""


class KernelNotCompiled(CompileError):
    """Triton refused a kernel, or ended while compiling it."""


class KernelTooLarge(CompileError):
    """A kernel spills more than `MOST_SPILLED_BYTES`, or asks for more shared memory than a block of the device has."""


@dataclass(frozen=True)
class Job:
    """A kernel for one device."""

    source: Source
    architecture: Architecture
    warps: int
    stages: int
    registers: int = 0
    """The most that a thread may have, for a compiler that would rather keep values in memory; 0: as it likes."""

    @property
    def options(self) -> dict[str, Any]:
        # Tile IR promises that nothing is contracted.
        options: dict[str, Any] = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}
        if self.architecture.backend == "hip":
            # One shape of matrix instruction, so that every blocking adds in the same order.
            options["matrix_instr_nonkdim"] = 16
        elif self.registers:
            options["maxnreg"] = self.registers
        return options


@dataclass(frozen=True)
class CompiledKernel:
    """The code object of one kernel, and what launching it takes."""

    code: bytes
    ptx: bytes
    entry: str
    warps: int
    shared_bytes: int
    scratch_bytes: int
    scratch_alignment: int
    registers: int
    spilled_bytes: int
    code_bytes: int


def triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def compile_all(jobs: Sequence[Job], workers: int | None = None) -> list[CompiledKernel]:
    """Compiles all, equal ones once; raises a `CompileError` naming the first kernel that cannot be used."""
    if not triton_is_installed():
        raise TritonMissing(
            "Packages for GPUs are compiled by Triton, which is not installed. Install tessera[triton], or leave out "
            "--target cuda-… and hip-…."
        )
    unique = list(dict.fromkeys(jobs))
    with tempfile.TemporaryDirectory(prefix="tessera-triton-") as name:
        folder = Path(name)
        _write_jobs(folder, unique)
        _run_workers(folder, min(len(unique), workers or os.cpu_count() or 1))
        results = {job: _result(folder, number, job) for number, job in enumerate(unique)}
    return [results[job] for job in jobs]


def _write_jobs(folder: Path, jobs: Sequence[Job]) -> None:
    sources: dict[str, str] = {}
    described = []
    for number, job in enumerate(jobs):
        text = job.source.text
        if text not in sources:
            sources[text] = f"kernel_{len(sources)}"
            (folder / f"{sources[text]}.py").write_text(text, encoding="utf-8")
        described.append(
            {
                "number": number,
                "source": sources[text],
                "symbol": job.source.symbol,
                "signature": list(job.source.signature),
                "backend": job.architecture.backend,
                "arch": job.architecture.arch,
                "warp_size": job.architecture.warp_size,
                "options": job.options,
            }
        )
    (folder / "jobs.json").write_text(json.dumps(described), encoding="utf-8")


def _run_workers(folder: Path, count: int) -> None:
    module = "tessera_compiler.targets.triton.worker"
    running = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(folder), str(first), str(count)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        )
        for first in range(count)
    ]
    (folder / "errors.txt").write_bytes(b"\n".join(each.communicate()[1] for each in running))


def _result(folder: Path, number: int, job: Job) -> CompiledKernel:
    where = f"{job.source.symbol} for {job.architecture.target}"
    path = folder / f"{number}.json"
    if not path.is_file():
        last = (folder / "errors.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise KernelNotCompiled(f"Triton ended while compiling {where}: {' / '.join(last) or 'no message'}. Report it.")
    found = json.loads(path.read_text(encoding="utf-8"))
    if "error" in found:
        raise KernelNotCompiled(f"Triton does not compile {where}: {found['error']}. Report it with the model's name.")
    code = (folder / f"{number}.{job.architecture.code_kind}").read_bytes()
    if job.architecture.backend == "cuda":
        found |= describe_cubin(code)
    ptx = folder / f"{number}.ptx"
    kernel = CompiledKernel(
        code=code,
        ptx=ptx.read_bytes() if ptx.is_file() else b"",
        entry=found["entry"],
        warps=found["warps"],
        shared_bytes=found["shared_bytes"],
        scratch_bytes=found["scratch_bytes"],
        scratch_alignment=found["scratch_alignment"],
        registers=found["registers"],
        spilled_bytes=found["spilled_bytes"],
        code_bytes=found.get("code_bytes", len(code)),
    )
    _check(kernel, job, where)
    return kernel


def _check(kernel: CompiledKernel, job: Job, where: str) -> None:
    if b"\ttrap;" in kernel.ptx:
        raise KernelNotCompiled(
            f"Triton makes of {where} a kernel that does nothing but fail, as when the matrix units' memory is too "
            "small for it. Report it with the model's name; smaller blocks may do (tessera autotune)."
        )
    most = job.architecture.shared_bytes
    if kernel.shared_bytes > most:
        raise KernelTooLarge(
            f"{where} needs {kernel.shared_bytes} bytes of shared memory; a block has at most {most}. "
            "Tune it for this device (tessera autotune), or remove its entry from the autotune cache."
        )
    if kernel.spilled_bytes > MOST_SPILLED_BYTES:
        raise KernelTooLarge(
            f"{where} keeps {kernel.spilled_bytes} bytes per thread in memory for want of registers; at most "
            f"{MOST_SPILLED_BYTES} are allowed. Tune it for this device (tessera autotune), or remove its entry from "
            "the autotune cache."
        )
