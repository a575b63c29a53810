"""What this machine offers to run packages on."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.server import Module

BFLOAT16 = ({"avx512_bf16"}, {"bf16"})
INT8_DOT = ({"avx512_vnni"}, {"i8mm"})
"""Features that mark fast arithmetic, of x86-64 and of aarch64."""


@dataclass(frozen=True)
class Device:
    """Something that programs run on."""

    kind: str
    """`cpu`."""
    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Capabilities:
    """What a router needs to know to place a model here."""

    machine: str
    """`x86_64` or `aarch64`."""
    system: str
    targets: tuple[str, ...]
    """Targets of a package that this runtime executes, the fastest first."""
    abis: tuple[int, ...]
    """Program ABIs it reads (docs/spec/program.md)."""
    formats: tuple[int, ...]
    """Package formats it reads (docs/spec/tspkg.md)."""
    cores: int
    """Cores this process may use: its affinity and its control group's quota."""
    physical_cores: int
    """Of those, how many have arithmetic units of their own: the default number of threads."""
    memory_bytes: int
    """Of the machine, or what the control group allows."""
    available_bytes: int
    features: tuple[str, ...]
    """Of the processor, under the names of /proc/cpuinfo."""
    bfloat16: bool
    """Whether the processor multiplies bfloat16 in hardware."""
    int8_dot: bool
    """Whether it has dot products of 8-bit integers."""
    mesh: dict[str, int]
    """The largest mesh a program may span here."""
    devices: tuple[Device, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def runs(self, module: Module) -> bool:
        """Whether a package that `server.load_package` opened has a target and a class for this machine."""
        return target_for(module) is not None


def capabilities() -> Capabilities:
    """Looks at the machine; takes about a millisecond."""
    from tessera_runtime.executor.cpu.processor import physical_cores, read_processor, usable_cores
    from tessera_runtime.loading import PREFERENCE
    from tessera_runtime.package.manifest import READABLE_FORMATS
    from tessera_runtime.package.reader import SUPPORTED_ABIS

    processor = read_processor()
    cores = usable_cores()
    total, available = _memory()
    return Capabilities(
        machine=processor.machine,
        system=platform.system().lower(),
        targets=PREFERENCE,
        abis=SUPPORTED_ABIS,
        formats=READABLE_FORMATS,
        cores=len(cores),
        physical_cores=physical_cores(cores),
        memory_bytes=total,
        available_bytes=available,
        features=tuple(sorted(processor.features)),
        bfloat16=any(wanted <= processor.features for wanted in BFLOAT16),
        int8_dot=any(wanted <= processor.features for wanted in INT8_DOT),
        mesh={"tp": 1, "pp": 1, "dp": 1},
        devices=(Device("cpu", _processor_name() or processor.machine, total),),
    )


def target_for(module: Module) -> tuple[str, str] | None:
    """The target, and its class or "", that this machine would run of a package; None if there is none."""
    from tessera_runtime.errors import TargetUnavailable
    from tessera_runtime.executor.cpu.processor import choose_class, read_processor
    from tessera_runtime.loading import PREFERENCE

    for name in PREFERENCE:
        if module.manifest.target(name) is None:
            continue
        if name != "cpu":
            return name, ""
        try:
            return name, choose_class(module.program(name)["classes"], read_processor())
        except TargetUnavailable:
            continue
    return None


def _memory() -> tuple[int, int]:
    page = os.sysconf("SC_PAGE_SIZE")
    total, available = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
    limit = _group_limit()
    if limit is not None and limit < total:
        used = int(_read(Path("/sys/fs/cgroup/memory.current")) or 0)
        return limit, max(0, min(available, limit - used))
    return total, available


def _group_limit() -> int | None:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(Path("/sys/fs/cgroup") / name) or ""
        if text.isdigit():
            return int(text)
    return None


def _processor_name() -> str | None:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
