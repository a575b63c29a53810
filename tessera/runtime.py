"""What this machine offers to run packages on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.packages import Module

BFLOAT16 = frozenset({"avx512_bf16", "bf16"})
INT8_DOT = frozenset({"avx512_vnni", "i8mm"})
"""Features that mark fast arithmetic, of x86-64 and of aarch64."""


@dataclass(frozen=True)
class Device:
    """Something that programs run on."""

    kind: str
    """`cpu`, `cuda` or `hip`."""
    name: str
    memory_bytes: int
    architecture: str = ""
    """Of a GPU, as targets spell it: `sm90`, `gfx942`."""


@dataclass(frozen=True)
class Capabilities:
    """What a router needs to know to place a model here; `tessera info` shows the same."""

    machine: str
    """`x86_64` or `aarch64`."""
    system: str
    processor: str
    classes: tuple[str, ...]
    """Machine classes whose code runs here, the least first."""
    features: tuple[str, ...]
    """Of the processor, those that decide how fast a model runs, under the names of /proc/cpuinfo."""
    backends: tuple[str, ...]
    """Targets of a package that this runtime executes, the fastest first."""
    abis: tuple[int, ...]
    """Program ABIs it reads (docs/spec/program.md)."""
    gpu_abis: tuple[int, ...]
    """Those of programs for GPUs (docs/spec/program-gpu.md)."""
    formats: tuple[int, ...]
    """Package formats it reads (docs/spec/tspkg.md)."""
    numerics: tuple[str, ...]
    cores: int
    """Cores this process may use: its affinity and its control group's quota."""
    physical_cores: int
    """Of those, how many have arithmetic units of their own: the default number of threads."""
    memory_bytes: int
    available_memory_bytes: int
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
        """Whether a package that `server.load_package` opened has a target and a class for this machine. Whether there
        is memory enough is another question: `tessera plan`."""
        return target_for(module) is not None


def capabilities() -> Capabilities:
    """Looks at the machine; takes a few milliseconds, and where there is a GPU as long as its driver needs to wake."""
    from tessera_runtime.observe.capabilities import capabilities as look

    facts = look()
    features = frozenset(facts["features"])
    return Capabilities(
        machine=facts["machine"],
        system=facts["system"],
        processor=facts["processor"],
        classes=tuple(facts["classes"]),
        features=tuple(facts["features"]),
        backends=tuple(facts["backends"]),
        abis=tuple(facts["abis"]),
        gpu_abis=tuple(facts["gpu_abis"]),
        formats=tuple(facts["formats"]),
        numerics=tuple(facts["numerics"]),
        cores=facts["cores"],
        physical_cores=facts["physical_cores"],
        memory_bytes=facts["memory_bytes"],
        available_memory_bytes=facts["available_memory_bytes"],
        bfloat16=bool(features & BFLOAT16),
        int8_dot=bool(features & INT8_DOT),
        mesh={"tp": 1, "pp": 1, "dp": 1},
        devices=(
            *(Device(**device) for device in facts["devices"]),
            Device("cpu", facts["processor"], facts["memory_bytes"]),
        ),
    )


def target_for(module: Module) -> tuple[str, str] | None:
    """The target, and its class or "", that this machine would run of a package; None if there is none."""
    from tessera_runtime.errors import AbiMismatch, TargetUnavailable
    from tessera_runtime.executor.cpu.processor import choose_class, read_processor
    from tessera_runtime.executor.gpu.discovery import found_devices
    from tessera_runtime.executor.gpu.opening import runnable_program
    from tessera_runtime.executor.gpu.targets import fitting_targets
    from tessera_runtime.loading import PREFERENCE
    from tessera_runtime.package.gpu_program_check import is_gpu_target

    names = [target.name for target in module.manifest.targets]
    # Without a target for any GPU no driver has to be asked.
    if any(is_gpu_target(name) for name in names):
        for device in found_devices():
            for fit in fitting_targets(device, names):
                try:
                    runnable_program(device, fit, module)
                except (TargetUnavailable, AbiMismatch):
                    continue
                return fit.target, ""
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
