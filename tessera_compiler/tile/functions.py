"""The scalar functions of Tile IR: what `tile.unary`, `tile.binary`, `tile.compare` and `tile.reduce` can do, as NumPy.

A target implements every name in these tables for the elements listed, within the error budget given: the largest
relative error, or absolute error where the result is below one, in units of float32's epsilon (2^-23).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True)
class UnaryFunction:
    apply: Callable[[Array], Array]
    budget: float
    """Error allowed on a target; 0 means bit-exact."""
    domain: tuple[float, float] = (-40.0, 40.0)
    """Where tests draw arguments from."""


def _in_double(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def apply(values: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(function(values.astype(np.float64))).astype(np.float32)

    return apply


def _exactly(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def apply(values: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(function(values)).astype(values.dtype)

    return apply


def _sigmoid(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


UNARY: dict[str, UnaryFunction] = {
    "neg": UnaryFunction(_exactly(np.negative), 0),
    "abs": UnaryFunction(_exactly(np.abs), 0),
    "square": UnaryFunction(_exactly(np.square), 0),
    "relu": UnaryFunction(_exactly(lambda x: np.maximum(x, np.float32(0))), 0),
    "sqrt": UnaryFunction(_exactly(np.sqrt), 0, (0.0, 1e6)),
    "rsqrt": UnaryFunction(_exactly(lambda x: np.float32(1) / np.sqrt(x)), 0, (1e-6, 1e6)),
    "reciprocal": UnaryFunction(_exactly(lambda x: np.float32(1) / x), 0, (1e-3, 1e6)),
    "round": UnaryFunction(_exactly(np.rint), 0),
    "floor": UnaryFunction(_exactly(np.floor), 0),
    "exp": UnaryFunction(_in_double(np.exp), 2, (-80.0, 80.0)),
    "exp2": UnaryFunction(_in_double(np.exp2), 2, (-150.0, 127.0)),
    "expm1": UnaryFunction(_in_double(np.expm1), 4, (-20.0, 20.0)),
    "log": UnaryFunction(_in_double(np.log), 2, (1e-20, 1e20)),
    "tanh": UnaryFunction(_in_double(np.tanh), 4),
    "sigmoid": UnaryFunction(_in_double(_sigmoid), 4),
    "silu": UnaryFunction(_in_double(lambda x: x * _sigmoid(x)), 6),
    "gelu": UnaryFunction(_in_double(lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2)))), 16),
    "gelu_tanh": UnaryFunction(
        _in_double(lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))), 16
    ),
    "erf": UnaryFunction(_in_double(_erf), 6),
    "softplus": UnaryFunction(_in_double(lambda x: np.logaddexp(0.0, x)), 6),
    "sin": UnaryFunction(_in_double(np.sin), 2, (-1e5, 1e5)),
    "cos": UnaryFunction(_in_double(np.cos), 2, (-1e5, 1e5)),
    "not": UnaryFunction(lambda x: np.logical_not(x), 0),
}
"""Functions of one argument. All but `not` (i1) take and give f32; `neg`, `abs` and `square` take i32 as well."""

UNARY_ELEMENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(UNARY, ("f32",)),
    **dict.fromkeys(("neg", "abs", "square"), ("f32", "i32")),
    "not": ("i1",),
}
"""The elements that each function of one argument takes."""

EXPENSIVE = frozenset(name for name, function in UNARY.items() if function.budget > 0)
"""Functions that a target should not evaluate twice when a value is used twice."""

BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "pow": lambda a, b: np.power(a.astype(np.float64), b.astype(np.float64)).astype(np.float32),
    "largest": lambda a, b: np.where(a > b, a, b),
    "and": np.logical_and,
}
"""Functions of two arguments of one element: f32 or i32 (`add`, `sub`, `mul`, `maximum`, `minimum`), `and` for i1.
All but `pow` (budget 16) are exact."""

BINARY_ELEMENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("add", "sub", "mul", "maximum", "minimum"), ("f32", "i32")),
    **dict.fromkeys(("div", "pow", "largest"), ("f32",)),
    "and": ("i1",),
}
"""The elements that each function of two arguments takes."""

NUMBERS = ("f32", "i32")
"""The elements that are compared and reduced."""

REDUCE_ELEMENTS: dict[str, tuple[str, ...]] = {**dict.fromkeys(("sum", "max", "min"), NUMBERS), "largest": ("f32",)}
"""The elements that each reduction takes."""

COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "equal": np.equal,
    "not_equal": np.not_equal,
}

LANES = 16
"""Partial results of a row reduction: element c goes to lane c mod 16, then lanes are combined in halves (8,
4, 2, 1).
"""

_IDENTITY = {"sum": 0.0, "max": -math.inf, "min": math.inf, "largest": -math.inf}
_COMBINE: dict[str, Callable[[Array, Array], Array]] = {
    "sum": np.add,
    "max": np.maximum,
    "min": np.minimum,
    "largest": BINARY["largest"],
}
REDUCE = tuple(_COMBINE)


def reduce_columns(function: str, values: Array) -> Array:
    """Reduces axis 1 of [R, C] to [R, 1] in the order that every target keeps, so results agree to the bit."""
    rows, columns = values.shape
    combine = _COMBINE[function]
    identity = _IDENTITY[function]
    if values.dtype == np.int32 and not math.isfinite(identity):
        info = np.iinfo(np.int32)
        identity = info.min if identity < 0 else info.max
    padded = np.full((rows, -(-columns // LANES) * LANES), identity, dtype=values.dtype)
    padded[:, :columns] = values
    lanes = padded[:, :LANES]
    with np.errstate(all="ignore"):
        for start in range(LANES, padded.shape[1], LANES):
            lanes = combine(lanes, padded[:, start : start + LANES])
        width = LANES
        while width > 1:
            width //= 2
            lanes = combine(lanes[:, :width], lanes[:, width : 2 * width])
    return lanes
