"""Elementary functions on sixteen fp32 lanes, as LLVM IR without a math library.

Every operation is one IEEE-754 operation in a fixed order: no fast-math flag, `llvm.fma` where a product is added, and
otherwise only add, subtract, multiply, divide, square root, compare, select, round and integer operations. So LLVM may
schedule and inline the code but never change a result, and x86-64-v3, x86-64-v4 and aarch64 give the same bits. Only
the sign and payload of a NaN are the machine's own. The floating-point environment must be the default one: round to
nearest, subnormals on.

Greatest error in units in the last place of the exact result, measured over at least every 19th fp32 number; for pow,
over random pairs:

| function        | error | on              | notes                                                     |
|-----------------|-------|-----------------|-----------------------------------------------------------|
| exp             | 0.89  | all numbers     | 0 below -103.98 after subnormals, infinite above 88.7228  |
| exp2            | 1.5   | -126.5 to 127.5 | 0 below, infinite above                                   |
| expm1           | 1.6   | all numbers     |                                                           |
| log             | 0.84  | all numbers     | -infinity at 0, NaN below                                 |
| tanh            | 1.5   | all numbers     | exactly odd                                               |
| erf             | 1.9   | all numbers     | exactly odd                                               |
| sigmoid         | 2.5   | -87.3 and above | 0 below -87.69, where the result would be subnormal       |
| silu            | 3.2   | -87.3 and above | 0 below -87.69; 0 at -infinity                            |
| softplus        | 1.9   | -87.3 and above | 0 below -87.69                                            |
| gelu            | 5.8   | -5 and above    | 11 at -13; 0 below -13.25 and at -infinity                |
| gelu_tanh       | 31    | -5 and above    | 0 below -10.02 and at -infinity                           |
| sin, cos        | 1.5   | up to 2**50     | absolute 7.3e-8; beyond 2**50 only sure to be in [-1, 1]  |
| pow             | 0.501 | positive base   | C's rules for negative bases, zeros, infinities and NaN   |
| rsqrt           | 1.5   | all numbers     | 1 / sqrt(x), two exactly rounded operations               |
| reciprocal, sqrt| 0.5   | all numbers     |                                                           |
| floor, round    | 0     | all numbers     | round takes ties to the even integer                      |

Of a result that is zero, only expm1, tanh, erf, floor, round, reciprocal, sqrt and pow promise the sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import factorial

from llvmlite import ir

from tessera_compiler.errors import CompileError

LANES = 16

FLOATS = ir.VectorType(ir.FloatType(), LANES)
_DOUBLES = ir.VectorType(ir.DoubleType(), LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)
_LONGS = ir.VectorType(ir.IntType(64), LANES)

_INFINITY = float("inf")
_LARGEST = float.fromhex("0x1.fffffep127")

_LOG2_E = 1.4426950408889634
# ln 2 = high + low, where the high part has so few bits that its product with an exponent is exact.
_LN2_HIGH = float.fromhex("0x1.62e400p-1")
_LN2_LOW = float.fromhex("0x1.7f7d1cp-20")
# pi / 2 = high + low in double precision.
_HALF_PI_HIGH = float.fromhex("0x1.921fb54442d18p+0")
_HALF_PI_LOW = float.fromhex("0x1.1a62633145c07p-54")

# Adding 1.5 * 2**(mantissa bits) rounds to an integer and leaves it in the low bits of the sum.
_ROUNDER = 1.5 * 2.0**23
_ROUNDER_DOUBLE = 1.5 * 2.0**52
_EXPONENT_BIAS = 127

# Minimax polynomials, lowest power first.
_EXP = (0.4999999403953552, 0.1666651964187622, 0.04166840761899948, 0.008368921466171741, 0.0013814173871651292)
_EXP2 = (0.6931470036506653, 0.24022242426872253, 0.05550733581185341, 0.009671512991189957, 0.001326472731307149)
_EXPM1 = (0.4999999701976776, 0.1666654199361801, 0.04166720435023308, 0.008366713300347328, 0.001388248521834612)
_LOG1P = (
    0.3333331346511841,
    -0.25000008940696716,
    0.2000211924314499,
    -0.1666799634695053,
    0.14219552278518677,
    -0.1240558922290802,
    0.11888163536787033,
    -0.11675650626420975,
    0.0674663558602333,
)
_SIN = (-0.1666666716337204, 0.008333329111337662, -0.00019839327433146536, 2.71823728326126e-06)
_COS = (0.0416666679084301, -0.0013888883404433727, 2.479945214872714e-05, -2.720504710396199e-07)
_TANH = (-0.3333317041397095, 0.13320137560367584, -0.05091841146349907)
_TANH_POLYNOMIAL_LIMIT = 0.27
_ERF = (
    0.12837916612625122,
    -0.3761261999607086,
    0.11283376812934875,
    -0.026834625750780106,
    0.0051143476739525795,
    -0.0006749525782652199,
)
_ERF_POLYNOMIAL_LIMIT = 0.74
# exp(a * a / 2) * (1 - Phi(a)) on [0, 13.5] as a quotient; all terms are positive, so neither part cancels.
_TAIL_NUMERATOR = (0.5, 0.4361463189125061, 0.18164590001106262, 0.04009808972477913, 0.004037003964185715)
_TAIL_DENOMINATOR = (
    1.0,
    1.6701775789260864,
    1.1958965063095093,
    0.46527543663978577,
    0.10051821172237396,
    0.010119128972291946,
)
_GELU_TANH_LINEAR = 1.5957691216057308
_GELU_TANH_CUBIC = 0.07135481627260025


class UnknownVectorFunction(CompileError):
    """A kernel asks for an elementary function that the CPU target does not have."""


class VectorMath:
    """The elementary functions of one LLVM module, each added to it when it is first asked for."""

    def __init__(self, module: ir.Module) -> None:
        self._module = module
        self._functions: dict[str, ir.Function] = {}

    def function(self, name: str) -> ir.Function:
        """`internal <16 x float> @vm_<name>(<16 x float>)`; `pow` takes the base and the exponent.

        LLVM inlines it only into functions that carry `"no-builtins"` too.
        """
        if name not in self._functions:
            self._functions[name] = self._define(name)
        return self._functions[name]

    def _define(self, name: str) -> ir.Function:
        body = _BODIES.get(name)
        if body is None and name != "pow":
            raise UnknownVectorFunction(
                f"expected an elementary function of the CPU target ({', '.join(FUNCTION_NAMES)}), found {name!r}; "
                "rewrite the operation in terms of these, or add its formula to vector_math.py"
            )
        parameters = [FLOATS] if body is not None else [FLOATS, FLOATS]
        function = ir.Function(self._module, ir.FunctionType(FLOATS, parameters), f"vm_{name}")
        function.linkage = "internal"
        function.attributes.add("nounwind")
        # llvmlite's own check knows no string attribute.
        set.add(function.attributes, '"no-builtins"')
        lanes = _Lanes(self._module, ir.IRBuilder(function.append_basic_block("entry")))
        result = body(lanes, function.args[0]) if body is not None else _pow(lanes, *function.args)
        lanes.builder.ret(result)
        return function


class _Lanes:
    """Operations on vectors; a Python number among the operands stands for a vector of that number."""

    def __init__(self, module: ir.Module, builder: ir.IRBuilder) -> None:
        self._module = module
        self.builder = builder

    def splat(self, number: float, vector: ir.VectorType) -> ir.Value:
        element = int(number) if isinstance(vector.element, ir.IntType) else float(number)
        return ir.Constant(vector, [element] * LANES)

    def _operands(self, *values: ir.Value | float) -> list[ir.Value]:
        vector = next(value.type for value in values if isinstance(value, ir.Value))
        return [value if isinstance(value, ir.Value) else self.splat(value, vector) for value in values]

    def _intrinsic(self, name: str, *values: ir.Value | float) -> ir.Value:
        operands = self._operands(*values)
        vector = operands[0].type
        element = "f32" if vector == FLOATS else "f64"
        symbol = f"llvm.{name}.v{LANES}{element}"
        function = self._module.globals.get(symbol)
        if function is None:
            function = ir.Function(self._module, ir.FunctionType(vector, [vector] * len(operands)), symbol)
        return self.builder.call(function, operands)

    def fma(self, first: ir.Value | float, second: ir.Value | float, addend: ir.Value | float) -> ir.Value:
        return self._intrinsic("fma", first, second, addend)

    def sqrt(self, value: ir.Value) -> ir.Value:
        return self._intrinsic("sqrt", value)

    def floor(self, value: ir.Value) -> ir.Value:
        return self._intrinsic("floor", value)

    def round(self, value: ir.Value) -> ir.Value:
        return self._intrinsic("roundeven", value)

    def absolute(self, value: ir.Value) -> ir.Value:
        return self._intrinsic("fabs", value)

    def with_sign_of(self, magnitude: ir.Value, sign: ir.Value) -> ir.Value:
        return self._intrinsic("copysign", magnitude, sign)

    def add(self, first: ir.Value | float, second: ir.Value | float) -> ir.Value:
        return self.builder.fadd(*self._operands(first, second))

    def subtract(self, first: ir.Value | float, second: ir.Value | float) -> ir.Value:
        return self.builder.fsub(*self._operands(first, second))

    def multiply(self, first: ir.Value | float, second: ir.Value | float) -> ir.Value:
        return self.builder.fmul(*self._operands(first, second))

    def divide(self, first: ir.Value | float, second: ir.Value | float) -> ir.Value:
        return self.builder.fdiv(*self._operands(first, second))

    def negate(self, value: ir.Value) -> ir.Value:
        return self.builder.fneg(value)

    def compare(self, first: ir.Value, relation: str, second: ir.Value | float) -> ir.Value:
        """False in the lanes where an operand is NaN."""
        return self.builder.fcmp_ordered(relation, *self._operands(first, second))

    def select(self, condition: ir.Value, first: ir.Value | float, second: ir.Value | float) -> ir.Value:
        return self.builder.select(condition, *self._operands(first, second))

    def at_most(self, value: ir.Value, limit: float) -> ir.Value:
        """The lesser of the two; NaN stays NaN."""
        return self.select(self.compare(value, ">", limit), limit, value)

    def at_least(self, value: ir.Value, limit: float) -> ir.Value:
        """The greater of the two; NaN stays NaN."""
        return self.select(self.compare(value, "<", limit), limit, value)

    def positive_part(self, value: ir.Value) -> ir.Value:
        """max(value, 0), and 0 for NaN."""
        return self.select(self.compare(value, ">", 0.0), value, 0.0)

    def polynomial(self, value: ir.Value, coefficients: Sequence[float]) -> ir.Value:
        *rest, last = coefficients
        result: ir.Value = self.splat(last, value.type)
        for coefficient in reversed(rest):
            result = self.fma(result, value, coefficient)
        return result

    def bits(self, value: ir.Value) -> ir.Value:
        return self.builder.bitcast(value, _INTEGERS if value.type == FLOATS else _LONGS)

    def from_bits(self, value: ir.Value) -> ir.Value:
        return self.builder.bitcast(value, FLOATS if value.type == _INTEGERS else _DOUBLES)

    def integer(self, operation: str, first: ir.Value | float, second: ir.Value | float) -> ir.Value:
        """An instruction of llvmlite's builder, such as `shl` or `and_`."""
        return getattr(self.builder, operation)(*self._operands(first, second))

    def power_of_two(self, exponent: ir.Value) -> ir.Value:
        """2**exponent as fp32, of an integer whose low nine bits alone are looked at."""
        return self.from_bits(self.integer("add", self.integer("shl", exponent, 23), _EXPONENT_BIAS << 23))


