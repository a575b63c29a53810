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


def add_weigh(module: ir.Module, functions: VectorMath) -> None:
    """Adds `tessera_weigh` to the module of an object."""
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I64, FLOAT, FLOAT, POINTER, POINTER])
    function = ir.Function(module, kind, WEIGH)
    function.attributes.add("nounwind")
    # llvmlite's own check knows no string attribute.
    set.add(function.attributes, '"no-builtins"')
    emission = Emission(function)
    builder = emission.builder
    logits, count, peak, scale, weights, sums = function.args
    peaks, scales = emission.splat(peak), emission.splat(scale)
    exp2 = functions.function("exp2")

    def weigh(place: ir.Value, lanes: int) -> ir.Value:
        values = emission.load_lanes(emission.offset(logits, place, "f32"), "f32", lanes)
        found = builder.call(exp2, [builder.fmul(builder.fsub(values, peaks), scales)])
        emission.store_lanes(found, emission.offset(weights, place, "f32"), "f32", lanes)
        return found

    def whole_run(run: ir.Value) -> None:
        first = builder.mul(run, i64(RUN))
        parts = [weigh(builder.add(first, i64(start)), LANES) for start in range(0, RUN, LANES)]
        total = builder.fadd(builder.fadd(parts[0], parts[1]), builder.fadd(parts[2], parts[3]))
        total = emission.reduce_lanes(total, builder.fadd)
        builder.store(emission.extract(total, 0), emission.offset(sums, run, "f32"), align=4)

    runs = builder.sdiv(count, i64(RUN))
    emission.loop(i64(0), runs, 1, whole_run)
    rest = emission.allocate(FLOAT, 1)
    builder.store(ir.Constant(FLOAT, 0.0), rest, align=4)

    def one(place: ir.Value) -> None:
        before = emission.load(rest, FLOAT, 4)
        builder.store(builder.fadd(before, emission.extract(weigh(place, 1), 0)), rest, align=4)

    emission.loop(builder.mul(runs, i64(RUN)), count, 1, one)
    with builder.if_then(builder.icmp_signed("!=", builder.srem(count, i64(RUN)), i64(0))):
        builder.store(emission.load(rest, FLOAT, 4), emission.offset(sums, runs, "f32"), align=4)
    emission.finish()
