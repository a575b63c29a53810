"""The scalar functions of Tile IR in Triton's language.

Divisions and roots are rounded as IEEE 754 says. Exponentials are the hardware's: `exp(x)` is `2^(x log2 e)`, so its
error grows with x, and with it that of what is made of it (docs/spec/tile-ir.md, "What a target has to do").
"""

from __future__ import annotations

HELPERS: dict[str, str] = {
    "round_even": '''@triton.jit
def round_even(x):
    """The nearest whole number, halves to even; above 2^23 every number is whole."""
    magnitude = tl.abs(x)
    whole = (magnitude + 8388608.0) - 8388608.0
    signed = tl.where(x < 0.0, -whole, whole)
    return tl.where(magnitude < 8388608.0, signed, x)
''',
    "sigmoid": """@triton.jit
def sigmoid(x):
    return tl.div_rn(1.0, 1.0 + tl.exp(-x))
""",
    "tanh": """@triton.jit
def tanh(x):
    size = tl.exp(-2.0 * tl.abs(x))
    result = tl.div_rn(1.0 - size, 1.0 + size)
    return tl.where(x < 0.0, -result, result)
""",
    "softplus": """@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + tl.log(1.0 + tl.exp(-tl.abs(x)))
""",
    "sine": '''@triton.jit
def sine(x, quarter):
    """The sine of x plus so many quarters of a turn; what is left of x after whole quarters is exact in 64 bits."""
    wide = x.to(tl.float64)
    turns = tl.floor(wide * 0.6366197723675814 + 0.5)
    r = (wide - turns * 1.5707963267948966).to(tl.float32)
    s = r * r
    odd = r + r * s * (-0.16666654611 + s * (0.0083321608736 + s * -0.00019515295891))
    even = 1.0 - 0.5 * s + s * s * (0.041666645683 + s * (-0.0013887316255 + s * 0.000024433157118))
    place = turns.to(tl.int32) + quarter
    result = tl.where((place & 1) == 1, even, odd)
    return tl.where((place & 2) == 2, -result, result)
''',
    "power": """@triton.jit
def power(x, y):
    size = tl.exp2(y * tl.log2(tl.abs(x)))
    odd = (y - 2.0 * tl.floor(y * 0.5)) == 1.0
    result = tl.where((x < 0.0) & odd, -size, size)
    result = tl.where((x < 0.0) & (tl.floor(y) != y), float("nan"), result)
    return tl.where(y == 0.0, 1.0, result)
""",
    "widened": """@triton.jit
def widened(x):
    return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
""",
    "widened8": '''@triton.jit
def widened8(x):
    """Bits of eight-bit floats as float32."""
    bits = x.to(tl.uint32)
    size = bits & 127
    normal = ((size + 960) << 20).to(tl.float32, bitcast=True)
    value = tl.where(size < 8, size.to(tl.float32) * 0.001953125, normal)
    value = tl.where(size == 127, float("nan"), value)
    return tl.where(bits > 127, -value, value)
''',
    "narrowed8": '''@triton.jit
def narrowed8(x):
    """The bits of eight-bit floats nearest to float32 up to 448."""
    size = tl.abs(x)
    bits = size.to(tl.uint32, bitcast=True)
    normal = ((bits + 524287 + ((bits >> 20) & 1)) >> 20).to(tl.int32) - 960
    small = ((size * 512.0 + 8388608.0) - 8388608.0).to(tl.int32)
    code = tl.where(size < 0.015625, small, normal)
    code = tl.where(x == x, tl.where(code > 126, 126, code), 127)
    return (code + tl.where((x < 0.0) & (code > 0), 128, 0)).to(tl.uint8)
''',
    "less_128": """@triton.jit
def less_128(x):
    return (x.to(tl.int32) - 128).to(tl.int8)
""",
    "narrowed": """@triton.jit
def narrowed(x):
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 32767 + ((bits >> 16) & 1)) >> 16
    bits = tl.where(x == x, bits, 32704)
    return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
""",
}
"""Functions that a kernel brings along if it needs them."""

FLOAT8, HALVED_FLOAT8 = "tl.float8e4nv", "tl.float8e4b8"
"""Eight-bit floats of most devices, and of those to which the same bits mean half as much (and the bits of -0 NaN, so
that no zero has a sign)."""