def _reduce_for_exp(lanes: _Lanes, value: ir.Value, rounder: float = _ROUNDER) -> tuple[ir.Value, ir.Value]:
    """n and r of value = n ln 2 + r, n as the low bits of an integer, to which the rounder may add a bias."""
    shifted = lanes.fma(value, _LOG2_E, rounder)
    count = lanes.subtract(shifted, rounder)
    rest = lanes.fma(count, -_LN2_HIGH, value)
    return lanes.bits(shifted), lanes.fma(count, -_LN2_LOW, rest)


def _exp_of_reduced(lanes: _Lanes, rest: ir.Value) -> ir.Value:
    return lanes.polynomial(rest, (1.0, 1.0, *_EXP))


def _exp_of_negative(lanes: _Lanes, value: ir.Value) -> ir.Value:
    """exp for arguments in [-200, 0]: one multiplication shorter, and 0 below -87.68 instead of a subnormal."""
    count, rest = _reduce_for_exp(lanes, value, _ROUNDER + _EXPONENT_BIAS)
    exponent = lanes.integer("shl", count, 23)
    is_normal = lanes.builder.icmp_signed(">", exponent, lanes.splat(0, _INTEGERS))
    scale = lanes.select(is_normal, exponent, 0)
    return lanes.multiply(_exp_of_reduced(lanes, rest), lanes.from_bits(scale))


