"""Which tokens of a row can be among the fewest heaviest that make up a share of all weights (docs/spec/program.md,
"Draws").

The border above which they lie is found bit by bit, from the highest down: of floats that are not negative the bits are
in the order of the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from tessera_compiler.targets.cpu.emission import FLOAT, I16, I32, I64, LANES, Emission, float_constant, i64, vector
from tessera_compiler.targets.cpu.weighing import RUN, RowWeights

MOST_CANDIDATES = 2048
SLACK = 1e-4
"""Tokens are chosen by sums of float32, so a little more generously than asked for."""
_HIGHEST_BIT, _LOWEST_BIT, _BITS = 29, 18, 2
"""Weights are 1 at most. Finer borders let fewer pass that do not count; so many bits are found in a pass over the row,
which lies in the second cache at best, so reading it takes longer than comparing."""
_DOUBLE = ir.DoubleType()
_VECTORS = RUN // LANES


@dataclass(frozen=True)
class Row:
    """A row that was weighed."""

    weights: RowWeights
    logits: ir.Value
    count: ir.Value
    sums: ir.Value
    """Of each run."""
    runs: ir.Value


class NucleusSearch:
    """Code that writes the ids of candidates, ascending, and their logits, and says how many there are; -1 if they are
    too many."""

    def __init__(self, emission: Emission, row: Row, weights: ir.Value) -> None:
        """`weights` are those of the row, in memory that has room for whole runs."""
        self._emission, self._row, self._weights = emission, row, weights
        self._bits = emission.allocate(I32, 1)
        self._sums = [emission.allocate(vector("f32"), _VECTORS) for _ in range(1, 1 << _BITS)]
        self._found = emission.allocate(I64, 1)

    def emit(self, wanted: ir.Value, ids: ir.Value) -> ir.Value:
        """`wanted` is the weight they must have together, as a double; behind `ids` is room for logits."""
        emission, builder = self._emission, self._emission.builder
        self._pad()
        generous = builder.fmul(wanted, ir.Constant(_DOUBLE, 1.0 + SLACK))
        border = self._border(generous)
        last = builder.fmul(border, float_constant(1.0 - SLACK))
        builder.store(i64(-1), self._found, align=8)
        with builder.if_then(builder.fcmp_ordered(">", last, float_constant(0.0))):
            builder.store(i64(0), self._found, align=8)
            emission.loop(i64(0), self._row.runs, 1, lambda run: self._look_at_run(run, last, ids))
        return emission.load(self._found, I64, 8)

    def _pad(self) -> None:
        emission, builder = self._emission, self._emission.builder
        end = builder.mul(self._row.runs, i64(RUN))
        nothing = float_constant(0.0)
        emission.loop(
            self._row.count,
            end,
            1,
            lambda place: builder.store(nothing, emission.offset(self._weights, place, "f32"), align=4),
        )

    def _border(self, wanted: ir.Value) -> ir.Value:
        """The largest number, but for its lowest bits, of which tokens of at least it weigh enough, or 0."""
        emission, builder = self._emission, self._emission.builder
        builder.store(ir.Constant(I32, 0), self._bits, align=4)

        def step(index: ir.Value) -> None:
            place = builder.sub(i64(_HIGHEST_BIT + 1 - _BITS), builder.mul(index, i64(_BITS)))
            shift = builder.trunc(place, I32)
            kept = before = emission.load(self._bits, I32, 4)
            tried = [builder.or_(before, builder.shl(ir.Constant(I32, n), shift)) for n in range(1, 1 << _BITS)]
            weights = self._weights_from([builder.bitcast(bits, FLOAT) for bits in tried])
            for bits, weight in zip(tried, weights, strict=True):
                kept = builder.select(builder.fcmp_ordered(">=", weight, wanted), bits, kept)
            builder.store(kept, self._bits, align=4)

        emission.loop(i64(0), i64((_HIGHEST_BIT + 1 - _LOWEST_BIT) // _BITS), 1, step)
        return builder.bitcast(emission.load(self._bits, I32, 4), FLOAT)

    def _weights_from(self, borders: list[ir.Value]) -> list[ir.Value]:
        """Of all tokens of at least each of these weights together, as doubles."""
        emission, builder = self._emission, self._emission.builder
        none = ir.Constant(vector("f32"), None)
        wide = [emission.splat(border) for border in borders]
        places = [[emission.element(sums, vector("f32"), index) for index in range(_VECTORS)] for sums in self._sums]
        for row in places:
            for place in row:
                builder.store(none, place, align=64)

        def add(run: ir.Value) -> None:
            for index in range(_VECTORS):
                weights = self._load(self._weights, run, index)
                for border, row in zip(wide, places, strict=True):
                    sums = emission.load(row[index], vector("f32"), 64)
                    heavy = builder.fcmp_ordered(">=", weights, border)
                    builder.store(builder.select(heavy, builder.fadd(sums, weights), sums), row[index], align=64)

        emission.loop(i64(0), self._row.runs, 1, add)
        return [self._total([emission.load(place, vector("f32"), 64) for place in row]) for row in places]

    def _total(self, sums: list[ir.Value]) -> ir.Value:
        emission, builder = self._emission, self._emission.builder
        total = builder.fadd(builder.fadd(sums[0], sums[1]), builder.fadd(sums[2], sums[3]))
        return builder.fpext(emission.extract(emission.reduce_lanes(total, builder.fadd), 0), _DOUBLE)

    def _load(self, values: ir.Value, run: ir.Value, index: int) -> ir.Value:
        builder = self._emission.builder
        place = builder.add(builder.mul(run, i64(RUN)), i64(index * LANES))
        return self._emission.load_lanes(self._emission.offset(values, place, "f32"), "f32", LANES)

    def _look_at_run(self, run: ir.Value, last: ir.Value, ids: ir.Value) -> None:
        """A token weighs no more than its run."""
        emission, builder = self._emission, self._emission.builder
        total = emission.load(emission.offset(self._row.sums, run, "f32"), FLOAT, 4)
        found = emission.load(self._found, I64, 8)
        heavy = builder.and_(builder.fcmp_ordered(">=", total, last), builder.icmp_signed(">=", found, i64(0)))
        with builder.if_then(heavy):
            fits = builder.icmp_signed("<=", found, i64(MOST_CANDIDATES - RUN))
            with builder.if_else(fits) as (then, otherwise):
                with then:
                    for index in range(_VECTORS):
                        self._write_ids(run, index, last, ids)
                with otherwise:
                    builder.store(i64(-1), self._found, align=8)

    def _write_ids(self, run: ir.Value, index: int, last: ir.Value, ids: ir.Value) -> None:
        emission, builder = self._emission, self._emission.builder
        heavy = builder.fcmp_ordered(">=", self._load(self._weights, run, index), emission.splat(last))
        some = builder.icmp_unsigned("!=", builder.bitcast(heavy, I16), ir.Constant(I16, 0))
        logits = emission.element(ids, I64, MOST_CANDIDATES)
        with builder.if_then(some):
            first = builder.add(builder.mul(run, i64(RUN)), i64(index * LANES))
            found = emission.load(self._found, I64, 8)
            for lane in range(LANES):
                # Written in any case, and kept if it counts: a branch would be guessed wrong too often.
                place = builder.add(first, i64(lane))
                builder.store(place, emission.element(ids, I64, found), align=8)
                inside = builder.select(builder.icmp_signed("<", place, self._row.count), place, first)
                logit = emission.load(emission.offset(self._row.logits, inside, "f32"), FLOAT, 4)
                builder.store(logit, emission.offset(logits, found, "f32"), align=4)
                found = builder.add(found, builder.zext(emission.extract(heavy, lane), I64))
            builder.store(found, self._found, align=8)
