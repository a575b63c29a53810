"""What the table test of Tile IR is made of: kernels, what they are run on, and how far a target may be off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from tessera_compiler.targets.reference.interpreter import run_kernel
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.dialect import KernelOp
from tessera_compiler.tile.types import buffer_type, numpy_dtype, round_to_bfloat16

Array = NDArray[Any]
EPSILON = 2.0**-23

SHAPES = ((5, 1, 7), (4, 5, 6), (6, 16, 8), (3, 17, 4), (1, 100, 3), (2, 260, 3))
"""Rows and columns of a tile, and tokens of the step: whole and ragged in every direction."""

SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-45, -1e-45, 1e-38, -3e-39, 3e38, -3e38, np.inf, -np.inf, np.nan], np.float32
)


@dataclass
class Case:
    """A kernel, its buffers, and the error that a target may make."""

    kernel: KernelOp
    buffers: list[Array]
    tokens: int
    logit_rows: int = 0
    table_width: int = 0
    tiles: int = 0
    budget: float = 0.0
    """Largest error relative to the result (absolute where that is below one), in units of 2^-23; 0: same bits."""
    bounds: dict[int, Array] = field(default_factory=dict)
    """Instead of the budget, the largest absolute error of each element of a buffer."""
    signed_zeros: bool = True
    """Whether the sign of a zero is part of the result."""

    def expected(self) -> list[Array]:
        buffers = [np.array(buffer) for buffer in self.buffers]
        sizes = {"logit_rows": self.logit_rows, "table_width": self.table_width, "tiles": self.tiles}
        run_kernel(self.kernel, buffers, tokens=self.tokens, **sizes)
        return buffers

    def check(self, found: Sequence[Array]) -> None:
        """Compares what a target left in the buffers with what the interpreter does."""
        for index, (wanted, got) in enumerate(zip(self.expected(), found, strict=True)):
            wrong = self._wrong(index, wanted, got)
            if wrong.any():
                place = tuple(int(axis[0]) for axis in np.nonzero(wrong))
                raise AssertionError(
                    f"{self.kernel.symbol}, buffer {index}, element {place}: expected {wanted[place]!r}, found "
                    f"{got[place]!r}; {int(wrong.sum())} of {wrong.size} elements are beyond the budget"
                )

    def _wrong(self, index: int, wanted: Array, got: Array) -> Array:
        assert wanted.dtype == got.dtype and wanted.shape == got.shape
        if wanted.dtype != np.float32:
            return wanted != got
        same = (wanted.view(np.uint32) == got.view(np.uint32)) | (np.isnan(wanted) & np.isnan(got))
        if not self.signed_zeros:
            same |= (wanted == 0) & (got == 0)
        if index in self.bounds:
            allowed = self.bounds[index]
        else:
            with np.errstate(invalid="ignore"):
                allowed = self.budget * EPSILON * np.maximum(1.0, np.abs(wanted.astype(np.float64)))
        with np.errstate(invalid="ignore"):
            near = np.abs(wanted.astype(np.float64) - got.astype(np.float64)) <= allowed
        return np.asarray(~(same | (near & np.isfinite(wanted))))


def generator(*seed: object) -> np.random.Generator:
    """Random numbers that depend on nothing but these words."""
    return np.random.default_rng(list(repr(seed).encode()))


def padded(columns: int) -> int:
    return -(-columns // 16) * 16


def blank(rows: int, columns: int, element: str = "f32") -> Array:
    """A buffer with a pattern, so that what a kernel should not write is seen."""
    return np.full((rows, columns), 77, numpy_dtype(element))


def values_of(random: np.random.Generator, shape: tuple[int, int], element: str, special: bool = True) -> Array:
    """Elements of all magnitudes that the element type has, with the special ones of f32 among them."""
    if element == "i8":
        return random.integers(-128, 128, shape).astype(np.int8)
    if element == "u8":
        return random.integers(0, 256, shape).astype(np.uint8)
    if element == "i32":
        return random.integers(-(2**31), 2**31, shape).astype(np.int32)
    values = (random.standard_normal(shape) * 10.0 ** random.integers(-3, 4, shape)).astype(np.float32)
    if special:
        chosen = random.random(shape) < 0.3
        values = np.where(chosen, random.choice(SPECIAL, shape), values).astype(np.float32)
    return round_to_bfloat16(values) if element == "bf16" else values


def elementwise(
    symbol: str,
    shape: tuple[int, int, int],
    inputs: Sequence[tuple[str, Array]],
    body: Callable[..., SSAValue],
    result: str = "f32",
    **options: Any,
) -> Case:
    """One tile of each input (element, values [tokens, columns]) through `body(builder, *tiles)` to a buffer."""
    rows, columns, tokens = shape
    widths = [padded(values.shape[1]) for _, values in inputs] + [padded(columns)]
    buffers = [
        buffer_type([None, width], element)
        for width, element in zip(widths, [*[element for element, _ in inputs], result], strict=True)
    ]
    b = KernelBuilder(symbol, ["T" if rows == 1 else f"T/{rows}"], buffers)
    first = b.index("mul", b.program_id(0), rows)
    zero = b.constant(0)
    limit = b.tokens if rows > 1 else None
    tiles = [
        b.load(buffer, first, zero, (rows, values.shape[1]), limit=limit, row_step=1)
        for buffer, (_, values) in zip(b.buffers, inputs, strict=False)
    ]
    b.store(body(b, *tiles), b.buffers[-1], first, zero, limit=limit, row_step=1)
    data = []
    for width, (element, values) in zip(widths, inputs, strict=False):
        buffer = blank(tokens, width, element)
        buffer[:, : values.shape[1]] = values
        data.append(buffer)
    return Case(b.finish(), [*data, blank(tokens, padded(columns), result)], tokens, **options)