def _exp(lanes: _Lanes, value: ir.Value) -> ir.Value:
    value = lanes.at_least(lanes.at_most(value, 89.0), -105.0)
    count, rest = _reduce_for_exp(lanes, value)
    # Two factors, because 2**n itself may be infinite or subnormal where the product is not.
    half = lanes.integer("lshr", count, 1)
    scaled = lanes.multiply(_exp_of_reduced(lanes, rest), lanes.power_of_two(half))
    return lanes.multiply(scaled, lanes.power_of_two(lanes.integer("sub", count, half)))


def _exp2(lanes: _Lanes, value: ir.Value) -> ir.Value:
    value = lanes.at_least(lanes.at_most(value, 128.0), -127.0)
    shifted = lanes.add(value, _ROUNDER + _EXPONENT_BIAS)
    rest = lanes.subtract(value, lanes.subtract(shifted, _ROUNDER + _EXPONENT_BIAS))
    scale = lanes.from_bits(lanes.integer("shl", lanes.bits(shifted), 23))
    return lanes.multiply(lanes.polynomial(rest, (1.0, *_EXP2)), scale)


def _expm1_of_reduced(lanes: _Lanes, rest: ir.Value) -> ir.Value:
    return lanes.fma(lanes.multiply(rest, rest), lanes.polynomial(rest, _EXPM1), rest)


