"""What every native object shares: begin, step, worker, barrier (docs/spec/program.md, "The native object").

How a code generator uses it::

    module = ir.Module(); module.triple = cpu_class.triple
    protocol = StepProtocol(module, cpu_class.machine)
    body = protocol.declare_body()            # internal void @step_body(ptr %context, i64 %thread): fill in its blocks
    builder = ir.IRBuilder(body.append_basic_block())
    context, thread = body.args
    arena = protocol.load(builder, context, "arena")      # any field of CONTEXT_FIELDS; `ptr` or `i64`
    protocol.barrier(builder, context)        # between launches; every thread must pass the same barriers
    first = protocol.claim(builder, context, launch, count)   # i64: takes `count` work items, returns the first
    builder.ret_void()
    protocol.finish(body, abi=3)              # adds the four exports; a barrier that ends the step is added here

Every thread runs the body; a step ends when all have returned from it. The module then goes, as text, to
`object_code.compile_ir`.
"""

from __future__ import annotations

from llvmlite import ir

from tessera_compiler.targets.cpu.emission import CACHE_LINE, SECOND_CACHE, emit_prefetch

EXPORTS = ("tessera_abi", "tessera_begin", "tessera_step", "tessera_worker")

CONTEXT_FIELDS: dict[str, tuple[int, str]] = {
    "weights": (0, "pointer"),
    "arena": (8, "pointer"),
    "cache": (16, "pointer"),
    "token_ids": (24, "pointer"),
    "positions": (32, "pointer"),
    "sequences": (40, "pointer"),
    "block_tables": (48, "pointer"),
    "logit_rows": (56, "pointer"),
    "table_width": (64, "integer"),
    "tokens": (72, "integer"),
    "logit_count": (80, "integer"),
    "launch_limit": (88, "integer"),
    "counters": (96, "pointer"),
    "yield": (104, "pointer"),
    "threads": (112, "integer"),
    "stop": (120, "integer"),
    "timeline": (128, "pointer"),
    "tiles": (136, "pointer"),
    "tile_count": (144, "integer"),
    "draws": (152, "pointer"),
    "draw_count": (160, "integer"),
    "draw_scratch": (168, "pointer"),
    "draw_scratch_bytes": (176, "integer"),
    "arrived": (192, "integer"),
    "phase": (256, "integer"),
    "generation": (320, "integer"),
}
"""Name of a context field → its offset and kind."""

WORKER_STATE = 512
WORKER_STRIDE = 64
SPINS_BEFORE_YIELD = 2000
"""About 30 µs: longer than the wait at a balanced barrier, far shorter than a slice of the kernel's scheduler."""

LINES_PER_LOOK = 4
"""That a waiting thread prefetches before it looks again whether it must still wait."""

INTEGER = ir.IntType(64)
POINTER = ir.PointerType()
VOID = ir.VoidType()


