"""Quantization as tile ops: the same for row kernels and for the epilogues of linear maps."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tessera_compiler.tile.builder import KernelBuilder


def quantize_group(builder: KernelBuilder, columns: SSAValue) -> tuple[SSAValue, SSAValue, SSAValue]:
    """The results of `schedule.quantize` for the rows of a tile that is one group of columns: the numbers, still as
    f32, the scales, and the sums."""
    inverse, scale = scales_of(builder, builder.reduce("max", builder.unary("abs", columns)))
    rounded = builder.unary("round", builder.binary("mul", columns, inverse))
    return rounded, scale, builder.reduce("sum", builder.cast(rounded, "i32"))


def scales_of(builder: KernelBuilder, largest: SSAValue) -> tuple[SSAValue, SSAValue]:
    """What rows are multiplied with to become numbers up to 127, and what these are multiplied with to become the rows
    again; `largest` is the largest magnitude of each row."""
    zero = builder.full(0.0)
    some = builder.compare("not_equal", largest, zero)
    inverse = builder.select(some, builder.binary("div", builder.full(127.0), largest), zero)
    return inverse, builder.binary("mul", largest, 1 / 127)
