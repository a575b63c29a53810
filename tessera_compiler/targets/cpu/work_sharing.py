"""How the threads of a step share out the instances of a launch.

Each thread has a share of its own: instances that follow one another, whose weights therefore lie one behind the other
in memory. It takes them a portion at a time; a thread that is done with its share goes on with what is left of the
others', so that one which is disturbed holds nobody up for longer than a portion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from tessera_compiler.targets.cpu.emission import I64, i64

CLAIMS_PER_THREAD = 4
"""Into how many portions a thread's share of a launch is cut."""

CLAIMS_OF_TILES = 16
"""The same where instances cost what their context is long."""


@dataclass(frozen=True)
class Place:
    """Where the counters of a launch lie: each thread's with those of its other launches, away from other threads'."""

    counters: ir.Value
    per_thread: ir.Value
    index: ir.Value

    def of_thread(self, builder: ir.IRBuilder, thread: ir.Value) -> ir.Value:
        number = builder.add(builder.mul(thread, self.per_thread), self.index)
        return builder.gep(self.counters, [number], True, source_etype=I64)


def share_start(builder: ir.IRBuilder, total: ir.Value, thread: ir.Value, threads: ir.Value) -> ir.Value:
    """The first of `total` things that is a thread's; the share of the thread behind the last begins at `total`."""
    return builder.udiv(builder.mul(total, thread), threads)


def share_out(
    builder: ir.IRBuilder,
    place: Place,
    thread: ir.Value,
    threads: ir.Value,
    total: ir.Value,
    claims: int,
    run: Callable[[ir.Value, ir.Value], None],
) -> None:
    """Emits the loops; `run(first, last)` emits the work of the instances from `first` to before `last`."""
    names = ("owner", "claim", "take", "work", "next_owner", "done")
    blocks = {name: builder.append_basic_block(name) for name in names}
    entry = builder.block
    builder.branch(blocks["owner"])

    builder.position_at_end(blocks["owner"])
    offset = builder.phi(I64, "offset")
    offset.add_incoming(i64(0), entry)
    owner = builder.add(thread, offset)
    past = builder.icmp_signed(">=", owner, threads)
    owner = builder.select(past, builder.sub(owner, threads), owner)
    start = share_start(builder, total, owner, threads)
    size = builder.sub(share_start(builder, total, builder.add(owner, i64(1)), threads), start)
    portion = builder.udiv(builder.add(size, i64(claims - 1)), i64(claims))
    counter = place.of_thread(builder, owner)
    builder.branch(blocks["claim"])

    # Looked at before it is changed: at the end of most launches nothing is left of anybody's share.
    builder.position_at_end(blocks["claim"])
    taken = builder.load_atomic(counter, "monotonic", 8, typ=I64)
    builder.cbranch(builder.icmp_signed("<", taken, size), blocks["take"], blocks["next_owner"])

    builder.position_at_end(blocks["take"])
    first = builder.atomic_rmw("add", counter, portion, "monotonic")
    builder.cbranch(builder.icmp_signed("<", first, size), blocks["work"], blocks["next_owner"])

    builder.position_at_end(blocks["work"])
    end = builder.add(first, portion)
    last = builder.select(builder.icmp_signed("<", end, size), end, size)
    run(builder.add(start, first), builder.add(start, last))
    builder.branch(blocks["claim"])

    builder.position_at_end(blocks["next_owner"])
    following = builder.add(offset, i64(1))
    offset.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, threads), blocks["owner"], blocks["done"])
    builder.position_at_end(blocks["done"])
