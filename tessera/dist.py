"""The mesh of devices that a program spans: tensor (tp), pipeline (pp) and data parallel (dp).

A mesh is a description and may have any size; `initialize` says whether this process can be part of it. The targets of
this version run a program on one device, so the world has one rank, and a collective over it gives back what it was
given. `dp` above 1 is reached by serving several instances (`instances` in tis.yaml), each with a world of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tessera.errors import MeshUnavailable
from tessera_runtime.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AXES = ("tp", "pp", "dp")
MAX_SIZE = 1 << 20
Reduction = Literal["sum", "max", "min"]


@dataclass(frozen=True)
class Mesh:
    """How many devices stand along each axis."""

    tp: int = 1
    pp: int = 1
    dp: int = 1

    def __post_init__(self) -> None:
        for axis in AXES:
            size = getattr(self, axis)
            if type(size) is not int or not 1 <= size <= MAX_SIZE:
                raise InvalidRequest(
                    f"The axis {axis} of a mesh must be an integer from 1 to {MAX_SIZE}, not {size!r}."
                )

    @classmethod
    def parse(cls, text: str) -> Mesh:
        """The mesh that `tp=2,pp=1,dp=1` spells; axes that are not named are 1."""
        sizes: dict[str, int] = {}
        for part in text.split(","):
            found = re.fullmatch(r"\s*(tp|pp|dp)\s*=\s*([0-9]{1,7})\s*", part)
            if found is None or found[1] in sizes:
                raise InvalidRequest(
                    f"A mesh is written like 'tp=2,pp=1,dp=1', each axis at most once; found {text!r}."
                )
            sizes[found[1]] = int(found[2])
        return cls(**sizes)

    @property
    def size(self) -> int:
        """Devices in all."""
        return self.tp * self.pp * self.dp

    @property
    def shape(self) -> Mapping[str, int]:
        """The size of each axis by its name, the slowest first."""
        return {"dp": self.dp, "pp": self.pp, "tp": self.tp}

    def coordinates(self, rank: int) -> Mapping[str, int]:
        """Where a rank stands: neighbours along `tp` have neighbouring ranks."""
        if type(rank) is not int or not 0 <= rank < self.size:
            raise InvalidRequest(f"The ranks of this mesh are 0 to {self.size - 1}; {rank!r} is none of them.")
        return {"dp": rank // (self.tp * self.pp), "pp": rank // self.tp % self.pp, "tp": rank % self.tp}

    def __str__(self) -> str:
        return f"tp={self.tp},pp={self.pp},dp={self.dp}"


def world_size() -> int:
    """Processes that compute one program together."""
    return 1


def rank() -> int:
    """Which of them this one is."""
    return 0


def initialize(mesh: Mesh | None = None) -> Mesh:
    """The mesh this process is part of, the one-device mesh if none is given. Raises `MeshUnavailable` for a larger."""
    wanted = mesh if mesh is not None else Mesh()
    if wanted.size != world_size():
        raise MeshUnavailable(
            f"The mesh {wanted} has {wanted.size} devices, but this process is alone: the targets of this version run a"
            " program on one device.",
            hint="Use Mesh(); to serve more users on one machine, set `instances` of the model in tis.yaml.",
        )
    return wanted


def all_reduce(values: NDArray[Any], *, axis: str = "tp", reduction: Reduction = "sum") -> NDArray[Any]:
    """The elementwise reduction over the ranks along an axis: a copy of `values`, as the only rank's part is all."""
    _check_axis(axis)
    if reduction not in ("sum", "max", "min"):
        raise InvalidRequest(f"reduction must be 'sum', 'max' or 'min', not {reduction!r}.")
    return _array(values).copy()


def all_gather(values: NDArray[Any], *, axis: str = "tp", dimension: int = 0) -> NDArray[Any]:
    """The parts of all ranks along an axis, joined along a dimension: a copy of the only rank's part."""
    _check_axis(axis)
    array = _array(values)
    _check_dimension(dimension, array)
    return array.copy()


def reduce_scatter(
    values: NDArray[Any], *, axis: str = "tp", dimension: int = 0, reduction: Reduction = "sum"
) -> NDArray[Any]:
    """This rank's part, along a dimension, of the reduction over an axis: with one rank, all of it."""
    _check_dimension(dimension, _array(values))
    return all_reduce(values, axis=axis, reduction=reduction)


def barrier() -> None:
    """Returns when every rank has come here; the only one has."""


def _array(values: NDArray[Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.asarray(values)


def _check_axis(axis: str) -> None:
    if axis not in AXES:
        raise InvalidRequest(f"The axes of a mesh are {', '.join(AXES)}; {axis!r} is none of them.")


def _check_dimension(dimension: int, array: NDArray[Any]) -> None:
    if not -array.ndim <= dimension < array.ndim:
        raise InvalidRequest(f"The array has {array.ndim} dimensions; there is no dimension {dimension}.")