def _expm1(lanes: _Lanes, value: ir.Value) -> ir.Value:
    count, rest = _reduce_for_exp(lanes, lanes.at_least(lanes.at_most(value, 89.0), -18.0))
    half = lanes.integer("lshr", count, 1)
    other = lanes.integer("sub", count, half)
    # 2**n * e + (2**n - 1), with the factor 2**other taken out so that nothing overflows too early.
    first = lanes.power_of_two(half)
    offset = lanes.subtract(first, lanes.power_of_two(lanes.integer("sub", 0, other)))
    scaled = lanes.fma(first, _expm1_of_reduced(lanes, rest), offset)
    result = lanes.multiply(scaled, lanes.power_of_two(other))
    return lanes.select(lanes.compare(lanes.absolute(value), "<", 2.0**-25), value, result)


def _tanh(lanes: _Lanes, value: ir.Value) -> ir.Value:
    magnitude = lanes.at_most(lanes.absolute(value), 10.0)
    square = lanes.multiply(magnitude, magnitude)
    small = lanes.fma(lanes.multiply(square, magnitude), lanes.polynomial(square, _TANH), magnitude)
    # E / (E + 2) with E = exp(2 a) - 1: the rounding of E + 2 weighs less the greater E is.
    count, rest = _reduce_for_exp(lanes, lanes.add(magnitude, magnitude))
    scale = lanes.power_of_two(count)
    growth = lanes.fma(scale, _expm1_of_reduced(lanes, rest), lanes.subtract(scale, 1.0))
    large = lanes.divide(growth, lanes.add(growth, 2.0))
    is_small = lanes.compare(magnitude, "<", _TANH_POLYNOMIAL_LIMIT)
    return lanes.with_sign_of(lanes.select(is_small, small, large), value)