class StepProtocol:
    """Builds the shared functions into one module."""

    def __init__(self, module: ir.Module, machine: str) -> None:
        """`machine` is "x86_64" or "aarch64"; it decides only which instruction a spinning thread pauses with."""
        self.module = module
        if machine == "x86_64":
            self._pause = self._declare("llvm.x86.sse2.pause", ir.FunctionType(VOID, []))
            self._pause_arguments: list[ir.Constant] = []
            self._ticks = self._declare("llvm.x86.rdtsc", ir.FunctionType(INTEGER, []))
        elif machine == "aarch64":
            # `isb` waits for some tens of cycles, which `yield` does not on most cores.
            self._pause = self._declare("llvm.aarch64.isb", ir.FunctionType(VOID, [ir.IntType(32)]))
            self._pause_arguments = [ir.Constant(ir.IntType(32), 15)]
            self._ticks = self._declare("llvm.readsteadycounter", ir.FunctionType(INTEGER, []))
        else:
            raise ValueError(f"expected machine x86_64 or aarch64, got {machine!r}")
        self._wait = self._build_wait()
        self._barrier = self._build_barrier()

    def declare_body(self) -> ir.Function:
        """The internal function `void @step_body(ptr context, i64 thread)`, without blocks."""
        body = self._declare("step_body", ir.FunctionType(VOID, [POINTER, INTEGER]))
        body.linkage = "internal"
        body.args[0].name, body.args[1].name = "context", "thread"
        return body

    def load(self, builder: ir.IRBuilder, context: ir.Value, field: str) -> ir.Instruction:
        """Reads a field that does not change during a step."""
        kind = INTEGER if CONTEXT_FIELDS[field][1] == "integer" else POINTER
        return builder.load(self.address(builder, context, field), name=field, align=8, typ=kind)

    def address(self, builder: ir.IRBuilder, context: ir.Value, field: str) -> ir.Value:
        return _offset(builder, context, _constant(CONTEXT_FIELDS[field][0]))

    def barrier(
        self, builder: ir.IRBuilder, context: ir.Value, wanted: ir.Value | None = None, end: ir.Value | None = None
    ) -> ir.Value:
        """Every thread waits until all have come here; memory written before is visible after.

        A thread that waits prefetches the lines from `wanted` to `end` meanwhile, and gets back how far it came.
        """
        nothing = ir.Constant(POINTER, None)
        return builder.call(self._barrier, [context, wanted or nothing, end or nothing])

    def note_time(self, builder: ir.IRBuilder, context: ir.Value, thread: ir.Value, launch: int) -> None:
        """Thread 0 writes the processor's time stamp to entry `launch` of the timeline, if there is one."""
        timeline = self.load(builder, context, "timeline")
        wanted = builder.icmp_unsigned("!=", timeline, ir.Constant(POINTER, None))
        first = builder.icmp_unsigned("==", thread, _constant(0))
        with builder.if_then(builder.and_(wanted, first), likely=False):
            ticks = builder.call(self._ticks, [])
            builder.store(ticks, _offset(builder, timeline, _constant(8 * launch)), align=8)

    def claim(self, builder: ir.IRBuilder, context: ir.Value, launch: int, count: ir.Value | int) -> ir.Instruction:
        """Takes the next `count` work items of launch `launch` for this thread and returns the first one's index.

        The result may lie past the end of the work: compare it with the number of items, then claim again or go on.
        """
        amount = _constant(count) if isinstance(count, int) else count
        counters = self.load(builder, context, "counters")
        return builder.atomic_rmw("add", _offset(builder, counters, _constant(8 * launch)), amount, "monotonic")

    def finish(self, body: ir.Function, abi: int, draws: ir.Function | None = None) -> None:
        """Adds `EXPORTS`, the whole interface of the object; `draws`, of the same kind, runs instead of the body
        where a context asks for draws."""
        served = self._build_served(body, draws)
        exported = self._declare("tessera_abi", ir.FunctionType(INTEGER, []))
        ir.IRBuilder(exported.append_basic_block("entry")).ret(_constant(abi))
        self._build_begin()
        self._build_step(served)
        self._build_worker(served)

    def _declare(self, name: str, kind: ir.FunctionType) -> ir.Function:
        function = ir.Function(self.module, kind, name)
        function.attributes.add("nounwind")
        return function

    def _build_wait(self) -> ir.Function:
        """Spins until *address != value* or the patience for one spin is over; returns what it saw last."""
        kind = ir.FunctionType(INTEGER, [POINTER, INTEGER])
        function = self._declare("tessera.spin", kind)
        function.linkage = "internal"
        function.attributes.add("noinline")
        address, value = function.args
        entry, look, pause, done = (function.append_basic_block(name) for name in ("entry", "look", "pause", "done"))
        builder = ir.IRBuilder(entry)
        builder.branch(look)
        builder.position_at_end(look)
        left = builder.phi(INTEGER, "left")
        left.add_incoming(_constant(SPINS_BEFORE_YIELD), entry)
        seen = builder.load_atomic(address, "acquire", 8, typ=INTEGER)
        changed = builder.icmp_unsigned("!=", seen, value)
        tired = builder.icmp_unsigned("==", left, _constant(0))
        builder.cbranch(builder.or_(changed, tired), done, pause)
        builder.position_at_end(pause)
        builder.call(self._pause, self._pause_arguments)
        left.add_incoming(builder.sub(left, _constant(1)), pause)
        builder.branch(look)
        builder.position_at_end(done)
        builder.ret(seen)
        return function

    def _yield(self, builder: ir.IRBuilder, context: ir.Value) -> None:
        kind = ir.PointerType(ir.FunctionType(VOID, []))
        builder.call(builder.load(self.address(builder, context, "yield"), align=8, typ=kind), [])

    def _build_barrier(self) -> ir.Function:
        """A counter and a phase. The last to arrive resets the counter, then opens the next phase."""
        function = self._declare("tessera.barrier", ir.FunctionType(POINTER, [POINTER, POINTER, POINTER]))
        function.linkage = "internal"
        function.attributes.add("noinline")
        context, wanted, end = function.args
        names = ("entry", "arrive", "last", "wait", "look", "work", "fetch", "pause", "give_up", "leave")
        entry, arrive, last, wait, look, work, fetch, pause, give_up, leave = (
            function.append_basic_block(name) for name in names
        )
        builder = ir.IRBuilder(entry)
        threads = self.load(builder, context, "threads")
        builder.cbranch(builder.icmp_unsigned("==", threads, _constant(1)), leave, arrive)
        builder.position_at_end(arrive)
        arrived, phase_address = self.address(builder, context, "arrived"), self.address(builder, context, "phase")
        phase = builder.load_atomic(phase_address, "monotonic", 8, typ=INTEGER)
        before = builder.atomic_rmw("add", arrived, _constant(1), "acq_rel")
        builder.cbranch(builder.icmp_unsigned("==", builder.add(before, _constant(1)), threads), last, wait)
        builder.position_at_end(last)
        builder.store(_constant(0), arrived, align=8)  # nobody else looks at it before the phase changes
        builder.atomic_rmw("xchg", phase_address, builder.add(phase, _constant(1)), "release")
        builder.branch(leave)

        builder.position_at_end(wait)
        start = builder.phi(POINTER, "start")
        start.add_incoming(wanted, arrive)
        builder.branch(look)
        builder.position_at_end(look)
        left, next_line = builder.phi(INTEGER, "left"), builder.phi(POINTER, "next_line")
        left.add_incoming(_constant(SPINS_BEFORE_YIELD), wait)
        next_line.add_incoming(start, wait)
        seen = builder.load_atomic(phase_address, "acquire", 8, typ=INTEGER)
        builder.cbranch(builder.icmp_unsigned("!=", seen, phase), leave, work)
        builder.position_at_end(work)
        tired = builder.icmp_unsigned("==", left, _constant(0))
        fewer = builder.sub(left, _constant(1))
        some = builder.icmp_unsigned("<", next_line, end)
        more = builder.select(tired, _constant(0), builder.select(some, _constant(1), _constant(2)))
        switch = builder.switch(more, give_up)
        switch.add_case(_constant(1), fetch)
        switch.add_case(_constant(2), pause)
        builder.position_at_end(fetch)
        for line in range(LINES_PER_LOOK):
            emit_prefetch(builder, _offset(builder, next_line, _constant(line * CACHE_LINE)), SECOND_CACHE)
        left.add_incoming(fewer, fetch)
        next_line.add_incoming(_offset(builder, next_line, _constant(LINES_PER_LOOK * CACHE_LINE)), fetch)
        builder.branch(look)
        builder.position_at_end(pause)
        builder.call(self._pause, self._pause_arguments)
        left.add_incoming(fewer, pause)
        next_line.add_incoming(next_line, pause)
        builder.branch(look)
        builder.position_at_end(give_up)
        self._yield(builder, context)
        start.add_incoming(next_line, give_up)
        builder.branch(wait)

        builder.position_at_end(leave)
        reached = builder.phi(POINTER, "reached")
        for block, value in ((entry, wanted), (last, wanted), (look, next_line)):
            reached.add_incoming(value, block)
        builder.ret(reached)
        return function

    def _build_served(self, body: ir.Function, draws: ir.Function | None) -> ir.Function:
        function = self._declare("tessera.served", ir.FunctionType(VOID, [POINTER, INTEGER]))
        function.linkage = "internal"
        function.attributes.add("noinline")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        if draws is None:
            builder.call(body, list(function.args))
        else:
            wanted = builder.icmp_signed("!=", self.load(builder, function.args[0], "draw_count"), _constant(0))
            with builder.if_else(wanted) as (then, otherwise):
                with then:
                    builder.call(draws, list(function.args))
                with otherwise:
                    builder.call(body, list(function.args))
        self.barrier(builder, function.args[0])
        builder.ret_void()
        return function

    def _build_begin(self) -> None:
        """Publishes a generation, then takes back the `parked` mark of every worker that had set it.

        A worker sets its mark, then looks at the generation once more. Both sides use sequentially consistent
        operations, so at least one of them sees the other; and the mark is taken back by exactly one of them, so no
        wake-up is lost or sent twice.
        """
        function = self._declare("tessera_begin", ir.FunctionType(INTEGER, [POINTER]))
        context = function.args[0]
        entry, head, each, done = (function.append_basic_block(name) for name in ("entry", "head", "each", "done"))
        builder = ir.IRBuilder(entry)
        threads = self.load(builder, context, "threads")
        builder.atomic_rmw("add", self.address(builder, context, "generation"), _constant(1), "seq_cst")
        builder.branch(head)
        builder.position_at_end(head)
        worker, bits = builder.phi(INTEGER, "worker"), builder.phi(INTEGER, "bits")
        worker.add_incoming(_constant(1), entry)
        bits.add_incoming(_constant(0), entry)
        builder.cbranch(builder.icmp_unsigned("<", worker, threads), each, done)
        builder.position_at_end(each)
        parked = builder.atomic_rmw("xchg", _worker_state(builder, context, worker), _constant(0), "seq_cst")
        worker.add_incoming(builder.add(worker, _constant(1)), each)
        bits.add_incoming(builder.or_(bits, builder.shl(parked, worker)), each)
        builder.branch(head)
        builder.position_at_end(done)
        builder.ret(bits)

    def _build_step(self, served: ir.Function) -> None:
        """Thread 0 notes the generation it has finished, from which an interrupted caller can tell what is left to
        do."""
        function = self._declare("tessera_step", ir.FunctionType(VOID, [POINTER]))
        context = function.args[0]
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        builder.call(served, [context, _constant(0)])
        finished = self.load(builder, context, "generation")
        builder.store(finished, _offset(builder, context, _constant(WORKER_STATE + 8)), align=8)
        builder.ret_void()

    def _build_worker(self, served: ir.Function) -> None:
        function = self._declare("tessera_worker", ir.FunctionType(VOID, [POINTER, INTEGER, INTEGER]))
        context, thread, patience = function.args
        names = ("entry", "listen", "serve", "idle", "give_up", "park", "recheck", "retract", "leave")
        blocks = {name: function.append_basic_block(name) for name in names}
        builder = ir.IRBuilder(blocks["entry"])
        parked = _worker_state(builder, context, thread)
        seen_address = _offset(builder, parked, _constant(8))
        generation, stop = self.address(builder, context, "generation"), self.address(builder, context, "stop")
        builder.branch(blocks["listen"])

        builder.position_at_end(blocks["listen"])
        yields = builder.phi(INTEGER, "yields")
        yields.add_incoming(_constant(0), blocks["entry"])
        seen = builder.load(seen_address, align=8, typ=INTEGER)
        published = builder.call(self._wait, [generation, seen])
        builder.cbranch(builder.icmp_unsigned("!=", published, seen), blocks["serve"], blocks["idle"])

        builder.position_at_end(blocks["serve"])
        builder.store(published, seen_address, align=8)
        builder.call(served, [context, thread])
        yields.add_incoming(_constant(0), blocks["serve"])
        builder.branch(blocks["listen"])

        builder.position_at_end(blocks["idle"])
        stopped = builder.load_atomic(stop, "acquire", 8, typ=INTEGER)
        builder.cbranch(builder.icmp_unsigned("!=", stopped, _constant(0)), blocks["leave"], blocks["give_up"])

        builder.position_at_end(blocks["give_up"])
        patient = builder.icmp_signed("<", yields, patience)
        with builder.if_then(patient):
            self._yield(builder, context)
            yields.add_incoming(builder.add(yields, _constant(1)), builder.block)
            builder.branch(blocks["listen"])
        builder.branch(blocks["park"])

        builder.position_at_end(blocks["park"])
        builder.atomic_rmw("xchg", parked, _constant(1), "seq_cst")
        builder.branch(blocks["recheck"])
        builder.position_at_end(blocks["recheck"])
        latest = builder.load_atomic(generation, "seq_cst", 8, typ=INTEGER)
        builder.cbranch(builder.icmp_unsigned("==", latest, seen), blocks["leave"], blocks["retract"])

        builder.position_at_end(blocks["retract"])
        mark = builder.cmpxchg(parked, _constant(1), _constant(0), "seq_cst", "seq_cst")
        # If `begin` took the mark, the caller has been told to wake this worker: leave, and be called again.
        yields.add_incoming(_constant(0), blocks["retract"])
        builder.cbranch(builder.extract_value(mark, 1), blocks["listen"], blocks["leave"])

        builder.position_at_end(blocks["leave"])
        builder.ret_void()


def _constant(value: int) -> ir.Constant:
    return ir.Constant(INTEGER, value)


def _offset(builder: ir.IRBuilder, pointer: ir.Value, offset: ir.Value) -> ir.Value:
    return builder.gep(pointer, [offset], inbounds=True, source_etype=ir.IntType(8))


def _worker_state(builder: ir.IRBuilder, context: ir.Value, worker: ir.Value) -> ir.Value:
    stride = builder.mul(worker, _constant(WORKER_STRIDE))
    return _offset(builder, context, builder.add(stride, _constant(WORKER_STATE)))
