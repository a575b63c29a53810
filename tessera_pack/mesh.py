"""The device mesh a package is built for, as `--mesh "tp=1,pp=1,dp=1"` spells it."""

from __future__ import annotations

import re

from tessera_pack.errors import MeshInvalid
from tessera_runtime.package.manifest import Mesh

AXES = ("tp", "pp", "dp")


def parse_mesh(text: str, targets: tuple[str, ...]) -> Mesh:
    """Reads a mesh; axes that are not named are 1. Raises `MeshInvalid` if it does not parse or a target
    cannot do it.
    """
    sizes = dict.fromkeys(AXES, 1)
    seen: set[str] = set()
    for part in text.split(","):
        axis, equals, number = (piece.strip() for piece in part.partition("="))
        if axis not in AXES or not equals or not re.fullmatch("[1-9][0-9]{0,4}", number):
            raise MeshInvalid(
                f"A mesh is written like 'tp=1,pp=1,dp=1', with whole numbers from 1 to 99999; found {text[:80]!r}.",
                hint="Leave --mesh out for a single device.",
            )
        if axis in seen:
            raise MeshInvalid(f"The mesh {text!r} names the axis {axis!r} twice.", hint="Name each axis once.")
        seen.add(axis)
        sizes[axis] = int(number)
    if sizes["tp"] * sizes["pp"] > 1 and "cpu" in targets:
        raise MeshInvalid(
            f"The target cpu runs a model on one machine, so tp and pp must be 1; found {text!r}.",
            hint="Use --mesh tp=1,pp=1; dp is free, it says how many instances are served.",
        )
    return Mesh(tp=sizes["tp"], pp=sizes["pp"], dp=sizes["dp"])
