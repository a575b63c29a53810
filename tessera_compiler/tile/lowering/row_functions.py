"""Functions of whole rows as tile ops: the same for row kernels and, head by head, for the epilogues of linear maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xdsl.ir import SSAValue

from tessera_compiler.graph import dialect as graph
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.columns import Columns, Segment, common_segments


@dataclass(frozen=True)
class RowFunctions:
    """Functions of rows that are given as functions of their columns; a tile of several rows is computed row by row."""

    builder: KernelBuilder

    def map(self, operands: list[Columns], function: Callable[..., SSAValue]) -> Columns:
        width = max(operand.width for operand in operands)
        return Columns(
            width,
            lambda segment: function(*[operand.take(segment) for operand in operands]),
            common_segments(width, operands),
        )

    def unary(self, function: str, x: Columns) -> Columns:
        return self.map([x], lambda tile_: self.builder.unary(function, tile_))

    def binary(self, function: str, left: Columns, right: Columns) -> Columns:
        return self.map([left, right], lambda a, b: self.builder.binary(function, a, b))

    def reduce(self, function: str, x: Columns) -> SSAValue:
        """The sum or the largest of all columns: of each piece first, then of the pieces in order."""
        result: SSAValue | None = None
        for segment in x.segments:
            part = self.builder.reduce(function, x.take(segment))
            if result is None:
                result = part
            else:
                result = self.builder.binary({"sum": "add", "max": "maximum", "min": "minimum"}[function], result, part)
        assert result is not None
        return result

    def mean(self, x: Columns) -> Columns:
        total = self.builder.binary("mul", self.reduce("sum", x), 1 / x.width)
        return Columns(1, lambda _: total)

    def _scaled_to_unit(self, x: Columns, eps: float) -> Columns:
        """x / sqrt(mean(x^2) + eps)."""
        mean = self.mean(self.unary("square", x)).take(Segment(0, 1))
        inverse = self.builder.unary("rsqrt", self.builder.binary("add", mean, eps))
        return self.binary("mul", x, Columns(1, lambda _: inverse))

    def rms_norm(self, op: graph.RmsNormOp, x: Columns, weight: Columns | None) -> Columns:
        result = self._scaled_to_unit(x, op.values["eps"])
        if weight is None:
            return result
        return self.binary("mul", result, self._with_offset(weight, op.values["weight_offset"]))

    def _with_offset(self, weight: Columns, offset: float) -> Columns:
        if not offset:
            return weight
        shift = self.builder.full(offset)
        return self.binary("add", weight, Columns(1, lambda _: shift))

    def layer_norm(self, op: graph.LayerNormOp, x: Columns, parameters: Sequence[Columns]) -> Columns:
        centred = self.binary("sub", x, self.mean(x))
        result = self._scaled_to_unit(centred, op.values["eps"])
        for function, columns in zip(("mul", "add"), parameters, strict=False):
            if function == "mul":
                columns = self._with_offset(columns, op.values["weight_offset"])
            result = self.binary(function, result, columns)
        return result

    def softmax(self, x: Columns) -> Columns:
        largest = self.reduce("max", x)
        raised = self.unary("exp", self.binary("sub", x, Columns(1, lambda _: largest)))
        inverse = self.builder.unary("reciprocal", self.reduce("sum", raised))
        return self.binary("mul", raised, Columns(1, lambda _: inverse))

    def rope(self, op: graph.RopeOp, x: Columns, cos: Columns, sin: Columns) -> Columns:
        half = cos.width
        builder = self.builder
        pairs, rest = rope_pieces(op, x.width, half)

        def take(segment: Segment) -> SSAValue:
            if segment.first >= 2 * half:
                return x.take(segment)
            assert segment in pairs, "a rotary embedding is taken half by half"
            first, second = x.take(pairs[0]), x.take(pairs[1])
            table = Segment(0, half)
            c, s = cos.take(table), sin.take(table)
            if segment == pairs[0]:
                return builder.binary("sub", builder.binary("mul", first, c), builder.binary("mul", second, s))
            return builder.binary("add", builder.binary("mul", second, c), builder.binary("mul", first, s))

        return Columns(x.width, take, (*pairs, *rest))


def rope_pieces(op: graph.RopeOp, width: int, half: int) -> tuple[tuple[Segment, Segment], tuple[Segment, ...]]:
    """The two sets of columns that a rotary embedding turns into each other, and those that it leaves alone."""
    interleaved = op.interleaved is not None
    pairs = (Segment(0, half, 2), Segment(1, half, 2)) if interleaved else (Segment(0, half), Segment(half, half))
    return pairs, (Segment(2 * half, width - 2 * half),) if width > 2 * half else ()
