"""Elementwise functions of Tile IR on vectors of sixteen lanes."""

from __future__ import annotations

import math

from llvmlite import ir

from tessera_compiler.targets.cpu.emission import I1, I32, LANES, Emission, splat_constant, vector
from tessera_compiler.targets.cpu.object_code import CpuClass
from tessera_compiler.targets.cpu.vector_math import VectorMath

_PREDICATES = {
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
    "equal": "==",
    "not_equal": "!=",
}


class Arithmetic:
    def __init__(self, emission: Emission, functions: VectorMath, cpu_class: CpuClass):
        self._emission = emission
        self._functions = functions
        self._class = cpu_class

    def unary(self, function: str, value: ir.Value, element: str) -> ir.Value:
        builder = self._emission.builder
        if function == "not":
            return builder.not_(value)
        if function == "square":
            return self.binary("mul", value, value, element)
        if function == "relu":
            return self.binary("maximum", value, splat_constant(element, 0), element)
        if element == "i32":
            if function == "neg":
                return builder.neg(value)
            if function == "abs":
                return self._emission.intrinsic("llvm.abs.v16i32", value.type, [value, ir.Constant(I1, 0)])
            raise TypeError(f"{function} is not defined on i32")
        if function == "neg":
            return builder.fneg(value)
        if function == "abs":
            return self._emission.intrinsic("llvm.fabs.v16f32", value.type, [value])
        return builder.call(self._functions.function(function), [value])

    def binary(self, function: str, left: ir.Value, right: ir.Value, element: str) -> ir.Value:
        builder = self._emission.builder
        if element == "i1":
            return builder.and_(left, right)
        if function == "pow":
            return builder.call(self._functions.function("pow"), [left, right])
        if element == "i32":
            if function in ("maximum", "minimum"):
                name = "smax" if function == "maximum" else "smin"
                return self._emission.intrinsic(f"llvm.{name}.v16i32", left.type, [left, right])
            emit_integer = {"add": builder.add, "sub": builder.sub, "mul": builder.mul}
            return emit_integer[function](left, right)
        if function == "largest":
            return self._largest(left, right)
        if function in ("maximum", "minimum"):
            # These hand on a NaN, so that a broken value reaches the logits, where it is noticed.
            return self._emission.intrinsic(f"llvm.{function}.v16f32", left.type, [left, right])
        emit = {"add": builder.fadd, "sub": builder.fsub, "mul": builder.fmul, "div": builder.fdiv}
        return emit[function](left, right)

    def _largest(self, left: ir.Value, right: ir.Value) -> ir.Value:
        """One instruction: on x86 `left > right ? left : right`, written as an intrinsic because LLVM's optimiser fails
        on shuffles of such selections."""
        if self._class.machine != "x86_64":
            return self._emission.intrinsic("llvm.maximum.v16f32", left.type, [left, right])
        if self._class.vector_bits == 512:
            rounding = ir.Constant(I32, 4)  # the current one; a maximum rounds nothing
            return self._emission.intrinsic("llvm.x86.avx512.max.ps.512", left.type, [left, right, rounding])
        halves = []
        for lanes in (list(range(8)), list(range(8, LANES))):
            pair = [self._emission.shuffle(value, lanes) for value in (left, right)]
            halves.append(self._emission.intrinsic("llvm.x86.avx.max.ps.256", pair[0].type, pair))
        return self._emission.shuffle(halves[0], list(range(LANES)), halves[1])

    def compare(self, function: str, left: ir.Value, right: ir.Value, element: str) -> ir.Value:
        builder = self._emission.builder
        predicate = _PREDICATES[function]
        if element == "f32":
            if function == "not_equal":
                return builder.fcmp_unordered(predicate, left, right)
            return builder.fcmp_ordered(predicate, left, right)
        return builder.icmp_signed(predicate, left, right)

    def cast(self, value: ir.Value, source: str, target: str) -> ir.Value:
        builder = self._emission.builder
        if (source, target) == ("f32", "bf16"):
            return self._emission.float_to_bfloat16(value)
        if (source, target) == ("bf16", "f32"):
            return self._emission.bfloat16_to_float(value)
        if target == "f32":
            unsigned = source in ("u8", "i1")
            wide = value if source == "i32" else (builder.zext if unsigned else builder.sext)(value, vector("i32"))
            return builder.sitofp(wide, vector("f32"))
        if source == "f32":
            integral = builder.fptosi(value, vector("i32"))
            return integral if target == "i32" else builder.trunc(integral, vector(target))
        if (source, target) == ("i8", "i32"):
            return builder.sext(value, vector("i32"))
        return builder.icmp_signed("!=", value, ir.Constant(vector("i32"), [ir.Constant(I32, 0)] * LANES))

    def identity(self, reduction: str, element: str) -> ir.Constant:
        if reduction == "sum":
            return splat_constant(element, 0)
        if reduction == "largest":
            return splat_constant("f32", -math.inf)
        if element == "i32":
            return splat_constant("i32", -(2**31) if reduction == "max" else 2**31 - 1)
        return splat_constant("f32", -math.inf if reduction == "max" else math.inf)

    def combine(self, reduction: str, left: ir.Value, right: ir.Value, element: str) -> ir.Value:
        function = {"sum": "add", "max": "maximum", "min": "minimum", "largest": "largest"}[reduction]
        return self.binary(function, left, right, element)
