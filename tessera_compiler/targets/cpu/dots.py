"""Lowers `tile.dot`: register-blocked outer products, `k` ascending for every element of the result.

With a packed right operand one step of the loop reads 64 bytes of each panel: 16 outputs by one f32, two bf16, four
u8 or eight u4 of `k`, and multiplies them with 4 bytes of each left row, broadcast (u4: 4 bytes with the low halves,
then 4 with the high ones). Which instruction does so is all that differs between CPU classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from llvmlite import ir
from xdsl.dialects.builtin import MemRefType
from xdsl.ir import SSAValue

from tessera_compiler.targets.cpu.dots_of_panels import emit_panels
from tessera_compiler.targets.cpu.emission import FLOAT, I8, I16, I32, LANES, RawType, i64, vector
from tessera_compiler.tile import dialect
from tessera_compiler.tile.types import element_name, shape_of

if TYPE_CHECKING:
    from tessera_compiler.targets.cpu.kernel_lowering import KernelEmitter, Stored

BYTES_64 = ir.VectorType(I8, 64)
MOST_UNROLLED = 768
"""A dot with at most this many vector multiply-adds is unrolled over k."""

MOST_UNROLLED_PRODUCTS = 64
"""Products of vectors that the loop over k writes out before it goes round. Where nothing is left of the loop, LLVM
takes registers from the sums for loads that it moves up."""


class DotLowering:
    def __init__(self, kernel: KernelEmitter):
        self._kernel = kernel
        self._emission = kernel.emission

    def emit(self, operation: dialect.DotOp) -> Stored:
        if isinstance(operation.right.owner, dialect.LoadPackedOp):
            return self._emit_packed(operation, operation.right.owner)
        if isinstance(operation.right.owner, dialect.LoadPanelsOp):
            pair = (element_name(operation.left.type), element_name(operation.right.type))
            signed_weights = pair == ("u8", "i8")
            multiply = self._multiplier(("i8", "u8") if signed_weights else pair)
            multiply.signed_weights = signed_weights
            return emit_panels(self._kernel, operation, operation.right.owner, multiply)
        return self._emit_general(operation)

    # Any right operand: one row of it at a time

    def _emit_general(self, operation: dialect.DotOp) -> Stored:
        kernel, builder = self._kernel, self._emission.builder
        rows, depth = shape_of(operation.left.type)
        columns = shape_of(operation.right.type)[1]
        accumulator = self._start(operation)
        right_element = element_name(operation.right.type)

        def step(k: int | ir.Value) -> None:
            kernel.forget()
            for chunk in range(accumulator.chunks):
                column = chunk * LANES
                lanes = min(LANES, columns - column)
                values = kernel.chunk(operation.right, k, column, lanes)
                if right_element == "bf16":
                    values = self._emission.bfloat16_to_float(values)
                for row in range(rows):
                    left = self._emission.splat(self._left_scalar(operation.left, row, k))
                    slot = kernel.slot(accumulator, row, column)
                    so_far = self._emission.load(slot, vector("f32"), 4)
                    builder.store(self._emission.fma(left, values, so_far), slot, align=4)

        if rows * accumulator.chunks * depth <= MOST_UNROLLED:
            for k in range(depth):
                step(k)
        else:
            self._emission.loop(i64(0), i64(depth), 1, step)
        kernel.forget()
        return accumulator

    def _left_scalar(self, value: SSAValue, row: int, k: int | ir.Value) -> ir.Value:
        """One f32 of the left operand."""
        kernel, builder = self._kernel, self._emission.builder
        if value in kernel.stored:
            stored = kernel.stored[value]
            if isinstance(k, int):
                chunk = self._emission.load(kernel.slot(stored, row, k), vector("f32"), 4)
                return self._emission.extract(chunk, k % LANES)
            flat = builder.add(k, i64(row * stored.chunks * LANES))
            return self._emission.load(self._emission.element(stored.memory, FLOAT, flat), FLOAT, 4)
        assert isinstance(value.owner, dialect.LoadOp) and element_name(value.type) == "f32"
        return self._emission.load(kernel.address(value.owner, row, k), FLOAT, 4)

    # A right operand in a panel layout

    def _emit_packed(self, operation: dialect.DotOp, load: dialect.LoadPackedOp) -> Stored:
        kernel, builder = self._kernel, self._emission.builder
        assert isinstance(load.buffer.type, MemRefType)
        _, groups, _, packed = load.buffer.type.get_shape()
        rows = shape_of(operation.left.type)[0]
        depth, columns = shape_of(operation.right.type)
        panels = columns // LANES
        pair = (element_name(operation.left.type), element_name(operation.right.type))
        multiply = self._multiplier(pair)
        accumulator = self._start(operation)
        first = builder.udiv(kernel.scalars[load.n0], i64(LANES))
        first_group = builder.udiv(kernel.scalars[load.k0], i64(packed))
        base = builder.add(builder.mul(first, i64(groups)), first_group)
        weights = kernel.scalars[load.buffer]
        starts = [
            builder.gep(weights, [builder.mul(builder.add(base, i64(panel * groups)), i64(64))], True, source_etype=I8)
            for panel in range(panels)
        ]
        left = operation.left.owner
        assert isinstance(left, dialect.LoadOp), "the left operand of a packed dot is loaded from a buffer"
        lefts = [kernel.address(left, row, 0) for row in range(rows)]
        steps = -(-depth // packed)
        distance = kernel.prefetching.distance(load)
        passes = -(-panels // max(1, kernel.sums_in_registers // (rows * multiply.parts)))
        together = -(-panels // passes)
        for start in range(0, panels, together):
            chosen = range(start, min(start + together, panels))
            self._emit_pass(
                accumulator, multiply, [starts[panel] for panel in chosen], lefts, start, steps, pair[1], distance
            )
        kernel.forget()
        return accumulator

    def _emit_pass(
        self,
        accumulator: Stored,
        multiply: Multiplier,
        starts: list[ir.Value],
        lefts: list[ir.Value],
        first_panel: int,
        steps: int,
        element: str,
        distance: ir.Value | None,
    ) -> None:
        """All of k for as many panels as registers hold the sums of."""
        kernel, builder = self._kernel, self._emission.builder
        rows, panels = range(len(lefts)), range(len(starts))
        slots = [[kernel.slot(accumulator, row, (first_panel + panel) * LANES) for panel in panels] for row in rows]
        partial = [[self._emission.allocate(multiply.kind, multiply.parts) for _ in panels] for _ in rows]
        for row in rows:
            for panel in panels:
                start = self._emission.load(slots[row][panel], vector(accumulator.element), 4)
                multiply.begin(partial[row][panel], start)
        halves = 2 if element == "u4" else 1
        most = max(1, MOST_UNROLLED_PRODUCTS // (len(rows) * len(panels) * halves))
        unroll = next(n for n in range(min(most, steps), 0, -1) if steps % n == 0)

        def body(group: ir.Value) -> None:
            for extra in range(unroll):
                step = builder.add(group, i64(extra)) if extra else group
                at = builder.mul(step, i64(64))
                loaded = [
                    self._emission.load(builder.gep(start, [at], True, source_etype=I8), BYTES_64, 64)
                    for start in starts
                ]
                if distance is not None:
                    for start in starts:
                        soon = builder.gep(start, [builder.add(at, distance)], source_etype=I8)
                        self._emission.prefetch(soon)
                for half in range(halves):
                    values = [self._half(each, half) for each in loaded] if halves == 2 else loaded
                    offset = builder.add(builder.mul(step, i64(4 * halves)), i64(4 * half))
                    for row in rows:
                        where = builder.gep(lefts[row], [offset], True, source_etype=I8)
                        four_bytes = self._emission.load(where, I32, 4)
                        for panel in panels:
                            multiply.add(partial[row][panel], values[panel], four_bytes)

        self._emission.loop(i64(0), i64(steps), unroll, body)
        for row in rows:
            for panel in panels:
                builder.store(multiply.end(partial[row][panel]), slots[row][panel], align=4)

    def _half(self, loaded: ir.Value, half: int) -> ir.Value:
        """The low or the high four bits of each byte, as bytes."""
        builder = self._emission.builder
        if half:
            return builder.lshr(loaded, ir.Constant(BYTES_64, [ir.Constant(I8, 4)] * 64))
        return builder.and_(loaded, ir.Constant(BYTES_64, [ir.Constant(I8, 15)] * 64))

    def _multiplier(self, pair: tuple[str, str]) -> Multiplier:
        cpu_class = self._kernel.cpu_class
        if pair == ("f32", "f32"):
            return Multiplier(self._kernel)
        if pair == ("bf16", "bf16"):
            native = "+avx512bf16" in cpu_class.llvm_features
            return (NativeBfloat16 if native else WidenedBfloat16)(self._kernel)
        if pair in (("i8", "u8"), ("i8", "u4")):
            if "+avx512vnni" in cpu_class.llvm_features:
                return VectorNeuralNetwork(self._kernel)
            if "+i8mm" in cpu_class.llvm_features:
                return ArmMixedDot(self._kernel)
            return WidenedInteger(self._kernel)
        raise TypeError(f"no packed dot of {pair[0]} and {pair[1]} on a CPU")

    def _start(self, operation: dialect.DotOp) -> Stored:
        kernel = self._kernel
        stored = kernel.reserve(operation.accumulator)

        def put(row: int, column: int | ir.Value, lanes: int) -> None:
            value = kernel.chunk(operation.accumulator, row, column, lanes)
            self._emission.builder.store(value, kernel.slot(stored, row, column), align=4)

        rows, columns = shape_of(operation.accumulator.type)
        for row in range(rows):
            for column in range(0, columns, LANES):
                kernel.forget()
                put(row, column, min(LANES, columns - column))
        kernel.forget()
        return stored


class Multiplier:
    """How 64 bytes of a panel and 4 bytes of a row are multiplied and added: f32."""

    parts: ClassVar[int] = 1
    kind: ir.Type = vector("f32")
    signed_weights = False
    """Of bytes: whether the panel's have signs, and the row's none, rather than the other way round."""

    def __init__(self, kernel: KernelEmitter):
        self._emission = kernel.emission
        self._builder = kernel.emission.builder

    def begin(self, memory: ir.Value, value: ir.Value) -> None:
        self._builder.store(value, memory, align=4)

    def add(self, memory: ir.Value, weights: ir.Value, left: ir.Value) -> None:
        b = self._builder
        so_far = self._emission.load(memory, self.kind, 4)
        b.store(self.multiply(so_far, weights, left), memory, align=4)

    def end(self, memory: ir.Value) -> ir.Value:
        return self._emission.load(memory, self.kind, 4)

    def multiply(self, so_far: ir.Value, weights: ir.Value, left: ir.Value) -> ir.Value:
        b = self._builder
        return self._emission.fma(
            self._emission.splat(b.bitcast(left, FLOAT)), b.bitcast(weights, vector("f32")), so_far
        )


class WidenedBfloat16(Multiplier):
    """Pairs of bf16 as two f32 multiply-adds, the odd element of each pair first, as the native instruction does."""

    def multiply(self, so_far: ir.Value, weights: ir.Value, left: ir.Value) -> ir.Value:
        b = self._builder
        wide = b.bitcast(weights, vector("i32"))
        both = self._emission.splat(left)
        high = ir.Constant(vector("i32"), [ir.Constant(I32, 0xFFFF0000)] * LANES)
        sixteen = ir.Constant(vector("i32"), [ir.Constant(I32, 16)] * LANES)

        def as_float(value: ir.Value) -> ir.Value:
            return b.bitcast(value, vector("f32"))

        so_far = self._emission.fma(as_float(b.and_(both, high)), as_float(b.and_(wide, high)), so_far)
        return self._emission.fma(as_float(b.shl(both, sixteen)), as_float(b.shl(wide, sixteen)), so_far)


class NativeBfloat16(Multiplier):
    """AVX512-BF16."""

    def multiply(self, so_far: ir.Value, weights: ir.Value, left: ir.Value) -> ir.Value:
        b = self._builder
        pairs = RawType("<32 x bfloat>")
        broadcast = b.bitcast(self._emission.splat(left), pairs)
        arguments = [so_far, broadcast, b.bitcast(weights, pairs)]
        return self._emission.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", vector("f32"), arguments)


class VectorNeuralNetwork(Multiplier):
    """AVX512-VNNI: unsigned weights times signed activations, four products a lane."""

    kind: ir.Type = vector("i32")

    def multiply(self, so_far: ir.Value, weights: ir.Value, left: ir.Value) -> ir.Value:
        broadcast = self._builder.bitcast(self._emission.splat(left), BYTES_64)
        pair = [broadcast, weights] if self.signed_weights else [weights, broadcast]
        return self._emission.intrinsic("llvm.x86.avx512.vpdpbusd.512", self.kind, [so_far, *pair])


class WidenedInteger(Multiplier):
    """AVX2 without VNNI: sixteen-bit products, exact; pairs of lanes are added at the end."""

    parts: ClassVar[int] = 4
    kind: ir.Type = ir.VectorType(I32, 8)

    def begin(self, memory: ir.Value, value: ir.Value) -> None:
        zero = ir.Constant(I32, 0)
        for part in range(self.parts):
            lanes = [self._emission.extract(value, part * 4 + output) for output in range(4)]
            spread: ir.Value = ir.Constant(self.kind, [zero] * 8)
            for output, lane in enumerate(lanes):
                spread = self._builder.insert_element(spread, lane, ir.Constant(I32, output * 2))
            self._builder.store(spread, self._emission.element(memory, self.kind, part), align=4)

    def add(self, memory: ir.Value, weights: ir.Value, left: ir.Value) -> None:
        b = self._builder
        sixteen = ir.VectorType(I16, 16)
        four = b.bitcast(left, ir.VectorType(I8, 4))
        widen, widen_left = (b.sext, b.zext) if self.signed_weights else (b.zext, b.sext)
        activations = widen_left(self._emission.shuffle(four, [lane % 4 for lane in range(16)]), sixteen)
        for part in range(self.parts):
            chosen = self._emission.shuffle(weights, list(range(part * 16, part * 16 + 16)))
            products = self._emission.intrinsic(
                "llvm.x86.avx2.pmadd.wd", self.kind, [widen(chosen, sixteen), activations]
            )
            slot = self._emission.element(memory, self.kind, part)
            b.store(b.add(self._emission.load(slot, self.kind, 4), products), slot, align=4)

    def end(self, memory: ir.Value) -> ir.Value:
        b = self._builder
        sums = []
        for part in range(self.parts):
            value = self._emission.load(self._emission.element(memory, self.kind, part), self.kind, 4)
            even, odd = self._emission.shuffle(value, [0, 2, 4, 6]), self._emission.shuffle(value, [1, 3, 5, 7])
            sums.append(b.add(even, odd))
        low = self._emission.shuffle(sums[0], list(range(8)), sums[1])
        high = self._emission.shuffle(sums[2], list(range(8)), sums[3])
        return self._emission.shuffle(low, list(range(16)), high)


class ArmMixedDot(Multiplier):
    """Arm's USDOT: unsigned weights times signed activations, four outputs an instruction."""

    parts: ClassVar[int] = 4
    kind: ir.Type = ir.VectorType(I32, 4)

    def begin(self, memory: ir.Value, value: ir.Value) -> None:
        for part in range(self.parts):
            chosen = self._emission.shuffle(value, list(range(part * 4, part * 4 + 4)))
            self._builder.store(chosen, self._emission.element(memory, self.kind, part), align=4)

    def add(self, memory: ir.Value, weights: ir.Value, left: ir.Value) -> None:
        b = self._builder
        four = b.bitcast(left, ir.VectorType(I8, 4))
        activations = self._emission.shuffle(four, [lane % 4 for lane in range(16)])
        for part in range(self.parts):
            chosen = self._emission.shuffle(weights, list(range(part * 16, part * 16 + 16)))
            slot = self._emission.element(memory, self.kind, part)
            pair = [activations, chosen] if self.signed_weights else [chosen, activations]
            arguments = [self._emission.load(slot, self.kind, 4), *pair]
            product = self._emission.intrinsic("llvm.aarch64.neon.usdot.v4i32.v16i8", self.kind, arguments)
            b.store(product, slot, align=4)

    def end(self, memory: ir.Value) -> ir.Value:
        parts = [
            self._emission.load(self._emission.element(memory, self.kind, part), self.kind, 4)
            for part in range(self.parts)
        ]
        low = self._emission.shuffle(parts[0], list(range(8)), parts[1])
        high = self._emission.shuffle(parts[2], list(range(8)), parts[3])
        return self._emission.shuffle(low, list(range(16)), high)