INTERPRETED_CASTS: dict[tuple[str, str], str] = {
    ("bf16", "f32"): "widened",
    ("f32", "bf16"): "narrowed",
    ("u8", "i8"): "less_128",
    ("f32", "f8_e4m3"): "narrowed8",
}
"""Casts that Triton's interpreter gets wrong (halves to even, denormals, signs), and what to use there."""

NEEDS: dict[str, tuple[str, ...]] = {
    "round": ("round_even",),
    "tanh": ("tanh",),
    "sigmoid": ("sigmoid",),
    "silu": ("sigmoid",),
    "gelu_tanh": ("tanh",),
    "softplus": ("softplus",),
    "pow": ("power",),
    "sin": ("sine",),
    "cos": ("sine",),
}
"""The helpers that the expression of a function calls."""

UNARY: dict[str, str] = {
    "neg": "-{x}",
    "abs": "tl.abs({x})",
    "square": "{x} * {x}",
    "relu": "tl.where({x} < 0.0, 0.0, {x})",
    "sqrt": "tl.sqrt_rn({x})",
    "rsqrt": "tl.div_rn(1.0, tl.sqrt_rn({x}))",
    "reciprocal": "tl.div_rn(1.0, {x})",
    "round": "round_even({x})",
    "floor": "tl.floor({x})",
    "exp": "tl.exp({x})",
    "exp2": "tl.exp2({x})",
    "expm1": "tl.exp({x}) - 1.0",
    "log": "tl.log({x})",
    "tanh": "tanh({x})",
    "sigmoid": "sigmoid({x})",
    "silu": "{x} * sigmoid({x})",
    "gelu": "0.5 * {x} * (1.0 + tl.erf({x} * 0.7071067811865476))",
    "gelu_tanh": "0.5 * {x} * (1.0 + tanh(0.7978845608028654 * ({x} + 0.044715 * ({x} * {x} * {x}))))",
    "erf": "tl.erf({x})",
    "softplus": "softplus({x})",
    "sin": "sine({x}, 0)",
    "cos": "sine({x}, 1)",
    "not": "{x} == 0",
}

BINARY: dict[str, str] = {
    "add": "{x} + {y}",
    "sub": "{x} - {y}",
    "mul": "{x} * {y}",
    "div": "tl.div_rn({x}, {y})",
    "maximum": "tl.maximum({x}, {y}, propagate_nan=tl.PropagateNan.ALL)",
    "minimum": "tl.minimum({x}, {y}, propagate_nan=tl.PropagateNan.ALL)",
    "pow": "power({x}, {y})",
    "largest": "tl.where({x} > {y}, {x}, {y})",
    "and": "{x} & {y}",
}

INTEGER_BINARY: dict[str, str] = {**BINARY, "maximum": "tl.maximum({x}, {y})", "minimum": "tl.minimum({x}, {y})"}

COMPARE: dict[str, str] = {
    "less": "{x} < {y}",
    "less_equal": "{x} <= {y}",
    "greater": "{x} > {y}",
    "greater_equal": "{x} >= {y}",
    "equal": "{x} == {y}",
    "not_equal": "{x} != {y}",
}

INDEX: dict[str, str] = {
    "add": "{x} + {y}",
    "sub": "{x} - {y}",
    "mul": "{x} * {y}",
    "div": "{x} // {y}",
    "rem": "{x} % {y}",
    "min": "tl.minimum({x}, {y})",
    "max": "tl.maximum({x}, {y})",
}

REDUCE: dict[str, str] = {"sum": "tl.sum", "max": "tl.max", "min": "tl.min", "largest": "tl.max"}

IDENTITY: dict[str, str] = {
    "sum": "0",
    "max": "float('-inf')",
    "min": "float('inf')",
    "largest": "float('-inf')",
}
"""What a reduction takes for an element that is not there."""

INTEGER_IDENTITY: dict[str, str] = {"sum": "0", "max": "-2147483648", "min": "2147483647"}

TYPES: dict[str, str] = {
    "f32": "tl.float32",
    "bf16": "tl.bfloat16",
    "f16": "tl.float16",
    "f8_e4m3": "tl.float8e4nv",
    "i1": "tl.int1",
    "i8": "tl.int8",
    "u8": "tl.uint8",
    "i32": "tl.int32",
}

POINTERS: dict[str, str] = {
    "f32": "*fp32",
    "bf16": "*bf16",
    "f16": "*fp16",
    "f8_e4m3": "*u8",
    "i8": "*i8",
    "u8": "*u8",
    "i32": "*i32",
}
"""How a signature spells a pointer to an element."""
