"""What this machine can run, for people, routers and `tessera info`."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tessera_runtime.abi import GPU_ABIS, SUPPORTED_ABIS
from tessera_runtime.executor.cpu.processor import physical_cores, read_processor, usable_cores
from tessera_runtime.executor.gpu.discovery import found_devices
from tessera_runtime.loading import PREFERENCE
from tessera_runtime.package.manifest import READABLE_FORMATS

LEVELS = {
    "x86-64-v3": frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}),
    "x86-64-v4": frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
}
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16", "sve")
"""Those of the processor's features that decide how fast a model runs."""


def capabilities(notice: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Plain values: the processor and its classes, cores, memory, GPUs, and what this runtime reads and executes.
    `notice` is told of GPUs that are there and cannot be used."""
    processor = read_processor()
    cores = usable_cores()
    memory = _memory()
    devices = found_devices(notice)
    return {
        "machine": processor.machine,
        "processor": _processor_name(),
        "classes": machine_classes(processor.machine, processor.features),
        "features": sorted(processor.features.intersection(FEATURES)),
        "cores": len(cores),
        "physical_cores": physical_cores(cores),
        "memory_bytes": memory.get("MemTotal", 0),
        "available_memory_bytes": memory.get("MemAvailable", 0),
        "backends": [*(f"{device.family}-{device.architecture}" for device in devices), *PREFERENCE],
        "devices": [
            {
                "kind": device.family,
                "name": device.name,
                "architecture": device.architecture,
                "memory_bytes": device.memory_bytes,
            }
            for device in devices
        ],
        "formats": list(READABLE_FORMATS),
        "abis": list(SUPPORTED_ABIS),
        "gpu_abis": list(GPU_ABIS),
        "numerics": ["deterministic"],
        "system": platform.system().lower(),
        "page_bytes": os.sysconf("SC_PAGE_SIZE"),
    }


def machine_classes(machine: str, features: frozenset[str]) -> list[str]:
    """The names of machine classes whose objects run here, the least first."""
    if machine != "x86_64":
        return [machine]
    found: list[str] = []
    for name, needed in LEVELS.items():
        if not needed <= features:
            break
        found.append(name)
    return found or [machine]


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part")))
    return next(named, "") or platform.processor() or "unknown"


def _memory() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if rest}
