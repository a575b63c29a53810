"""Operations on each element alone: arithmetic, functions, comparisons, choices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tessera_runtime.executor.reference.error_function import erf
from tessera_runtime.executor.reference.numbers import HELD_AS, Array
from tessera_runtime.executor.reference.operation import Call, Operation, is_number


def sigmoid(x: Array) -> Array:
    # The exponent is kept negative: exp of a large positive number would overflow.
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def gelu(x: Array) -> Array:
    return np.asarray(x * np.float32(0.5) * (1 + erf(x / np.float32(math.sqrt(2)))))


def gelu_tanh(x: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)))


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "neg": np.negative,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "square": np.square,
    "abs": np.abs,
    "sin": np.sin,
    "cos": np.cos,
    "erf": erf,
    "expm1": np.expm1,
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "floor": np.floor,
}
"""The functions of one number, by the name of the operation (and of the activation of `gated`) that applies them."""

PAIRS: dict[str, Callable[[Array, Array], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "pow": np.power,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "logical_and": np.logical_and,
}
"""The functions of two elements, which broadcast as NumPy does."""


def _unary(function: Callable[[Array], Array]) -> Operation:
    return Operation(lambda call, x: (function(x),))


def _binary(function: Callable[[Array, Array], Any]) -> Operation:
    return Operation(lambda call, a, b: (function(a, b),), least=2, most=2)


def _select(call: Call, condition: Array, a: Array, b: Array) -> tuple[Array, ...]:
    return (np.where(condition, a, b),)


def _cast(call: Call, x: Array) -> tuple[Array, ...]:
    return (x.astype(HELD_AS[call.dtypes[0]]),)


def _softcap(call: Call, x: Array) -> tuple[Array, ...]:
    cap = np.float32(call.attributes["cap"])
    return (cap * np.tanh(x / cap),)


def _gated(call: Call, gate: Array, up: Array) -> tuple[Array, ...]:
    return (FUNCTIONS[call.attributes["activation"]](gate) * up,)


def _is_activation(value: Any) -> bool:
    return isinstance(value, str) and value in FUNCTIONS


OPERATIONS: dict[str, Operation] = {
    **{f"graph.{name}": _unary(function) for name, function in FUNCTIONS.items()},
    **{f"graph.{name}": _binary(function) for name, function in PAIRS.items()},
    "graph.logical_not": Operation(lambda call, x: (np.logical_not(x),)),
    "graph.select": Operation(_select, least=3, most=3),
    "graph.cast": Operation(_cast),
    "graph.softcap": Operation(_softcap, attributes={"cap": is_number}),
    "graph.gated": Operation(_gated, least=2, most=2, attributes={"activation": _is_activation}),
}