def _sigmoid(lanes: _Lanes, value: ir.Value) -> ir.Value:
    tail = _exp_of_negative(lanes, lanes.negate(lanes.at_most(lanes.absolute(value), 110.0)))
    numerator = lanes.select(lanes.compare(value, "<", 0.0), tail, 1.0)
    return lanes.divide(numerator, lanes.add(tail, 1.0))


def _silu(lanes: _Lanes, value: ir.Value) -> ir.Value:
    # max(x, 0) - |x| * sigmoid(-|x|): nothing cancels, and a clamped |x| keeps infinity times 0 out.
    magnitude = lanes.at_most(lanes.absolute(value), 110.0)
    tail = _exp_of_negative(lanes, lanes.negate(magnitude))
    excess = lanes.divide(lanes.multiply(magnitude, tail), lanes.add(tail, 1.0))
    return lanes.subtract(lanes.positive_part(value), excess)


def _gelu_tanh(lanes: _Lanes, value: ir.Value) -> ir.Value:
    # 1 + tanh(u) = 2 sigmoid(2 u), so this is silu with another argument to the sigmoid.
    magnitude = lanes.at_most(lanes.absolute(value), 13.0)
    slope = lanes.fma(lanes.multiply(magnitude, magnitude), _GELU_TANH_CUBIC, _GELU_TANH_LINEAR)
    tail = _exp_of_negative(lanes, lanes.negate(lanes.multiply(magnitude, slope)))
    excess = lanes.divide(lanes.multiply(magnitude, tail), lanes.add(tail, 1.0))
    return lanes.subtract(lanes.positive_part(value), excess)


def _normal_tail(lanes: _Lanes, ratio_argument: ir.Value, root: ir.Value, factor: float) -> ir.Value:
    """1 - Phi(a), where a is `ratio_argument` and a * a / 2 is `factor * root * root`."""
    square = lanes.multiply(root, root)
    lost = lanes.fma(root, root, lanes.negate(square))
    exponential = _exp_of_negative(lanes, lanes.multiply(square, -factor))
    # exp multiplies the rounding error of the square by the square itself; put it back to first order.
    exponential = lanes.fma(exponential, lanes.multiply(lost, -factor), exponential)
    numerator = lanes.polynomial(ratio_argument, _TAIL_NUMERATOR)
    return lanes.divide(lanes.multiply(exponential, numerator), lanes.polynomial(ratio_argument, _TAIL_DENOMINATOR))


def _gelu(lanes: _Lanes, value: ir.Value) -> ir.Value:
    magnitude = lanes.at_most(lanes.absolute(value), 15.0)
    tail = _normal_tail(lanes, magnitude, magnitude, 0.5)
    return lanes.fma(lanes.negate(magnitude), tail, lanes.positive_part(value))


def _erf(lanes: _Lanes, value: ir.Value) -> ir.Value:
    magnitude = lanes.at_most(lanes.absolute(value), 5.0)
    small = lanes.fma(magnitude, lanes.polynomial(lanes.multiply(magnitude, magnitude), _ERF), magnitude)
    tail = _normal_tail(lanes, lanes.multiply(magnitude, 2.0**0.5), magnitude, 1.0)
    large = lanes.fma(tail, -2.0, 1.0)
    is_small = lanes.compare(magnitude, "<", _ERF_POLYNOMIAL_LIMIT)
    return lanes.with_sign_of(lanes.select(is_small, small, large), value)


def _log1p_of_reduced(lanes: _Lanes, offset: ir.Value, count: ir.Value) -> ir.Value:
    """log((1 + offset) * 2**count) for an offset between sqrt(1/2) - 1 and sqrt(2) - 1."""
    curvature = lanes.fma(offset, lanes.polynomial(offset, _LOG1P), -0.5)
    correction = lanes.fma(lanes.multiply(offset, offset), curvature, lanes.multiply(count, _LN2_LOW))
    return lanes.fma(count, _LN2_HIGH, lanes.add(offset, correction))


