"""Decides which tokens the next step computes.

There is one idea: a sequence has tokens, of which some are computed, and each step hands out a budget of tokens. A
sequence that lacks one token is decoding, one that lacks more is in its prompt (or was preempted): there are no phases.

Each step serves, until the budget is spent: those that lack one token; then those that lack more, in parts if need
be; then those who wait, in order of lane and arrival. Who is admitted gets a seat and blocks for all tokens it has.
When one that runs needs a block and none is left, the youngest of the lowest lane is preempted: it gives up its blocks
and waits where it stood before. The first of the first lane is never preempted, so work always goes on; and nobody is
overtaken for ever (lanes.PATIENCE).

A prompt that begins like one that is being computed waits for it, so that the common part is computed once.

All orders are those of lists: the same calls give the same steps.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

from tessera_runtime.kvcache.block_pool import BlockPool, CacheCorrupt
from tessera_runtime.scheduler.lanes import PATIENCE, PREEMPTION_COUNTS, Lanes
from tessera_runtime.scheduler.sequence import NO_SEAT, Sequence


@dataclass(frozen=True)
class SchedulerLimits:
    """What a step and the machine can hold. `max_sequences` is at most `max_batch_tokens` and `max_rows`."""

    max_batch_tokens: int
    max_sequences: int
    max_rows: int
    """Rows of logits in one step."""
    block_tokens: int
    lane_seats: tuple[int, ...]
    """Sequences of each lane that may run at once."""
    prefix_reuse: bool = True


@dataclass(frozen=True)
class Work:
    """Compute `count` tokens of the sequence, from `start` (its `computed`) on."""

    sequence: Sequence
    start: int
    count: int

    @property
    def draws(self) -> bool:
        """Whether it computes the sequence's last token, so that the next can be drawn."""
        return self.start + self.count == len(self.sequence.tokens)


def _rank(sequence: Sequence) -> tuple[int, int]:
    """Who comes first. One that was overtaken or preempted too often is not preempted for others any more."""
    return (-1 if sequence.overtaken >= PATIENCE else sequence.lane, sequence.arrival)


