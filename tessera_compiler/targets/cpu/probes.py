"""What this machine can do at best, measured by the object itself: the export `tessera_probe` (docs/spec/program.md).

A kernel's time says little until it stands beside what the memory and the arithmetic units allow. Packages run where
there is no compiler, so every object brings loops that do nothing but read, or nothing but multiply and add with the
instruction that the dots of its class use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from tessera_compiler.targets.cpu.emission import FLOAT, I8, I16, I32, I64, POINTER, RawType, i64
from tessera_compiler.targets.cpu.object_code import CpuClass

PROBE = "tessera_probe"
KINDS = ("read", "f32", "bf16", "u8")
"""The number of a kind, the first argument, is its place here."""

READ_BYTES = 1024
"""What `read` reads is a multiple of this long."""
STREAMS = 4
UNROLLED = 4

Multiply = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value], ir.Value]


@dataclass(frozen=True)
class _Arithmetic:
    """Independent chains of one instruction: as many as hide its latency, as few as stay in registers."""

    kind: ir.VectorType
    chains: int
    products: int
    """Multiply-adds of one instruction."""
    multiply: Multiply


def add_probe(module: ir.Module, cpu_class: CpuClass) -> None:
    """Adds `tessera_probe` to the module of an object."""
    function = ir.Function(module, ir.FunctionType(I64, [I64, I64, POINTER, I64]), PROBE)
    function.attributes.add("nounwind")
    kind, rounds, memory, size = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    unknown = function.append_basic_block("unknown")
    chosen = builder.switch(kind, unknown)
    for number, name in enumerate(KINDS):
        block = function.append_basic_block(name)
        chosen.add_case(i64(number), block)
        builder.position_at_end(block)
        if name == "read":
            builder.ret(_read(builder, rounds, memory, size))
        else:
            builder.ret(_compute(builder, name, cpu_class, rounds, memory))
    ir.IRBuilder(unknown).ret(i64(0))


def _read(builder: ir.IRBuilder, rounds: ir.Value, memory: ir.Value, size: ir.Value) -> ir.Value:
    """Reads the `size` bytes at `memory`, `rounds` times. What was read is stored, or LLVM would not read it.

    Several streams at once, as the panels of a product are: one alone is slower on some machines.
    """
    line = ir.VectorType(I64, 8)
    portion = builder.udiv(size, i64(STREAMS))
    lines = READ_BYTES // 64 // STREAMS

    def body(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        at = builder.mul(index, i64(64 * lines))
        found = list(sums)
        for stream in range(STREAMS):
            start = builder.gep(memory, [builder.add(at, builder.mul(portion, i64(stream)))], True, source_etype=I8)
            for number in range(lines):
                place = builder.gep(start, [i64(64 * number)], True, source_etype=I8)
                chain = (stream * lines + number) % len(found)
                found[chain] = builder.or_(found[chain], builder.load(place, align=64, typ=line))
        return found

    def read_all(_: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        return _loop(builder, builder.udiv(size, i64(READ_BYTES)), sums, body)

    start = [ir.Constant(line, None)] * STREAMS
    _store_all(builder, _loop(builder, rounds, start, read_all), memory)
    return builder.mul(rounds, size)


def _compute(builder: ir.IRBuilder, name: str, cpu_class: CpuClass, rounds: ir.Value, memory: ir.Value) -> ir.Value:
    """Multiplies and adds; the operands come from memory, so that nothing is known of them."""
    arithmetic = _arithmetic(name, cpu_class)
    kind = arithmetic.kind
    left = builder.load(memory, align=64, typ=kind)
    right = builder.load(builder.gep(memory, [i64(64)], True, source_etype=I8), align=64, typ=kind)
    start = ir.Constant(kind, None)

    def body(_: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        for _ in range(UNROLLED):
            sums = [arithmetic.multiply(builder, so_far, left, right) for so_far in sums]
        return sums

    _store_all(builder, _loop(builder, rounds, [start] * arithmetic.chains, body), memory)
    return builder.mul(rounds, i64(UNROLLED * arithmetic.chains * arithmetic.products))


def _arithmetic(name: str, cpu_class: CpuClass) -> _Arithmetic:
    """The instruction that the dots of a class use for an element (`targets/cpu/dots.py`)."""
    lanes = cpu_class.vector_bits // 32
    chains = 12 if cpu_class.vector_bits >= 256 else 24
    floats, integers = ir.VectorType(FLOAT, lanes), ir.VectorType(I32, lanes)
    features = cpu_class.llvm_features
    if name == "u8" and "+avx512vnni" in features:
        bytes_ = ir.VectorType(I8, 4 * lanes)
        multiply = _intrinsic("llvm.x86.avx512.vpdpbusd.512", integers, bytes_)
        return _Arithmetic(integers, chains, 4 * lanes, multiply)
    if name == "u8" and "+i8mm" in features:
        multiply = _intrinsic(f"llvm.aarch64.neon.usdot.v{lanes}i32.v{4 * lanes}i8", integers, ir.VectorType(I8, 16))
        return _Arithmetic(integers, chains, 4 * lanes, multiply)
    if name == "u8":
        return _Arithmetic(integers, chains, 2 * lanes, _multiply_words)
    if name == "bf16" and "+avx512bf16" in features:
        multiply = _intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", floats, RawType("<32 x bfloat>"))
        return _Arithmetic(floats, chains, 2 * lanes, multiply)
    fma = f"llvm.fma.v{lanes}f32"
    return _Arithmetic(
        floats, chains, lanes, lambda b, so_far, x, y: b.call(_declared(b, fma, floats, [floats] * 3), [x, y, so_far])
    )


def _intrinsic(name: str, result: ir.Type, operand: ir.Type) -> Multiply:
    def multiply(builder: ir.IRBuilder, so_far: ir.Value, left: ir.Value, right: ir.Value) -> ir.Value:
        function = _declared(builder, name, result, [result, operand, operand])
        return builder.call(function, [so_far, builder.bitcast(left, operand), builder.bitcast(right, operand)])

    return multiply


def _multiply_words(builder: ir.IRBuilder, so_far: ir.Value, _: ir.Value, right: ir.Value) -> ir.Value:
    """AVX2 has no multiply-add of bytes that is exact. The sum is an operand too, or the product would not change and
    be moved out of the loop.
    """
    words = ir.VectorType(I16, 16)
    function = _declared(builder, "llvm.x86.avx2.pmadd.wd", so_far.type, [words, words])
    product = builder.call(function, [builder.bitcast(so_far, words), builder.bitcast(right, words)])
    return builder.add(so_far, product)


def _declared(builder: ir.IRBuilder, name: str, result: ir.Type, operands: list[ir.Type]) -> ir.Function:
    found = builder.module.globals.get(name)
    return found if found is not None else ir.Function(builder.module, ir.FunctionType(result, operands), name)


def _loop(
    builder: ir.IRBuilder,
    rounds: ir.Value,
    initial: list[ir.Value],
    body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(I64)
    index.add_incoming(i64(0), before)
    carried = [builder.phi(value.type) for value in initial]
    for value, first in zip(carried, initial, strict=True):
        value.add_incoming(first, before)
    builder.cbranch(builder.icmp_signed("<", index, rounds), inside, after)
    builder.position_at_end(inside)
    for value, following in zip(carried, body(index, list(carried)), strict=True):
        value.add_incoming(following, builder.block)
    index.add_incoming(builder.add(index, i64(1)), builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return list(carried)


def _store_all(builder: ir.IRBuilder, values: list[ir.Value], memory: ir.Value) -> None:
    """All results, combined, to the first bytes of `memory`."""
    total = values[0]
    for value in values[1:]:
        total = builder.fadd(total, value) if value.type.element == FLOAT else builder.or_(total, value)
    builder.store(total, memory, align=64)
