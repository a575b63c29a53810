"""What the processor of this machine can do, how many cores may be used, and which object of a package suits it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera_runtime.errors import TargetUnavailable

_MACHINE_NAMES = {"AMD64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Processor:
    """`machine` as ELF files are named after it, and the features under the names of /proc/cpuinfo."""

    machine: str
    features: frozenset[str]


def read_processor(path: Path = Path("/proc/cpuinfo")) -> Processor:
    """Features that every core has; on machines with cores of two kinds that is what a thread can rely on."""
    machine = platform.machine()
    common: frozenset[str] | None = None
    try:
        text = path.read_text(errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
            common = flags if common is None else common & flags
    return Processor(_MACHINE_NAMES.get(machine, machine), common or frozenset())


def choose_class(classes: Mapping[str, Mapping[str, Any]], processor: Processor) -> str:
    """The name of the class of `program.classes` that asks for most of what this processor has."""
    suitable = [name for name in classes if not missing_features(name, classes[name], processor)]
    if not suitable:
        wanted = "; ".join(
            f"{name} (this machine lacks {', '.join(missing_features(name, classes[name], processor))})"
            for name in sorted(classes)
        )
        raise TargetUnavailable(
            f"The package has code for {wanted or 'no CPU class at all'}, and this machine is {processor.machine}.",
            hint="Build a package for it with `tessera pack … --target cpu`, or use a machine of one of these classes.",
        )
    return max(suitable, key=lambda name: (len(classes[name]["features"]), name))


def missing_features(name: str, description: Mapping[str, Any], processor: Processor) -> list[str]:
    """What a class needs and the processor lacks, the machine itself first; empty if its object runs here."""
    machine = machine_of_class(name)
    if machine != processor.machine:
        return [machine]
    return sorted(set(description["features"]) - processor.features)


def machine_of_class(name: str) -> str:
    """`x86-64-v4` → `x86_64`; other classes are named after their machine."""
    return "x86_64" if name.startswith("x86-64") else name.partition("-")[0]


def usable_cores() -> list[int]:
    """Cores this process may run on, one of each pair of hardware threads first, as many as its quota allows."""
    cores = sorted(os.sched_getaffinity(0))
    seen: set[str] = set()
    first: list[int] = []
    second: list[int] = []
    for core in cores:
        siblings = _read(Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")) or str(core)
        (second if siblings in seen else first).append(core)
        seen.add(siblings)
    quota = cpu_quota()
    ordered = first + second
    return ordered if quota is None else ordered[: max(1, int(quota))]


def physical_cores(cores: list[int]) -> int:
    """How many of these have units of arithmetic of their own."""
    siblings = {
        _read(Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")) or str(core) for core in cores
    }
    return len(siblings)


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """How many cores' worth of time the control groups allow, the strictest of them; None for no limit."""
    quotas = []
    for line in (_read(groups) or "").splitlines():
        _number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        folders = [root] if not controllers else [root / controllers, root / "cpu"]
        if controllers and "cpu" not in controllers.split(","):
            continue
        for folder in folders:
            group = folder / path.lstrip("/")
            for place in (group, *group.parents):
                if not place.is_relative_to(folder):
                    break
                quotas += _quota_of(place)
    return min(quotas, default=None)


def _quota_of(group: Path) -> list[float]:
    modern = (_read(group / "cpu.max") or "").split()
    if len(modern) == 2 and modern[0].isdigit():
        return [int(modern[0]) / int(modern[1])]
    quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    if quota and period and int(quota) > 0:
        return [int(quota) / int(period)]
    return []


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
