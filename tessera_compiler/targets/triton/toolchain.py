"""Turns Triton sources into code objects, in worker processes, with no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tessera_compiler.errors import CompileError
from tessera_compiler.targets.triton.architectures import Architecture
from tessera_compiler.targets.triton.code_object import describe_cubin
from tessera_compiler.targets.triton.emission import Source

MOST_SPILLED_BYTES = 512
"""That a thread may keep in memory for want of registers. Of 128 sums to a thread, those that biases and a residual
follow take 272 on cuda-sm90, all of them behind the loop."""


_REMEDY = (
    "If it is a product, tune it for this device (tessera autotune), or remove its entry from the autotune cache; else "
    "pack with another --dtype, or without this target."
)


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
class Box:
    """What one copy by a descriptor brings, and in what order it comes to lie."""

    shape: tuple[int, int]
    swizzle: int
    """Bytes, of which sixteen at a time change their place."""


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
    boxes: tuple[Box, ...] = ()
    """How each of the source's tensors is copied."""


def triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def compile_all(jobs: Sequence[Job], workers: int | None = None) -> list[CompiledKernel]:
    """Compiles all, equal ones once; raises a `CompileError` naming the first kernel that cannot be used."""
    require_triton("Packages for GPUs are compiled by Triton", "leave out --target cuda-… and hip-…")
    kernels = []
    with Compilation(jobs, workers) as compilation:
        for found in compilation.results():
            if isinstance(found, CompileError):
                raise found
            kernels.append(found)
    return kernels


def require_triton(what: str, instead: str) -> None:
    """Raises `TritonMissing`, with what needs it and what else can be done."""
    if not triton_is_installed():
        raise TritonMissing(f"{what}, which is not installed. Install tessera[triton], or {instead}.")


class Compilation:
    """Kernels that worker processes compile from now on, equal ones once."""

    def __init__(self, jobs: Sequence[Job], workers: int | None = None) -> None:
        self._jobs = tuple(jobs)
        self._unique = list(dict.fromkeys(jobs))
        self._temporary = tempfile.TemporaryDirectory(prefix="tessera-triton-")
        self._folder = Path(self._temporary.name)
        self._running: list[subprocess.Popen[bytes]] = []
        try:
            _write_jobs(self._folder, self._unique)
            count = min(len(self._unique), workers or os.cpu_count() or 1)
            self._running = [_start_worker(self._folder, first, count) for first in range(count)]
        except BaseException:
            self.close()
            raise

    def results(self, seconds: float | None = None) -> list[CompiledKernel | CompileError]:
        """The kernels in order, once all are compiled or the time is over; for one that cannot be used, or is not done
        by then, the error."""
        end = None if seconds is None else time.monotonic() + seconds
        for process in self._running:
            try:
                process.wait(None if end is None else max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        made: dict[Job, CompiledKernel | CompileError] = {}
        for number, job in enumerate(self._unique):
            try:
                made[job] = _result(self._folder, number, job)
            except CompileError as error:
                made[job] = error
        return [made[job] for job in self._jobs]

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait()
        self._temporary.cleanup()

    def __enter__(self) -> Compilation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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


def _start_worker(folder: Path, first: int, count: int) -> subprocess.Popen[bytes]:
    module = "tessera_compiler.targets.triton.worker"
    with (folder / f"errors_{first}.txt").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(folder), str(first), str(count)],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=Path(__file__).parents[3],
        )


def _last_words(folder: Path) -> str:
    """Of the workers, for people."""
    texts = [path.read_text(encoding="utf-8", errors="replace").strip() for path in sorted(folder.glob("errors_*.txt"))]
    return " / ".join("\n".join(filter(None, texts)).splitlines()[-3:]) or "no message"


def _result(folder: Path, number: int, job: Job) -> CompiledKernel:
    where = f"{job.source.symbol} for {job.architecture.target}"
    path = folder / f"{number}.json"
    if not path.is_file():
        raise KernelNotCompiled(f"Triton ended while compiling {where}: {_last_words(folder)}. Report it.")
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
        boxes=tuple(Box(tuple(each["box"]), each["swizzle"]) for each in found["boxes"]),
    )
    _check(kernel, job, where)
    return kernel


def _check(kernel: CompiledKernel, job: Job, where: str) -> None:
    if len(kernel.boxes) != len(job.source.tensors):
        raise KernelNotCompiled(
            f"Triton makes no descriptors of {len(job.source.tensors)} parameters of {where}, but of "
            f"{len(kernel.boxes)}. Report it with the model's name."
        )
    if b"\ttrap;" in kernel.ptx:
        raise KernelNotCompiled(
            f"Triton makes of {where} a kernel that does nothing but fail, as when the matrix units' memory is too "
            "small for it. Report it with the model's name; smaller blocks may do (tessera autotune)."
        )
    most = job.architecture.shared_bytes
    if kernel.shared_bytes > most:
        raise KernelTooLarge(
            f"{where} needs {kernel.shared_bytes} bytes of shared memory; a block has at most {most}. {_REMEDY}"
        )
    if kernel.spilled_bytes > MOST_SPILLED_BYTES:
        raise KernelTooLarge(
            f"{where} keeps {kernel.spilled_bytes} bytes per thread in memory for want of registers; at most "
            f"{MOST_SPILLED_BYTES} are allowed. {_REMEDY}"
        )
