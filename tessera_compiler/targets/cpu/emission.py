"""Small helpers over llvmlite's IR builder that the lowering of Tile IR is written with.

All vectors have sixteen lanes on every CPU class: LLVM splits them into what the registers hold. So the order of
every reduction, and with it every bit of the result, is the same on all classes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from llvmlite import ir

LANES = 16
I1 = ir.IntType(1)
I8 = ir.IntType(8)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
FLOAT = ir.FloatType()
POINTER = ir.PointerType()

SCALARS: dict[str, ir.Type] = {"f32": FLOAT, "bf16": I16, "i1": I1, "i8": I8, "u8": I8, "u4": I8, "i32": I32}
"""bfloat16 travels as its sixteen bits."""
CACHE_LINE = 64
SECOND_CACHE = 2
"""Where a waiting thread has weights brought: more of them than the first cache holds."""
SIZES = {"f32": 4, "bf16": 2, "i8": 1, "u8": 1, "i32": 4}


class RawType(ir.Type):
    """A type that llvmlite's IR layer has no class for, by its LLVM name."""

    def __init__(self, text: str):
        self._text = text

    def _to_string(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RawType) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


def vector(element: str) -> ir.VectorType:
    return ir.VectorType(SCALARS[element], LANES)


def i64(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def float_constant(value: float) -> ir.Constant:
    """The float32 nearest to `value` (llvmlite prints a double, which must be exactly a float)."""
    try:
        nearest = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        nearest = float("inf") if value > 0 else float("-inf")
    return ir.Constant(FLOAT, nearest)


def splat_constant(element: str, value: float | int) -> ir.Constant:
    scalar = float_constant(float(value)) if element == "f32" else ir.Constant(SCALARS[element], int(value))
    return ir.Constant(vector(element), [scalar] * LANES)


def emit_prefetch(builder: ir.IRBuilder, pointer: ir.Value, nearness: int) -> None:
    """See `Emission.prefetch`."""
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
    declared = builder.module.globals.get("llvm.prefetch.p0") or ir.Function(builder.module, kind, "llvm.prefetch.p0")
    read, data = ir.Constant(I32, 0), ir.Constant(I32, 1)
    builder.call(declared, [pointer, read, ir.Constant(I32, nearness), data])


class Emission:
    """A builder positioned in one function, with loops, intrinsics, and memory helpers."""

    def __init__(self, function: ir.Function):
        self.function = function
        self.module: ir.Module = function.module
        self._entry = function.append_basic_block("entry")
        self._allocations = ir.IRBuilder(self._entry)
        start = function.append_basic_block("start")
        self.builder = ir.IRBuilder(start)
        self._start = start

    def finish(self) -> None:
        self.builder.ret_void()
        self._allocations.branch(self._start)

    def intrinsic(self, name: str, result: ir.Type, arguments: list[ir.Value]) -> ir.Value:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        declared = self.module.globals.get(name)
        if declared is None:
            declared = ir.Function(self.module, kind, name)
        return self.builder.call(declared, arguments)

    def fma(self, left: ir.Value, right: ir.Value, addend: ir.Value) -> ir.Value:
        """left * right + addend, rounded once."""
        return self.intrinsic("llvm.fma.v16f32", vector("f32"), [left, right, addend])

    def allocate(self, type_: ir.Type, count: int) -> ir.Value:
        """Stack memory for `count` values; LLVM keeps it in registers when every index is a constant."""
        memory = self._allocations.alloca(ir.ArrayType(type_, count))
        memory.align = 64
        # llvmlite still gives allocations the type of what they hold; every pointer here is opaque.
        opaque = ir.instructions.CastInstr(self._entry, "bitcast", memory, POINTER)
        self._entry.instructions.append(opaque)
        self._allocations.position_at_end(self._entry)
        return opaque

    def element(self, array: ir.Value, type_: ir.Type, index: int | ir.Value) -> ir.Value:
        offset = i64(index) if isinstance(index, int) else index
        return self.builder.gep(array, [offset], inbounds=True, source_etype=type_)

    def load(self, pointer: ir.Value, type_: ir.Type, align: int) -> ir.Value:
        return self.builder.load(pointer, align=align, typ=type_)

    def prefetch(self, pointer: ir.Value, nearness: int = 3) -> None:
        """Asks for the cache line of `pointer`, whether or not there is memory: into the first cache (3) or the second
        (2)."""
        emit_prefetch(self.builder, pointer, nearness)

    def splat(self, scalar: ir.Value) -> ir.Value:
        kind = ir.VectorType(scalar.type, LANES)
        inserted = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        mask = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
        return self.builder.shuffle_vector(inserted, ir.Constant(kind, ir.Undefined), mask)

    def shuffle(self, value: ir.Value, lanes: list[int], other: ir.Value | None = None) -> ir.Value:
        mask = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
        return self.builder.shuffle_vector(value, other or ir.Constant(value.type, ir.Undefined), mask)

    def extract(self, value: ir.Value, lane: int) -> ir.Value:
        return self.builder.extract_element(value, ir.Constant(I32, lane))

    def loop(self, start: ir.Value, stop: ir.Value, step: int, body: Callable[[ir.Value], None]) -> None:
        """for index in range(start, stop, step), signed."""
        builder = self.builder
        before = builder.block
        head = self.function.append_basic_block("loop")
        inside = self.function.append_basic_block("body")
        after = self.function.append_basic_block("after")
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(I64)
        index.add_incoming(start, before)
        builder.cbranch(builder.icmp_signed("<", index, stop), inside, after)
        builder.position_at_end(inside)
        body(index)
        index.add_incoming(builder.add(index, i64(step)), builder.block)
        builder.branch(head)
        builder.position_at_end(after)

    def offset(self, pointer: ir.Value, elements: ir.Value | int, element: str) -> ir.Value:
        index = i64(elements) if isinstance(elements, int) else elements
        return self.builder.gep(pointer, [index], inbounds=True, source_etype=SCALARS[element])

    def load_lanes(self, pointer: ir.Value, element: str, lanes: int) -> ir.Value:
        """Reads `lanes` consecutive elements into the first lanes of a vector, touching no memory beyond them."""
        size = SIZES[element]
        if lanes == LANES:
            return self.load(pointer, vector(element), size)
        result: ir.Value = ir.Constant(vector(element), None)
        done = 0
        for width in (8, 4, 2, 1):
            if lanes & width:
                part = self.load(self.offset(pointer, done, element), ir.VectorType(SCALARS[element], width), size)
                widened = self.shuffle(part, [i if i < width else 0 for i in range(LANES)])
                select = [LANES + i - done if done <= i < done + width else i for i in range(LANES)]
                result = self.shuffle(result, select, widened)
                done += width
        return result

    def store_lanes(self, value: ir.Value, pointer: ir.Value, element: str, lanes: int) -> None:
        """Writes the first `lanes` lanes of a vector to consecutive elements."""
        size = SIZES[element]
        if lanes == LANES:
            self.builder.store(value, pointer, align=size)
            return
        done = 0
        for width in (8, 4, 2, 1):
            if lanes & width:
                part = self.shuffle(value, list(range(done, done + width)))
                self.builder.store(part, self.offset(pointer, done, element), align=size)
                done += width

    def reduce_lanes(self, value: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
        """Combines lanes in halves (8, 4, 2, 1); the result is in every lane."""
        width = LANES
        while width > 1:
            width //= 2
            upper = self.shuffle(value, [(lane + width) % LANES for lane in range(LANES)])
            value = combine(value, upper)
        return self.shuffle(value, [0] * LANES)

    def bfloat16_to_float(self, bits: ir.Value) -> ir.Value:
        wide = self.builder.zext(bits, ir.VectorType(I32, LANES))
        shifted = self.builder.shl(wide, ir.Constant(wide.type, [ir.Constant(I32, 16)] * LANES))
        return self.builder.bitcast(shifted, vector("f32"))

    def round_normal_to_bfloat16(self, value: ir.Value) -> ir.Value:
        """AVX512-BF16: as `float_to_bfloat16` where no number is subnormal."""
        bits = self.intrinsic("llvm.x86.avx512bf16.cvtneps2bf16.512", RawType("<16 x bfloat>"), [value])
        return self.builder.bitcast(bits, vector("bf16"))

    def float_to_bfloat16(self, value: ir.Value) -> ir.Value:
        """Round to nearest even with integer arithmetic, so that every class gives the same bits."""
        wide = ir.VectorType(I32, LANES)

        def constant(number: int) -> ir.Constant:
            return ir.Constant(wide, [ir.Constant(I32, number)] * LANES)

        b = self.builder
        bits = b.bitcast(value, wide)
        odd = b.and_(b.lshr(bits, constant(16)), constant(1))
        rounded = b.lshr(b.add(bits, b.add(odd, constant(0x7FFF))), constant(16))
        is_nan = b.fcmp_unordered("uno", value, value)
        kept = b.select(is_nan, constant(0x7FC0), rounded)
        return b.trunc(kept, vector("bf16"))
