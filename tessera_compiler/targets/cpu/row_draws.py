"""Draws tokens from rows of logits, or finds those that may be drawn: the export `tessera_draw`, and all threads of a
step on many rows (docs/spec/program.md, "Draws").

The sums are those of `tessera_weigh`; all that follows is in float64, one addition after the other, as NumPy's `cumsum`
makes them. So the token is the one that who has only `tessera_weigh` finds.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from tessera_compiler.targets.cpu.emission import FLOAT, I8, I64, POINTER, Emission, i64
from tessera_compiler.targets.cpu.row_nucleus import NucleusSearch, Row
from tessera_compiler.targets.cpu.step_protocol import StepProtocol
from tessera_compiler.targets.cpu.vector_math import VectorMath
from tessera_compiler.targets.cpu.weighing import RUN, RowWeights, void_function

DRAW = "tessera_draw"
DRAW_BYTES = 64
"""A draw takes so many bytes, a cache line of its own, because threads write their tokens at the same time."""
FIELDS: dict[str, tuple[int, ir.Type]] = {
    "logits": (0, POINTER),
    "sums": (8, POINTER),
    "count": (16, I64),
    "uniform": (24, ir.DoubleType()),
    "peak": (32, FLOAT),
    "scale": (36, FLOAT),
    "token": (40, I64),
    "share": (48, ir.DoubleType()),
    "ids": (56, POINTER),
}
"""Name of a field of a draw → its offset and type."""

_DOUBLE = ir.DoubleType()


def add_draws(module: ir.Module, functions: VectorMath, protocol: StepProtocol) -> ir.Function:
    """Adds `tessera_draw`; returns the function by which the threads of a step share the draws of its context."""
    one = _add_one(module, functions)
    exported = void_function(module, ir.FunctionType(ir.VoidType(), [POINTER, I64, POINTER]), DRAW)
    emission = Emission(exported)
    draws, count, scratch = exported.args
    emission.loop(i64(0), count, 1, lambda index: _call(emission.builder, one, draws, index, scratch))
    emission.finish()
    return _add_shared(module, one, protocol)


def _call(builder: ir.IRBuilder, one: ir.Function, draws: ir.Value, index: ir.Value, scratch: ir.Value) -> None:
    place = builder.mul(index, i64(DRAW_BYTES))
    builder.call(one, [builder.gep(draws, [place], inbounds=True, source_etype=I8), scratch])


def _add_shared(module: ir.Module, one: ir.Function, protocol: StepProtocol) -> ir.Function:
    """void (ptr context, i64 thread): every thread takes one draw after the other."""
    function = void_function(module, ir.FunctionType(ir.VoidType(), [POINTER, I64]), "tessera.draws")
    function.linkage = "internal"
    context, thread = function.args
    entry, take, work, done = (function.append_basic_block(name) for name in ("entry", "take", "work", "done"))
    builder = ir.IRBuilder(entry)
    draws, count = protocol.load(builder, context, "draws"), protocol.load(builder, context, "draw_count")
    stride = protocol.load(builder, context, "draw_scratch_bytes")
    scratches = protocol.load(builder, context, "draw_scratch")
    scratch = builder.gep(scratches, [builder.mul(thread, stride)], inbounds=True, source_etype=I8)
    builder.branch(take)
    builder.position_at_end(take)
    index = protocol.claim(builder, context, 0, 1)
    builder.cbranch(builder.icmp_signed("<", index, count), work, done)
    builder.position_at_end(work)
    _call(builder, one, draws, index, scratch)
    builder.branch(take)
    builder.position_at_end(done)
    builder.ret_void()
    return function


def _add_one(module: ir.Module, functions: VectorMath) -> ir.Function:
    """void (ptr draw, ptr scratch)"""
    function = void_function(module, ir.FunctionType(ir.VoidType(), [POINTER, POINTER]), "tessera.draw_row")
    function.linkage = "internal"
    set.add(function.attributes, "noinline")
    emission = Emission(function)
    builder = emission.builder
    draw, scratch = function.args

    def field(name: str) -> ir.Value:
        offset, kind = FIELDS[name]
        place = builder.gep(draw, [i64(offset)], inbounds=True, source_etype=I8)
        return builder.load(place, align=4 if kind is FLOAT else 8, typ=kind)

    def answer(token: ir.Value) -> None:
        place = builder.gep(draw, [i64(FIELDS["token"][0])], inbounds=True, source_etype=I8)
        builder.store(token, place, align=8)

    count, sums, ids = field("count"), field("sums"), field("ids")
    logits = field("logits")
    weighed = logits, field("peak"), field("scale")
    runs = builder.sdiv(builder.add(count, i64(RUN - 1)), i64(RUN))
    with builder.if_else(builder.icmp_unsigned("==", ids, ir.Constant(POINTER, None))) as (token, candidates):
        with token:
            row = Row(RowWeights(emission, functions, weighed), logits, count, sums, runs)
            row.weights.sum_runs(count, sums)
            answer(_token(emission, row, builder.fmul(field("uniform"), _total(emission, row))))
        with candidates:
            row = Row(RowWeights(emission, functions, weighed, scratch), logits, count, sums, runs)
            row.weights.sum_runs(count, sums)
            wanted = builder.fmul(field("share"), _total(emission, row))
            answer(NucleusSearch(emission, row, scratch).emit(wanted, ids))
    emission.finish()
    return function


def _run_sum(emission: Emission, row: Row, run: ir.Value) -> ir.Value:
    return emission.builder.fpext(emission.load(emission.offset(row.sums, run, "f32"), FLOAT, 4), _DOUBLE)


def _total(emission: Emission, row: Row) -> ir.Value:
    """Of all runs, one after the other."""
    builder = emission.builder
    total = emission.allocate(_DOUBLE, 1)
    builder.store(ir.Constant(_DOUBLE, 0.0), total, align=8)

    def add(run: ir.Value) -> None:
        before = builder.load(total, align=8, typ=_DOUBLE)
        builder.store(builder.fadd(before, _run_sum(emission, row, run)), total, align=8)

    emission.loop(i64(0), row.runs, 1, add)
    return builder.load(total, align=8, typ=_DOUBLE)


def _token(emission: Emission, row: Row, point: ir.Value) -> ir.Value:
    """The one at which the sum of weights passes `point`."""
    builder = emission.builder
    # Where rounding leaves the point beyond all: the last run that made the sum larger, the last weight but zero.
    run, before = _pass(
        emission,
        row.runs,
        point,
        lambda run: _run_sum(emission, row, run),
        lambda _, end, after: builder.fcmp_ordered("!=", end, after),
    )
    first = builder.mul(run, i64(RUN))
    left = builder.sub(row.count, first)
    length = builder.select(builder.icmp_signed("<", left, i64(RUN)), left, i64(RUN))

    def weight(place: ir.Value) -> ir.Value:
        single = emission.extract(row.weights.weigh(builder.add(first, place), 1), 0)
        return builder.fpext(single, _DOUBLE)

    zero = ir.Constant(_DOUBLE, 0.0)
    rest = builder.fsub(point, before)
    within, _ = _pass(emission, length, rest, weight, lambda amount, *_: builder.fcmp_ordered("!=", amount, zero))
    return builder.add(first, within)


def _pass(
    emission: Emission,
    count: ir.Value,
    point: ir.Value,
    amount: Callable[[ir.Value], ir.Value],
    counts: Callable[[ir.Value, ir.Value, ir.Value], ir.Value],
) -> tuple[ir.Value, ir.Value]:
    """The first index at which the sum of amounts passes `point`, and the sum before it; if there is none, the last
    that `counts`, which sees an amount, the sum before and the sum after it."""
    builder, function = emission.builder, emission.function
    start = builder.block
    head, look, following, done = (
        function.append_basic_block(f"pass.{name}") for name in ("head", "look", "go", "end")
    )
    zero = ir.Constant(_DOUBLE, 0.0)
    builder.branch(head)

    builder.position_at_end(head)
    index, end = builder.phi(I64), builder.phi(_DOUBLE)
    last, last_before = builder.phi(I64), builder.phi(_DOUBLE)
    for value, first in ((index, i64(0)), (end, zero), (last, i64(0)), (last_before, zero)):
        value.add_incoming(first, start)
    builder.cbranch(builder.icmp_signed("<", index, count), look, done)

    builder.position_at_end(look)
    found = amount(index)
    after = builder.fadd(end, found)
    counted = counts(found, end, after)
    now, now_before = builder.select(counted, index, last), builder.select(counted, end, last_before)
    builder.cbranch(builder.fcmp_ordered(">", after, point), done, following)

    builder.position_at_end(following)
    index.add_incoming(builder.add(index, i64(1)), following)
    end.add_incoming(after, following)
    last.add_incoming(now, following)
    last_before.add_incoming(now_before, following)
    builder.branch(head)

    builder.position_at_end(done)
    chosen, before = builder.phi(I64), builder.phi(_DOUBLE)
    for value, none, passed in ((chosen, last, index), (before, last_before, end)):
        value.add_incoming(none, head)
        value.add_incoming(passed, look)
    return chosen, before
