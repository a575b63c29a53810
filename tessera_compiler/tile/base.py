"""What the ops of Tile IR share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from xdsl.dialects.builtin import IntegerAttr, i64
from xdsl.ir import Attribute
from xdsl.irdl import IRDLOperation
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.tile.types import shape_of

Array = NDArray[Any]


def integer(value: int) -> IntegerAttr[Any]:
    return IntegerAttr(value, i64)


def broadcast_shape(types: Sequence[Attribute]) -> tuple[int, int]:
    shapes = [shape_of(type_) for type_ in types]
    result = []
    for axis in range(2):
        sizes = {shape[axis] for shape in shapes} - {1}
        if len(sizes) > 1:
            raise VerifyException(f"tiles of shapes {shapes} do not broadcast; each axis must agree or be 1")
        result.append(sizes.pop() if sizes else 1)
    return result[0], result[1]


class TileOperation(IRDLOperation):
    """Base of the ops that compute values from values."""

    def evaluate(self, *operands: Any) -> tuple[Any, ...]:
        """The meaning of the op in NumPy; operands are arrays (tiles, buffers) or ints (index)."""
        raise TypeError(f"{self.name} is given its meaning by the interpreter, not by its operands alone")


def verify_type(what: str, found: Attribute, expected: Attribute) -> None:
    if found != expected:
        raise VerifyException(f"{what} must be {expected}; found {found}")