def _log(lanes: _Lanes, value: ir.Value) -> ir.Value:
    is_subnormal = lanes.compare(value, "<", 2.0**-126)
    normal = lanes.select(is_subnormal, lanes.multiply(value, 2.0**23), value)
    root_half = 0x3F3504F3
    above = lanes.integer("sub", lanes.bits(normal), root_half)
    exponent = lanes.builder.sitofp(lanes.integer("ashr", above, 23), FLOATS)
    count = lanes.add(exponent, lanes.select(is_subnormal, lanes.splat(-23.0, FLOATS), 0.0))
    mantissa = lanes.integer("add", lanes.integer("and_", above, 0x7FFFFF), root_half)
    result = _log1p_of_reduced(lanes, lanes.subtract(lanes.from_bits(mantissa), 1.0), count)
    result = lanes.select(lanes.compare(value, "<=", _LARGEST), result, value)
    at_zero = lanes.select(lanes.compare(value, "==", 0.0), lanes.splat(-_INFINITY, FLOATS), float("nan"))
    return lanes.select(lanes.compare(value, ">", 0.0), result, at_zero)


def _softplus(lanes: _Lanes, value: ir.Value) -> ir.Value:
    tail = _exp_of_negative(lanes, lanes.negate(lanes.at_most(lanes.absolute(value), 110.0)))
    is_large = lanes.compare(tail, ">", 2.0**0.5 - 1.0)
    halved = lanes.multiply(lanes.subtract(tail, 1.0), 0.5)
    count = lanes.select(is_large, lanes.splat(1.0, FLOATS), 0.0)
    excess = _log1p_of_reduced(lanes, lanes.select(is_large, halved, tail), count)
    return lanes.add(lanes.positive_part(value), excess)


def _sine_wave(lanes: _Lanes, value: ir.Value, quarter_turns: int) -> ir.Value:
    """sin(value + quarter_turns * pi / 2).

    Double precision makes the reduction exact to the last bit kept for arguments up to 2**50; beyond, the argument of
    the polynomials is clamped, so that the result means nothing but stays in [-1, 1].
    """
    exact = lanes.builder.fpext(value, _DOUBLES)
    shifted = lanes.fma(exact, 0.6366197723675814, _ROUNDER_DOUBLE)
    count = lanes.subtract(shifted, _ROUNDER_DOUBLE)
    rest = lanes.fma(count, -_HALF_PI_LOW, lanes.fma(count, -_HALF_PI_HIGH, exact))
    angle = lanes.at_least(lanes.at_most(lanes.builder.fptrunc(rest, FLOATS), 1.0), -1.0)
    quadrant = lanes.integer("add", lanes.builder.trunc(lanes.bits(shifted), _INTEGERS), quarter_turns)
    square = lanes.multiply(angle, angle)
    sine = lanes.fma(lanes.multiply(square, angle), lanes.polynomial(square, _SIN), angle)
    cosine = lanes.polynomial(square, (1.0, -0.5, *_COS))
    is_even = lanes.builder.icmp_signed("==", lanes.integer("and_", quadrant, 1), lanes.splat(0, _INTEGERS))
    wave = lanes.bits(lanes.select(is_even, sine, cosine))
    sign = lanes.integer("shl", lanes.integer("and_", quadrant, 2), 30)
    return lanes.from_bits(lanes.integer("xor", wave, sign))


def _log2_in_double(lanes: _Lanes, value: ir.Value) -> ir.Value:
    """log2 of positive finite doubles that came from fp32, to about 44 bits."""
    root_half = 0x3FE6A09E00000000
    above = lanes.integer("sub", lanes.bits(value), root_half)
    # Narrowed first: a conversion from 64-bit integers is not one instruction everywhere.
    exponent = lanes.builder.trunc(lanes.integer("ashr", above, 52), _INTEGERS)
    mantissa = lanes.from_bits(lanes.integer("add", lanes.integer("and_", above, (1 << 52) - 1), root_half))
    ratio = lanes.divide(lanes.subtract(mantissa, 1.0), lanes.add(mantissa, 1.0))
    series = lanes.polynomial(lanes.multiply(ratio, ratio), [2.0 * _LOG2_E / (2 * term + 1) for term in range(8)])
    return lanes.fma(ratio, series, lanes.builder.sitofp(exponent, _DOUBLES))


