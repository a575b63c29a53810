"""Writes the body of a step: every launch of a program in order, shared out among the threads."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tessera_compiler.targets.cpu.emission import I64, POINTER, i64
from tessera_compiler.targets.cpu.step_protocol import StepProtocol
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.lowering.chunk_sizes import CHUNK_BLOCKS
from tessera_compiler.tile.lowering.lower import LoweredProgram, Variant

CLAIMS_PER_THREAD = 4
"""Into how many portions a thread's share of a launch is cut: a disturbed thread leaves the rest of its share to the
others."""

CLAIMS_OF_TILES = 16
"""The same where instances cost what their context is long."""

I8 = ir.IntType(8)


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
        for index, (launch, name) in enumerate(zip(description["launches"], lowered.names, strict=True)):
            following = body.append_basic_block(f"launch{index}")
            leave = body.append_basic_block(f"leave{index}")
            within = builder.icmp_signed(">", fields["launch_limit"], i64(index))
            builder.cbranch(within, following, leave)
            builder.position_at_end(leave)
            builder.ret_void()
            builder.position_at_end(following)
            if launch["barrier"]:
                self._protocol.barrier(builder, context)
            self._protocol.note_time(builder, context, thread, index)
            pointers = [self._pointer(builder, argument, description, fields) for argument in launch["args"]]
            launcher = self._launcher(name, lowered.groups[name].variants[self._class], len(pointers))
            builder.call(launcher, [context, i64(index), *pointers])
        self._protocol.note_time(builder, context, thread, len(description["launches"]))
        builder.ret_void()
        return body

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
        """`void (context, launch index, pointers…)`: claims instances of the variant that fits until none are left."""
        if name in self._launchers:
            return self._launchers[name]
        function = ir.Function(
            self._module, ir.FunctionType(ir.VoidType(), [POINTER, I64] + [POINTER] * pointers), f"launch_{name}"
        )
        function.linkage = "internal"
        function.attributes.add("noinline")
        context, index = function.args[:2]
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
                    self._run(builder, variant, context, index, list(function.args[2:]), sizes)
                    builder.ret_void()
            else:
                self._run(builder, variant, context, index, list(function.args[2:]), sizes)
        builder.ret_void()
        self._launchers[name] = function
        return function

    def _run(
        self,
        builder: ir.IRBuilder,
        variant: Variant,
        context: ir.Value,
        index: ir.Value,
        pointers: list[ir.Value],
        sizes: list[ir.Value],
    ) -> None:
        self._claim_all(builder, variant.kernel, context, index, pointers, sizes)
        if variant.then is not None:
            self._protocol.barrier(builder, context)
            second = builder.add(index, i64(self._launches))
            self._claim_all(builder, variant.then, context, second, pointers, sizes)

    def _claim_all(
        self,
        builder: ir.IRBuilder,
        kernel: tile.KernelOp,
        context: ir.Value,
        index: ir.Value,
        pointers: list[ir.Value],
        sizes: list[ir.Value],
    ) -> None:
        tokens, logit_rows, width, threads, tiles = sizes
        total: ir.Value = i64(1)
        for entry in kernel.grid_entries:
            total = builder.mul(total, _grid_size(builder, entry, tokens, logit_rows, width, tiles))
        claims = CLAIMS_OF_TILES if "Q" in kernel.grid_entries else CLAIMS_PER_THREAD
        portions = builder.mul(threads, i64(claims))
        portion = builder.udiv(builder.add(total, builder.sub(portions, i64(1))), portions)
        portion = builder.select(builder.icmp_signed("<", portion, i64(1)), i64(1), portion)
        counters = self._protocol.load(builder, context, "counters")
        counter = builder.gep(counters, [index], True, source_etype=I64)
        claim = builder.append_basic_block("claim")
        work = builder.append_basic_block("work")
        done = builder.append_basic_block("done")
        builder.branch(claim)
        builder.position_at_end(claim)
        first = builder.atomic_rmw("add", counter, portion, "monotonic")
        builder.cbranch(builder.icmp_signed("<", first, total), work, done)
        builder.position_at_end(work)
        end = builder.add(first, portion)
        last = builder.select(builder.icmp_signed("<", end, total), end, total)
        builder.call(self._kernels[kernel.symbol], [*pointers, tokens, logit_rows, width, first, last])
        builder.branch(claim)
        builder.position_at_end(done)


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
