"""The table of Tile IR: cases for what works on each element alone, and for reductions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from cases import SHAPES, Array, Case, elementwise, generator, values_of
from xdsl.ir import SSAValue

from tessera_compiler.tile import functions
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.dialect import CASTS
from tessera_compiler.tile.types import round_to_bfloat16

POW_BUDGET = 16.0
ORDER_OF_ZEROS = frozenset({"maximum", "minimum", "relu", "max", "min"})
"""Functions that may give either of two zeros."""
LIMIT_AT_INFINITY = frozenset({"silu", "gelu", "gelu_tanh"})
"""Functions whose NumPy spelling is infinity times zero at -infinity, where targets give the limit."""
INTEGER_UNARY = ("neg", "abs", "square")
INTEGER_BINARY = ("add", "sub", "mul", "maximum", "minimum")

RAGGED = (SHAPES[3], SHAPES[5])
"""Where a variation of an op is tried that all shapes would only repeat."""

Table = dict[str, Callable[[], Iterator[Case]]]


def _holds(b: KernelBuilder, tile: SSAValue) -> SSAValue:
    """1.0 where an i1 tile holds, else 0.0."""
    return b.cast(tile, "f32")


def _is_odd(b: KernelBuilder, tile: SSAValue) -> SSAValue:
    """Some i1 tile that depends on an f32 tile."""
    return b.compare("greater", tile, b.full(0.0))


def unary_cases(name: str) -> Iterator[Case]:
    function = functions.UNARY[name]
    for number, shape in enumerate(SHAPES):
        _, columns, tokens = shape
        random = generator(name, shape)
        if name == "not":
            x = values_of(random, (tokens, columns), "f32")
            yield elementwise(
                f"not_{number}", shape, [("f32", x)], lambda b, x: _holds(b, b.unary("not", _is_odd(b, x)))
            )
            continue
        low, high = function.domain
        x = _domain(random, low, high, (tokens, columns))
        if name in LIMIT_AT_INFINITY:
            x[x == -np.inf] = -40
        yield elementwise(
            f"{name}_{number}",
            shape,
            [("f32", x)],
            lambda b, x: b.unary(name, x),
            budget=function.budget,
            signed_zeros=name not in ORDER_OF_ZEROS,
        )
        if name in INTEGER_UNARY and shape in RAGGED:
            integers = values_of(random, (tokens, columns), "i32")
            yield elementwise(
                f"{name}_i32_{number}", shape, [("i32", integers)], lambda b, x: b.unary(name, x), result="i32"
            )


def _domain(random: np.random.Generator, low: float, high: float, shape: tuple[int, int]) -> Array:
    """Arguments between two limits, of all magnitudes; and zeros, denormals, infinities and NaN."""
    even = random.uniform(low, high, shape)
    small = np.sign(even) * np.exp(random.uniform(np.log(max(low, 1e-6)), np.log(high), shape))
    values = np.where(random.random(shape) < 0.5, even, np.clip(small, low, high)).astype(np.float32)
    special = np.array([0.0, -0.0, 1e-45, -1e-40, np.inf, -np.inf, np.nan], np.float32)
    if low > 0:
        special = special[[0, 4, 6]]
    return np.where(random.random(shape) < 0.15, random.choice(special, shape), values).astype(np.float32)


def binary_cases(name: str) -> Iterator[Case]:
    for number, shape in enumerate(SHAPES):
        _, columns, tokens = shape
        random = generator(name, shape)
        if name == "and":
            left, right = (values_of(random, (tokens, columns), "f32") for _ in range(2))
            yield elementwise(
                f"and_{number}",
                shape,
                [("f32", left), ("f32", right)],
                lambda b, x, y: _holds(b, b.binary("and", _is_odd(b, x), _is_odd(b, y))),
            )
            continue
        if name == "pow":
            left = np.exp(random.uniform(-8, 8, (tokens, columns))).astype(np.float32)
            right = random.uniform(-4, 4, (tokens, columns)).astype(np.float32)
            whole = random.random((tokens, columns)) < 0.3
            left, right = np.where(whole, -left, left), np.where(whole, np.rint(right), right)
        else:
            left, right = (values_of(random, (tokens, columns), "f32") for _ in range(2))
        for width in sorted({columns, 1} if shape in RAGGED else {columns}):
            yield elementwise(
                f"{name}_{number}_{width}",
                shape,
                [("f32", left), ("f32", right[:, :width])],
                lambda b, x, y: b.binary(name, x, y),
                budget=POW_BUDGET if name == "pow" else 0,
                signed_zeros=name not in ORDER_OF_ZEROS,
            )
        if shape in RAGGED:
            yield elementwise(
                f"{name}_{number}_constant",
                shape,
                [("f32", left)],
                lambda b, x: b.binary(name, x, 2.5 if name != "pow" else 3.0),
                budget=POW_BUDGET if name == "pow" else 0,
                signed_zeros=name not in ORDER_OF_ZEROS,
            )
        if name in INTEGER_BINARY and shape in RAGGED:
            left, right = (values_of(random, (tokens, columns), "i32") for _ in range(2))
            yield elementwise(
                f"{name}_i32_{number}",
                shape,
                [("i32", left), ("i32", right)],
                lambda b, x, y: b.binary(name, x, y),
                result="i32",
            )


def compare_cases(name: str) -> Iterator[Case]:
    for number, shape in enumerate(SHAPES):
        _, columns, tokens = shape
        random = generator(name, shape)
        for element in ("f32", "i32") if shape in RAGGED else ("f32",):
            left = values_of(random, (tokens, columns), element)
            right = np.where(random.random(left.shape) < 0.4, left, values_of(random, left.shape, element))
            yield elementwise(
                f"{name}_{element}_{number}",
                shape,
                [(element, left), (element, right.astype(left.dtype))],
                lambda b, x, y: _holds(b, b.compare(name, x, y)),
            )


def select_cases() -> Iterator[Case]:
    for number, shape in enumerate(SHAPES):
        _, columns, tokens = shape
        random = generator("select", shape)
        condition = values_of(random, (tokens, columns), "f32")
        for element in ("f32", "bf16", "i32", "i8", "u8") if shape in RAGGED else ("f32",):
            left, right = (values_of(random, (tokens, columns), element) for _ in range(2))
            yield elementwise(
                f"select_{element}_{number}",
                shape,
                [("f32", condition), (element, left), (element, right)],
                lambda b, c, x, y: b.select(_is_odd(b, c), x, y),
                result=element,
            )
        left, right = values_of(random, (tokens, 1), "f32"), values_of(random, (tokens, columns), "f32")
        yield elementwise(
            f"select_column_{number}",
            shape,
            [("f32", condition), ("f32", left), ("f32", right)],
            lambda b, c, x, y: b.select(_is_odd(b, c), x, y),
        )


def cast_cases(source: str, target: str) -> Iterator[Case]:
    for number, shape in enumerate(SHAPES[1:]):
        _, columns, tokens = shape
        random = generator(source, target, shape)
        symbol = f"cast_{source}_{target}_{number}"
        if "i1" in (source, target):
            x = values_of(random, (tokens, columns), "f32" if source == "i1" else "i32")
            x[random.random(x.shape) < 0.5] = 0
            yield elementwise(
                symbol,
                shape,
                [("f32" if source == "i1" else "i32", x)],
                lambda b, x: b.cast(_is_odd(b, x) if source == "i1" else b.cast(x, "i1"), "f32"),
            )
            continue
        if (source, target) == ("f32", "i32"):
            x = np.rint(random.uniform(-(2.0**31), 2.0**31 - 129, (tokens, columns))).astype(np.float32)
        elif (source, target) == ("f32", "i8"):
            x = random.integers(-128, 128, (tokens, columns)).astype(np.float32)
        elif (source, target) == ("f32", "u8"):
            x = random.integers(0, 256, (tokens, columns)).astype(np.float32)
        else:
            x = values_of(random, (tokens, columns), source)
        if (source, target) == ("f32", "bf16"):
            # Values halfway between two bfloat16, and just beside.
            bits = x.view(np.uint32) & np.uint32(0xFFFF0000)
            ties = (bits + random.choice(np.array([0x7FFF, 0x8000, 0x8001], np.uint32), x.shape)).view(np.float32)
            x = np.where(random.random(x.shape) < 0.5, ties, x).astype(np.float32)
        result = target if target != "i1" else "f32"
        yield elementwise(symbol, shape, [(source, x)], lambda b, x, target=target: b.cast(x, target), result=result)


def reduce_cases(name: str) -> Iterator[Case]:
    for number, shape in enumerate(SHAPES):
        rows, columns, tokens = shape
        random = generator(name, shape)
        one = (rows, 1, tokens)
        for kind in ("plain", "special", "i32") if shape in RAGGED else ("plain",):
            element = "i32" if kind == "i32" else "f32"
            if element not in functions.REDUCE_ELEMENTS[name]:
                continue
            x = values_of(random, (tokens, columns), element, special=kind == "special")
            yield elementwise(
                f"reduce_{name}_{kind}_{number}",
                one,
                [(element, x)],
                lambda b, x: b.reduce(name, x),
                result=element,
                signed_zeros=name not in ORDER_OF_ZEROS,
            )
        if shape not in RAGGED:
            continue
        # What is reduced is computed on the way, and what comes of it is used on all columns again.
        x = np.abs(values_of(random, (tokens, columns), "f32", special=False))
        yield elementwise(
            f"reduce_{name}_used_{number}",
            shape,
            [("f32", x)],
            lambda b, x: b.binary("sub", x, b.reduce(name, b.binary("add", x, 1.0))),
            signed_zeros=False,
        )


def bfloat16_rounding_cases() -> Iterator[Case]:
    for number, shape in enumerate(SHAPES):
        _, columns, tokens = shape
        x = round_to_bfloat16(values_of(generator("round trip", shape), (tokens, columns), "f32"))
        yield elementwise(
            f"through_bf16_{number}", shape, [("bf16", x)], lambda b, x: b.cast(b.cast(x, "f32"), "bf16"), result="bf16"
        )


ELEMENTWISE_TABLE: Table = {
    **{f"unary {name}": lambda name=name: unary_cases(name) for name in functions.UNARY},  # type: ignore[misc]
    **{f"binary {name}": lambda name=name: binary_cases(name) for name in functions.BINARY},  # type: ignore[misc]
    **{f"compare {name}": lambda name=name: compare_cases(name) for name in functions.COMPARE},  # type: ignore[misc]
    "select": select_cases,
    **{
        f"cast {source} {target}": lambda source=source, target=target: cast_cases(source, target)  # type: ignore[misc]
        for source, target in sorted(CASTS)
    },
    "cast there and back": bfloat16_rounding_cases,
    **{f"reduce {name}": lambda name=name: reduce_cases(name) for name in functions.REDUCE},  # type: ignore[misc]
}
