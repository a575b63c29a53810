"""Which GPU targets of a package a device can run, the best first (docs/spec/program-gpu.md, "Targets")."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tessera_runtime.executor.gpu.driver import Device

FAMILIES = ("cuda", "hip")
OWN_CODE_ONLY = 9
"""From this major capability on, code uses what one architecture alone has (`sm_90a`), and runs on no other minor."""
_CUDA = re.compile(r"cuda-sm([0-9]{1,2})([0-9])")


@dataclass(frozen=True)
class Fit:
    """A target that a device can run."""

    target: str
    compile_at_load: bool
    """Whether its code is for an older architecture, so that the driver compiles the PTX beside it, if there is any."""


def family_of(target: str) -> str | None:
    """`cuda`, `hip`, or None for what is no GPU's."""
    family = target.partition("-")[0]
    return family if family in FAMILIES and "-" in target else None


def fitting_targets(device: Device, targets: Iterable[str]) -> list[Fit]:
    """Targets whose code the device runs as it is come first, the closest before others."""
    if device.family == "hip":
        return [Fit(target, False) for target in targets if target == f"hip-{device.architecture}"]
    same: list[tuple[tuple[int, int], str]] = []
    others: list[tuple[tuple[int, int], str]] = []
    for target in targets:
        found = _CUDA.fullmatch(target)
        if found is None:
            continue
        capability = int(found[1]), int(found[2])
        if capability > device.capability:
            continue
        runs = capability == device.capability or capability[0] == device.capability[0] < OWN_CODE_ONLY
        (same if runs else others).append((capability, target))
    return [
        *(Fit(target, False) for _, target in sorted(same, reverse=True)),
        *(Fit(target, True) for _, target in sorted(others, reverse=True)),
    ]