class Scheduler:
    """`submit`, then again and again `schedule`, run the work, `complete`; `finish` ends a sequence between steps."""

    def __init__(self, limits: SchedulerLimits, pool: BlockPool) -> None:
        self._limits = limits
        self._pool = pool
        self._waiting = Lanes(len(limits.lane_seats))
        self._running: list[Sequence] = []  # by rank
        self._lane_running = [0] * len(limits.lane_seats)
        self._seats = list(range(limits.max_sequences - 1, -1, -1))
        self._promised: dict[bytes, Sequence] = {}  # blocks that somebody is about to compute
        self._arrivals = 0
        self.preemptions = 0
        self.prefix_queried_tokens = 0
        self.prefix_hit_tokens = 0

    @property
    def running(self) -> Ordered[Sequence]:
        return self._running

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, sequence: Sequence) -> None:
        """The sequence must fit the pool when it is alone, at its longest."""
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._waiting.add(sequence)

    def schedule(self) -> list[Work]:
        """The work of one step; empty only if nobody is there. It must be completed before the next call."""
        budget = self._limits.max_batch_tokens
        rows = self._limits.max_rows
        plan: list[Work] = []
        for sequence in list(self._running):
            # Ranks are ascending and the last is preempted, so nobody is preempted who is in the plan already.
            if sequence.running and sequence.missing == 1 and self._grow(sequence):
                plan.append(Work(sequence, sequence.computed, 1))
        budget -= len(plan)
        rows -= len(plan)
        for sequence in self._running:
            if sequence.missing > 1:
                rows, budget = self._plan_part(sequence, plan, rows, budget)
        self._admit(plan, rows, budget)
        return plan

    def complete(self, plan: Ordered[Work]) -> None:
        """The work was run: its keys and values are in the cache."""
        self.advance(plan)
        self.publish(plan)

    def advance(self, plan: Ordered[Work]) -> None:
        """The work was queued: whatever is queued after it finds its keys and values in the cache."""
        for work in plan:
            work.sequence.computed = work.start + work.count

    def publish(self, plan: Ordered[Work]) -> None:
        """The work was run and all its tokens are known: others may find its blocks."""
        if not self._limits.prefix_reuse:
            return
        block_tokens = self._limits.block_tokens
        for work in plan:
            sequence = work.sequence
            # One that was preempted since has given its blocks away, and perhaps begun again with others.
            full = min(work.start + work.count, sequence.computed) // block_tokens
            while sequence.published < full:
                key = sequence.key(sequence.published, block_tokens)
                self._pool.publish(sequence.blocks[sequence.published], key)
                self._promised.pop(key, None)
                sequence.published += 1

    def finish(self, sequence: Sequence, *, poisoned: bool = False) -> None:
        """Ends a sequence, waiting or running. What a `poisoned` one computed is not kept for others."""
        if not sequence.running:
            self._waiting.remove(sequence)
            return
        if poisoned:
            for block in sequence.blocks:
                self._pool.forget(block)
        self._leave(sequence)

    def check_integrity(self) -> None:
        """Raises `CacheCorrupt` if the books contradict one another."""
        running = self._running
        self._pool.check_integrity(sequence.blocks for sequence in running)
        seats = [sequence.seat for sequence in running]
        if sorted(seats + self._seats) != list(range(self._limits.max_sequences)):
            raise CacheCorrupt("A seat is lost or taken twice.")
        for lane, most in enumerate(self._limits.lane_seats):
            count = sum(sequence.lane == lane for sequence in running)
            if count != self._lane_running[lane] or count > most:
                raise CacheCorrupt(f"Lane p{lane} has {count} running, {self._lane_running[lane]} in the books.")
        if [_rank(sequence) for sequence in running] != sorted(map(_rank, running)):
            raise CacheCorrupt("Those who run are not in order.")
        for sequence in running:
            if not len(sequence.blocks) >= self._blocks_for(sequence.computed):
                raise CacheCorrupt(f"{sequence.name} has computed more than its blocks hold.")
        for queue in self._waiting.queues:
            if any(sequence.running or sequence.blocks or sequence.computed for sequence in queue):
                raise CacheCorrupt("Somebody waits and holds blocks or a seat.")
        if any(not sequence.running for sequence in self._promised.values()):
            raise CacheCorrupt("A block is promised by somebody who does not run.")

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._limits.block_tokens)

    def _grow(self, sequence: Sequence) -> bool:
        """Makes room for one more token, at the expense of those who come last. Whether the sequence still runs."""
        if self._blocks_for(sequence.computed + 1) <= len(sequence.blocks):
            return True
        while not self._pool.available:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.blocks += self._pool.allocate(1)
        return True

    def _plan_part(self, sequence: Sequence, plan: list[Work], rows: int, budget: int) -> tuple[int, int]:
        """Plans as much of a sequence as the budgets allow; returns what is left of them."""
        count = min(sequence.missing, budget)
        if sequence.every_row:
            count = min(count, rows)
        needed = count if sequence.every_row else int(count == sequence.missing)
        if count < 1 or needed > rows:
            return rows, budget
        plan.append(Work(sequence, sequence.computed, count))
        return rows - needed, budget - count

    def _admit(self, plan: list[Work], rows: int, budget: int) -> None:
        for lane in self._waiting.order():
            for sequence in list(self._waiting.queues[lane]):
                if budget < 1 or rows < 1 or not self._seats:
                    return
                if self._lane_running[lane] >= self._limits.lane_seats[lane]:
                    break
                if sequence.tokens[-1] < 0:
                    # Preempted while its last token is still being drawn; that is known before the next step.
                    continue
                found = self._cached_prefix(sequence)
                if self._is_promised(sequence, len(found)):
                    continue
                if not self._fits(sequence, found):
                    # Nobody may slip in behind: the space that comes free is for this one.
                    return
                self._enter(sequence, found)
                rows, budget = self._plan_part(sequence, plan, rows, budget)

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """The blocks of the first tokens that are in the cache; never of the last token, whose logits are wanted."""
        found: list[int] = []
        if self._limits.prefix_reuse and not sequence.every_row:
            size = self._limits.block_tokens
            for index in range((len(sequence.tokens) - 1) // size):
                block = self._pool.find(sequence.key(index, size))
                if block is None:
                    break
                found.append(block)
        return found

    def _is_promised(self, sequence: Sequence, cached: int) -> bool:
        """Whether somebody who runs is about to compute the block that this one lacks first."""
        size = self._limits.block_tokens
        if not self._promised or sequence.every_row or (cached + 1) * size >= len(sequence.tokens):
            return False
        return sequence.key(cached, size) in self._promised

    def _fits(self, sequence: Sequence, found: list[int]) -> bool:
        idle = sum(map(self._pool.is_idle, found))
        needed = self._blocks_for(len(sequence.tokens)) - len(found)
        # A block for each that runs, so that they need not preempt it at once; alone, everything is its own.
        return self._pool.available - idle >= needed + len(self._running)

    def _enter(self, sequence: Sequence, found: list[int]) -> None:
        size = self._limits.block_tokens
        self._waiting.remove(sequence)
        self._waiting.let_past(sequence.lane)
        for block in found:
            self._pool.hold(block)
        missing = self._blocks_for(len(sequence.tokens)) - len(found)
        sequence.blocks = found + self._pool.allocate(missing)
        sequence.computed = len(found) * size
        sequence.published = len(found)
        sequence.seat = self._seats.pop()
        sequence.synced = 0
        insort(self._running, sequence, key=_rank)
        self._lane_running[sequence.lane] += 1
        if self._limits.prefix_reuse:
            for index in range(len(found), len(sequence.tokens) // size):
                self._promised.setdefault(sequence.key(index, size), sequence)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
        self.prefix_queried_tokens += len(sequence.tokens)
        self.prefix_hit_tokens += sequence.computed

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.overtaken += PREEMPTION_COUNTS
        self._waiting.add(sequence)
        self.preemptions += 1

    def _leave(self, sequence: Sequence) -> None:
        del self._running[bisect_left(self._running, _rank(sequence), key=_rank)]
        self._lane_running[sequence.lane] -= 1
        for key in sequence.keys[sequence.published :]:
            if self._promised.get(key) is sequence:
                del self._promised[key]
        self._pool.release(sequence.blocks)
        self._seats.append(sequence.seat)
        sequence.seat = NO_SEAT
        sequence.blocks = []
        sequence.computed = 0
        sequence.published = 0