def _exp2_of_double(lanes: _Lanes, value: ir.Value) -> ir.Value:
    """2**value as fp32, rounded once, and so infinite, subnormal or zero exactly where it should be."""
    value = lanes.at_least(lanes.at_most(value, 200.0), -200.0)
    shifted = lanes.add(value, _ROUNDER_DOUBLE)
    rest = lanes.multiply(lanes.subtract(value, lanes.subtract(shifted, _ROUNDER_DOUBLE)), 1.0 / _LOG2_E)
    fraction = lanes.polynomial(rest, [1.0 / factorial(term) for term in range(10)])
    exponent = lanes.integer("shl", lanes.bits(shifted), 52)
    scale = lanes.from_bits(lanes.integer("add", exponent, 1023 << 52))
    return lanes.builder.fptrunc(lanes.multiply(fraction, scale), FLOATS)


def _pow(lanes: _Lanes, base: ir.Value, exponent: ir.Value) -> ir.Value:
    """C's and NumPy's power, their special cases included."""
    builder = lanes.builder
    size = lanes.absolute(base)
    logarithm = _log2_in_double(lanes, builder.fpext(size, _DOUBLES))
    logarithm = lanes.select(lanes.compare(size, "==", 0.0), lanes.splat(-_INFINITY, _DOUBLES), logarithm)
    logarithm = lanes.select(lanes.compare(size, "<=", _LARGEST), logarithm, builder.fpext(size, _DOUBLES))
    magnitude = _exp2_of_double(lanes, lanes.multiply(logarithm, builder.fpext(exponent, _DOUBLES)))
    exponent_is_infinite = lanes.compare(lanes.absolute(exponent), "==", _INFINITY)
    magnitude = lanes.select(builder.and_(lanes.compare(size, "==", 1.0), exponent_is_infinite), 1.0, magnitude)

    half = lanes.multiply(exponent, 0.5)
    is_integer = lanes.compare(lanes.floor(exponent), "==", exponent)
    is_odd = builder.and_(is_integer, lanes.compare(lanes.floor(half), "!=", half))
    signed = lanes.select(is_odd, lanes.with_sign_of(magnitude, base), magnitude)
    is_finite_negative = builder.and_(lanes.compare(base, "<", 0.0), lanes.compare(base, ">=", -_LARGEST))
    # An exponent that is NaN is no integer either, and its result is NaN in any case.
    has_no_value = builder.and_(is_finite_negative, builder.not_(is_integer))
    result = lanes.select(has_no_value, lanes.splat(float("nan"), FLOATS), signed)
    is_one = builder.or_(lanes.compare(exponent, "==", 0.0), lanes.compare(base, "==", 1.0))
    return lanes.select(is_one, lanes.splat(1.0, FLOATS), result)


_BODIES: dict[str, Callable[[_Lanes, ir.Value], ir.Value]] = {
    "cos": lambda lanes, value: _sine_wave(lanes, value, 1),
    "erf": _erf,
    "exp": _exp,
    "exp2": _exp2,
    "expm1": _expm1,
    "floor": lambda lanes, value: lanes.floor(value),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "log": _log,
    "reciprocal": lambda lanes, value: lanes.divide(1.0, value),
    "round": lambda lanes, value: lanes.round(value),
    "rsqrt": lambda lanes, value: lanes.divide(1.0, lanes.sqrt(value)),
    "sigmoid": _sigmoid,
    "silu": _silu,
    "sin": lambda lanes, value: _sine_wave(lanes, value, 0),
    "softplus": _softplus,
    "sqrt": lambda lanes, value: lanes.sqrt(value),
    "tanh": _tanh,
}

FUNCTION_NAMES: tuple[str, ...] = tuple(sorted((*_BODIES, "pow")))
"""What `VectorMath.function` accepts."""
