"""Softmax weights of a row of logits and their sums, for who draws tokens: the export `tessera_weigh`
(docs/spec/program.md).

A draw needs the sum of all weights of a vocabulary. In NumPy that is four passes over the row; here it is one, with the
functions that the kernels compute with, so every CPU class gives the same bits.
"""

from __future__ import annotations

from llvmlite import ir

from tessera_compiler.targets.cpu.emission import FLOAT, I64, LANES, POINTER, Emission, i64
from tessera_compiler.targets.cpu.vector_math import VectorMath

WEIGH = "tessera_weigh"
RUN = 64
"""Weights that share a sum."""


class RowWeights:
    """Code that weighs one row: 2^((logit - peak) * scale)."""

    def __init__(
        self,
        emission: Emission,
        functions: VectorMath,
        row: tuple[ir.Value, ir.Value, ir.Value],
        weights: ir.Value | None = None,
    ) -> None:
        """`row` is where its logits are, its peak and the scale; `weights`, where weights are kept, if they are."""
        self._emission = emission
        self._exp2 = functions.function("exp2")
        self._logits = row[0]
        self._peaks, self._scales = emission.splat(row[1]), emission.splat(row[2])
        self._weights = weights

    def weigh(self, place: ir.Value, lanes: int) -> ir.Value:
        """The weights of `lanes` logits from `place` on."""
        emission, builder = self._emission, self._emission.builder
        values = emission.load_lanes(emission.offset(self._logits, place, "f32"), "f32", lanes)
        found = builder.call(self._exp2, [builder.fmul(builder.fsub(values, self._peaks), self._scales)])
        if self._weights is not None:
            emission.store_lanes(found, emission.offset(self._weights, place, "f32"), "f32", lanes)
        return found

    def sum_runs(self, count: ir.Value, sums: ir.Value) -> None:
        """Weighs all `count` and keeps the sum of each run. The order of additions is the same wherever this stands."""
        emission, builder = self._emission, self._emission.builder

        def whole_run(run: ir.Value) -> None:
            first = builder.mul(run, i64(RUN))
            parts = [self.weigh(builder.add(first, i64(start)), LANES) for start in range(0, RUN, LANES)]
            total = builder.fadd(builder.fadd(parts[0], parts[1]), builder.fadd(parts[2], parts[3]))
            total = emission.reduce_lanes(total, builder.fadd)
            builder.store(emission.extract(total, 0), emission.offset(sums, run, "f32"), align=4)

        runs = builder.sdiv(count, i64(RUN))
        emission.loop(i64(0), runs, 1, whole_run)
        rest = emission.allocate(FLOAT, 1)
        builder.store(ir.Constant(FLOAT, 0.0), rest, align=4)

        def one(place: ir.Value) -> None:
            before = emission.load(rest, FLOAT, 4)
            builder.store(builder.fadd(before, emission.extract(self.weigh(place, 1), 0)), rest, align=4)

        emission.loop(builder.mul(runs, i64(RUN)), count, 1, one)
        with builder.if_then(builder.icmp_signed("!=", builder.srem(count, i64(RUN)), i64(0))):
            builder.store(emission.load(rest, FLOAT, 4), emission.offset(sums, runs, "f32"), align=4)


def add_weigh(module: ir.Module, functions: VectorMath) -> None:
    """Adds `tessera_weigh` to the module of an object."""
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I64, FLOAT, FLOAT, POINTER, POINTER])
    function = void_function(module, kind, WEIGH)
    emission = Emission(function)
    logits, count, peak, scale, weights, sums = function.args
    RowWeights(emission, functions, (logits, peak, scale), weights).sum_runs(count, sums)
    emission.finish()


def void_function(module: ir.Module, kind: ir.FunctionType, name: str) -> ir.Function:
    """A function in which LLVM does not put calls of a C library, which no object has."""
    function = ir.Function(module, kind, name)
    function.attributes.add("nounwind")
    # llvmlite's own check knows no string attribute.
    set.add(function.attributes, '"no-builtins"')
    return function
