"""The devices that packages can be built for, by the name of the target."""

from __future__ import annotations

from dataclasses import dataclass

from tessera_compiler.errors import CompileError
from tessera_compiler.targets.triton.functions import FLOAT8, HALVED_FLOAT8


class UnknownTarget(CompileError):
    """No device of this name is known; the message lists those that are."""


@dataclass(frozen=True)
class Architecture:
    """One kind of device as Triton and the runtime see it."""

    target: str
    backend: str
    """`cuda` or `hip`."""
    arch: int | str
    """What Triton calls it: a compute capability, or the name of an instruction set."""
    warp_size: int
    shared_bytes: int
    """The most shared memory that a block may ask for."""
    driver: int
    """The oldest driver that reads its code objects, as `cuDriverGetVersion` counts; 0: any."""
    dependent: bool = False
    """Whether a launch may start before the one before it has ended, and wait for it on the device."""
    float8: str | None = FLOAT8
    """What eight-bit floats are called whose products its matrix units make; None: they make none."""
    descriptors: bool = False
    """Whether it copies boxes of a tensor by a descriptor."""
    portable_ptx: bool = False
    """Whether its PTX is worth keeping: that of later architectures names one architecture and runs on no other."""

    @property
    def code_kind(self) -> str:
        return "cubin" if self.backend == "cuda" else "hsaco"


ONLY_FOR_DEVICES = ("fp16", "fp8")
"""Dtypes of weights that processors do not compute with."""

ARCHITECTURES: dict[str, Architecture] = {
    each.target: each
    for each in (
        Architecture("cuda-sm80", "cuda", 80, 32, 166_912, 12000, float8=None, portable_ptx=True),
        Architecture("cuda-sm90", "cuda", 90, 32, 232_448, 12000, dependent=True, descriptors=True),
        Architecture("cuda-sm100", "cuda", 100, 32, 232_448, 12080, dependent=True, descriptors=True),
        Architecture("cuda-sm120", "cuda", 120, 32, 101_376, 12080, dependent=True, descriptors=True),
        Architecture("hip-gfx942", "hip", "gfx942", 64, 65_536, 0, float8=HALVED_FLOAT8),
        Architecture("hip-gfx950", "hip", "gfx950", 64, 163_840, 0),
    )
}


def architecture_of(target: str) -> Architecture:
    """Raises `UnknownTarget` for a name that is none."""
    if target not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnknownTarget(f"Expected a device among {known}; found {target!r}. Choose the newest that yours runs.")
    return ARCHITECTURES[target]
