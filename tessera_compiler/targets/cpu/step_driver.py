"""Writes the body of a step: every launch of a program in order, shared out among the threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from xdsl.ir import BlockArgument

from tessera_compiler.targets.cpu.emission import CACHE_LINE, I8, I64, POINTER, i64
from tessera_compiler.targets.cpu.prefetching import panel_bytes
from tessera_compiler.targets.cpu.step_protocol import StepProtocol
from tessera_compiler.targets.cpu.work_sharing import CLAIMS_OF_TILES, CLAIMS_PER_THREAD, Place, share_out, share_start
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.lowering.chunk_sizes import CHUNK_BLOCKS
from tessera_compiler.tile.lowering.lower import LoweredProgram, Variant

PREFETCHED_WHILE_WAITING = 96 << 10
"""Bytes at most that a thread asks for before a launch begins: a small part of a second cache."""


@dataclass(frozen=True)
class Stream:
    """What the instances of a launch read one behind the other, each thread from its share on."""

    argument: str
    bytes: int


class StepDriver:
    """Emits `step_body` for one CPU class, given the lowered kernels by their symbols."""

    def __init__(self, protocol: StepProtocol, kernels: dict[str, ir.Function], cpu_class: str):
        self._protocol = protocol
        self._module = protocol.module
        self._kernels = kernels
        self._class = cpu_class
        self._launchers: dict[str, ir.Function] = {}
        self._launches = 0

    def emit(self, description: dict[str, Any], lowered: LoweredProgram) -> ir.Function:
        body = self._protocol.declare_body()
        builder = ir.IRBuilder(body.append_basic_block("entry"))
        context, thread = body.args
        self._launches = len(description["launches"])
        fields = {
            name: self._protocol.load(builder, context, name)
            for name in (
                "weights",
                "arena",
                "cache",
                "token_ids",
                "positions",
                "sequences",
                "block_tables",
                "logit_rows",
                "tiles",
                "tokens",
                "logit_count",
                "launch_limit",
            )
        }
        streams = [
            self._stream(launch, lowered.groups[name].variants[self._class])
            for launch, name in zip(description["launches"], lowered.names, strict=True)
        ]
        threads = self._protocol.load(builder, context, "threads")

        def wanted_after(index: int) -> tuple[ir.Value, ir.Value]:
            """The weights that this thread reads first behind launch `index`: from where, and up to where to fetch
            them while it waits."""
            stream = next(filter(None, (*streams[index + 1 :], *streams)), None)
            if stream is None:
                return ir.Constant(POINTER, None), ir.Constant(POINTER, None)
            start, size = share_start(builder, i64(stream.bytes), thread, threads), i64(PREFETCHED_WHILE_WAITING)
            share = builder.udiv(i64(stream.bytes), threads)
            size = builder.select(builder.icmp_signed("<", share, size), share, size)
            first = self._pointer(builder, stream.argument, description, fields)
            first = builder.gep(first, [builder.and_(start, i64(-CACHE_LINE))], True, source_etype=I8)
            return first, builder.gep(first, [size], True, source_etype=I8)

        wanted, end = wanted_after(-1)
        for index, (launch, name) in enumerate(zip(description["launches"], lowered.names, strict=True)):
            following = body.append_basic_block(f"launch{index}")
            leave = body.append_basic_block(f"leave{index}")
            within = builder.icmp_signed(">", fields["launch_limit"], i64(index))
            builder.cbranch(within, following, leave)
            builder.position_at_end(leave)
            builder.ret_void()
            builder.position_at_end(following)
            if launch["barrier"]:
                wanted = self._protocol.barrier(builder, context, wanted, end)
            if streams[index] is not None:
                wanted, end = wanted_after(index)
            self._protocol.note_time(builder, context, thread, index)
            pointers = [self._pointer(builder, argument, description, fields) for argument in launch["args"]]
            launcher = self._launcher(name, lowered.groups[name].variants[self._class], len(pointers))
            builder.call(launcher, [context, thread, i64(index), wanted, *pointers])
        self._protocol.note_time(builder, context, thread, len(description["launches"]))
        builder.ret_void()
        return body

    @staticmethod
    def _stream(launch: dict[str, Any], variants: tuple[Variant, ...]) -> Stream | None:
        """The weights of a launch that is a product; of several parts, which instances read side by side, the first."""
        kernel, blocking = variants[-1].kernel, variants[-1].blocking
        for op in kernel.walk():
            if isinstance(op, tile.DotOp) and isinstance(op.right.owner, tile.LoadPackedOp) and blocking is not None:
                weight, blocks = op.right.owner.buffer, kernel.grid_entries[1]
                assert isinstance(weight, BlockArgument) and isinstance(blocks, int)
                return Stream(launch["args"][weight.index], blocks * blocking.panels * panel_bytes(op.right.owner))
        return None

    def _pointer(
        self, builder: ir.IRBuilder, argument: str, description: dict[str, Any], fields: dict[str, ir.Value]
    ) -> ir.Value:
        kind, _, which = argument.partition(":")
        if kind == "input":
            return fields[which]
        if kind == "scratch":
            arena = description["arena"]
            place = builder.add(
                builder.mul(fields["tokens"], i64(arena["bytes_per_token"])),
                builder.mul(fields["logit_count"], i64(arena["bytes_per_logit_row"])),
            )
            return builder.gep(fields["arena"], [place], True, source_etype=I8)
        if kind == "weight":
            slot = builder.gep(fields["weights"], [i64(int(which))], True, source_etype=POINTER)
            return builder.load(slot, align=8, typ=POINTER)
        if kind == "buffer":
            offset = description["buffers"][int(which)]["offset"]
            place = builder.add(
                builder.mul(fields["tokens"], i64(offset["tokens"])),
                builder.mul(fields["logit_count"], i64(offset["logit_rows"])),
            )
            place = builder.add(place, i64(offset["bytes"]))
            return builder.gep(fields["arena"], [place], True, source_etype=I8)
        layer = description["cache"]["layers"][int(which)]
        offset = layer[kind.removeprefix("cache_") + "_offset"]
        return builder.gep(fields["cache"], [i64(offset)], True, source_etype=I8)

    def _launcher(self, name: str, variants: tuple[Variant, ...], pointers: int) -> ir.Function:
        """`void (context, thread, launch index, following weights, pointers…)`: runs instances of the variant that
        fits until none are
        left."""
        if name in self._launchers:
            return self._launchers[name]
        function = ir.Function(
            self._module,
            ir.FunctionType(ir.VoidType(), [POINTER, I64, I64, POINTER] + [POINTER] * pointers),
            f"launch_{name}",
        )
        function.linkage = "internal"
        function.attributes.add("noinline")
        context, thread, index, following = function.args[:4]
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        sizes = [
            self._protocol.load(builder, context, field)
            for field in ("tokens", "logit_count", "table_width", "threads", "tile_count")
        ]
        rows = sizes[1] if any(str(e).startswith("L") for e in variants[0].kernel.grid_entries) else sizes[0]
        for variant in variants:
            if variant.max_tokens:
                fits = builder.icmp_signed("<=", rows, i64(variant.max_tokens))
                if variant.min_width:
                    fits = builder.and_(fits, builder.icmp_signed(">=", sizes[2], i64(variant.min_width)))
                with builder.if_then(fits):
                    self._run(builder, variant, context, thread, index, following, list(function.args[4:]), sizes)
                    builder.ret_void()
            else:
                self._run(builder, variant, context, thread, index, following, list(function.args[4:]), sizes)
        builder.ret_void()
        self._launchers[name] = function
        return function

    def _run(
        self,
        builder: ir.IRBuilder,
        variant: Variant,
        context: ir.Value,
        thread: ir.Value,
        index: ir.Value,
        following: ir.Value,
        pointers: list[ir.Value],
        sizes: list[ir.Value],
    ) -> None:
        self._claim_all(builder, variant.kernel, context, thread, index, following, pointers, sizes)
        if variant.then is not None:
            self._protocol.barrier(builder, context)
            second = builder.add(index, i64(self._launches))
            self._claim_all(builder, variant.then, context, thread, second, following, pointers, sizes)

    def _claim_all(
        self,
        builder: ir.IRBuilder,
        kernel: tile.KernelOp,
        context: ir.Value,
        thread: ir.Value,
        index: ir.Value,
        following: ir.Value,
        pointers: list[ir.Value],
        sizes: list[ir.Value],
    ) -> None:
        tokens, logit_rows, width, threads, tiles = sizes
        total: ir.Value = i64(1)
        for entry in kernel.grid_entries:
            total = builder.mul(total, _grid_size(builder, entry, tokens, logit_rows, width, tiles))

        turn = share_start(builder, total, builder.add(thread, i64(1)), threads)

        def run(first: ir.Value, last: ir.Value) -> None:
            arguments = [*pointers, tokens, logit_rows, width, first, last, turn, following]
            builder.call(self._kernels[kernel.symbol], arguments)

        claims = CLAIMS_OF_TILES if "Q" in kernel.grid_entries else CLAIMS_PER_THREAD
        counters = self._protocol.load(builder, context, "counters")
        place = Place(counters, i64(2 * self._launches), index)
        share_out(builder, place, thread, threads, total, claims, run)


def _grid_size(
    builder: ir.IRBuilder, entry: str | int, tokens: ir.Value, logit_rows: ir.Value, width: ir.Value, tiles: ir.Value
) -> ir.Value:
    if isinstance(entry, int):
        return i64(entry)
    if entry == "C":
        entry = f"W/{CHUNK_BLOCKS}"
    symbol, _, divisor = entry.partition("/")
    value = {"T": tokens, "L": logit_rows, "W": width, "Q": tiles}[symbol]
    if not divisor:
        return value
    return builder.udiv(builder.add(value, i64(int(divisor) - 1)), i64(int(divisor)))
