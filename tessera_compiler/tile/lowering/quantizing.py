"""Quantization as tile ops: the same for row kernels and for the epilogues of linear maps."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tessera_compiler.tile.builder import KernelBuilder


def quantize_group(builder: KernelBuilder, columns: SSAValue) -> tuple[SSAValue, SSAValue, SSAValue]:
    """The results of `schedule.quantize` for the rows of a tile that is one group of columns: the numbers, still as
    f32, the scales, and the sums."""
    largest = builder.reduce("max", builder.unary("abs", columns))
    zero = builder.full(0.0)
    some = builder.compare("not_equal", largest, zero)
    inverse = builder.select(some, builder.binary("div", builder.full(127.0), largest), zero)
    rounded = builder.unary("round", builder.binary("mul", columns, inverse))
    scale = builder.binary("mul", largest, 1 / 127)
    return rounded, scale, builder.reduce("sum", builder.cast(rounded, "i32"))
