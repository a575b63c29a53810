"""Which machine this is, and what it can do at most."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_SOURCE = Path(__file__).with_name("peaks.c")


def describe() -> str:
    """One line for people."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    for line in cpuinfo.splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release().split('-')[0]}"


def build_peaks(folder: Path) -> Path | None:
    """The program that measures peaks, in `folder`; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    program = folder.resolve() / "peaks"
    program.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [compiler, "-O3", "-march=native", "-pthread", str(_SOURCE), "-o", str(program)], check=True, timeout=120
    )
    return program


def measure_peaks(
    program: Path | None, threads: int, under: Sequence[str] = (), kind: str | None = None
) -> dict[str, float]:
    """Bytes (`read`, `read_small`) and multiply-adds (`int8`, `bf16`, `fp32`) a second, all or of one kind; empty
    without the program."""
    if program is None:
        return {}
    command = [*under, str(program), str(threads), *([kind] if kind else [])]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    peaks: dict[str, float] = json.loads(result.stdout)
    return peaks
