"""The operations of Tessera's programs as NumPy functions: what each means, ready to call.

These run the very functions of the reference executor, which is what every target is measured against. They are
for looking, checking and testing; a package's programs hold compiled kernels and never come here. Floating point
is float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tessera_runtime.errors import InvalidRequest, NumericalError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tessera_runtime.executor.reference.operation import Operation

    Array = NDArray[Any]

BLOCK = 64
"""Positions that `flash_attention` looks at together."""


def names() -> tuple[str, ...]:
    """The operations that `evaluate` knows, without the `graph.` in front."""
    return tuple(sorted(_operations()))


def evaluate(
    name: str,
    *operands: Array,
    shapes: Sequence[Sequence[int | None]] = (),
    dtypes: Sequence[str] = (),
    **attributes: Any,
) -> Array | tuple[Array, ...]:
    """One operation of the graph dialect: `evaluate("rms_norm", x, weight, eps=1e-6, weight_offset=0.0)`.

    docs/spec/graph-ir.md says what each means and which attributes it has. `shapes` and `dtypes` are of the results,
    for the operations that a result's type decides (`reshape`, `broadcast`, `cast`, `constant`); None stands for the
    first axis as it comes. Gives an array, or a tuple of them where the operation has several results.
    """
    import numpy as np

    from tessera_runtime.executor.reference.operation import Call

    operation = _operation(name)
    if not operation.least <= len(operands) <= operation.most:
        expected = str(operation.least) if operation.least == operation.most else f"{operation.least} or more"
        raise InvalidRequest(f"The operation {name} has {expected} operands, not {len(operands)}.")
    _check_attributes(name, operation, attributes)
    arrays = [_as_array(operand) for operand in operands]
    if operation.results and not shapes:
        shapes = ((arrays[0].shape),) if arrays else ((),)
    try:
        with np.errstate(all="ignore"):
            results = operation.function(
                Call(attributes, tuple(map(tuple, shapes)), tuple(dtypes) or ("f32",)), *arrays
            )
    except (ValueError, IndexError, KeyError, TypeError) as error:
        given = ", ".join(str(array.shape) for array in arrays)
        raise InvalidRequest(f"The operation {name} cannot be applied to shapes {given}: {error}.") from None
    return results[0] if len(results) == 1 else results


def check_numerics(values: Array, name: str = "values") -> Array:
    """The values themselves if all of them are finite; else raises `NumericalError`, which says how many and where."""
    import numpy as np

    array = np.asarray(values)
    if array.dtype.kind not in "fc":
        return array
    wrong = ~np.isfinite(array)
    if wrong.any():
        nan = int(np.isnan(array).sum())
        first = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise NumericalError(
            f"Of {array.size} {name}, {nan} are NaN and {int(wrong.sum()) - nan} infinite; the first is at {first}.",
            hint="What produced this value is the place to look.",
        )
    return array


def flash_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int = 0,
    softcap: float = 0.0,
) -> Array:
    """Attention in one pass over blocks of positions, as the kernels do it: no matrix of all scores is ever made.

    `query` is [tokens, heads, dim], `key` [positions, key heads, dim], `value` [positions, key heads, value dim];
    heads is a multiple of key heads. The queries are those of the last positions. `scale` is 1/sqrt(dim) if not given;
    `window` lets a token see only so many positions, itself included (0: all); `softcap` bounds scores by c·tanh(s/c).
    """
    import numpy as np

    q, k, v = (np.asarray(each, np.float32) for each in (query, key, value))
    _check_attention(q, k, v, window, softcap)
    tokens, heads, dim = q.shape
    positions, key_heads = k.shape[:2]
    factor = np.float32(1 / math.sqrt(dim) if scale is None else scale)
    grouped = (q * factor).reshape(tokens, key_heads, heads // key_heads, dim).transpose(1, 2, 0, 3)
    places = np.arange(positions - tokens, positions)
    maximum = np.full(grouped.shape[:3], -np.inf, np.float32)
    total = np.zeros(grouped.shape[:3], np.float32)
    result = np.zeros((*grouped.shape[:3], v.shape[2]), np.float32)
    for start in range(0, positions, BLOCK):
        end = min(start + BLOCK, positions)
        scores = grouped @ k[start:end].transpose(1, 2, 0)[:, None]
        if softcap:
            scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
        distance = places[:, None] - np.arange(start, end)
        seen = np.ones(distance.shape, bool)
        if causal:
            seen &= distance >= 0
        if window:
            seen &= distance < window
        scores = np.where(seen, scores, np.float32(-np.inf))
        raised = np.maximum(maximum, scores.max(axis=-1))
        # A token that has seen nothing yet has no maximum; any finite number does, as all its terms are zero.
        anchor = np.where(np.isfinite(raised), raised, np.float32(0))
        weights = np.exp(scores - anchor[..., None])
        shrink = np.where(np.isfinite(maximum), np.exp(maximum - anchor), np.float32(0))
        total = total * shrink + weights.sum(axis=-1)
        result = result * shrink[..., None] + weights @ v[start:end].transpose(1, 0, 2)[:, None]
        maximum = raised
    result /= total[..., None]
    return np.ascontiguousarray(result.transpose(2, 0, 1, 3).reshape(tokens, heads, -1))


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """`x @ weight.T + bias`: `weight` is [out, in], as checkpoints store it."""
    import numpy as np

    x, weight = np.asarray(x, np.float32), np.asarray(weight, np.float32)
    if (
        weight.ndim != 2
        or x.shape[-1:] != weight.shape[1:]
        or (bias is not None and np.shape(bias) != weight.shape[:1])
    ):
        raise InvalidRequest(
            f"linear needs x [..., in], weight [out, in] and bias [out]; found {x.shape}, {weight.shape}"
            f" and {None if bias is None else np.shape(bias)}."
        )
    product: Array = x @ weight.T
    return product if bias is None else np.asarray(product + np.asarray(bias, np.float32))


def embedding(ids: Array, table: Array) -> Array:
    """The rows of `table` that the ids name."""
    import numpy as np

    ids, table = np.asarray(ids), np.asarray(table)
    if ids.dtype.kind not in "iu" or table.ndim != 2 or (ids.size and not 0 <= ids.min() <= ids.max() < len(table)):
        raise InvalidRequest(f"embedding needs integer ids from 0 to {len(table) - 1} and a table of two axes.")
    return np.asarray(table[ids])


def rms_norm(x: Array, weight: Array | None = None, *, eps: float = 1e-6, weight_offset: float = 0.0) -> Array:
    """`x / sqrt(mean(x²) + eps) * (weight + weight_offset)` along the last axis."""
    operands = (x,) if weight is None else (x, weight)
    return _one("rms_norm", *operands, eps=float(eps), weight_offset=float(weight_offset))


def layer_norm(x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5) -> Array:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` along the last axis."""
    if bias is not None and weight is None:
        raise InvalidRequest("layer_norm has a bias only together with a weight.")
    operands = [each for each in (x, weight, bias) if each is not None]
    return _one("layer_norm", *operands, eps=float(eps), weight_offset=0.0)


def softmax(x: Array) -> Array:
    """Exponentials divided by their sum, along the last axis."""
    return _one("softmax", x)


def silu(x: Array) -> Array:
    """`x * sigmoid(x)`."""
    return _one("silu", x)


def gelu(x: Array, *, tanh: bool = False) -> Array:
    """`x` times the normal distribution function at `x`; with `tanh`, its usual approximation."""
    return _one("gelu_tanh" if tanh else "gelu", x)


def rope(x: Array, positions: Array, *, theta: float = 10_000.0, interleaved: bool = False) -> Array:
    """Rotary embedding of `x` [tokens, heads, dim]: column pairs turn by `position * theta**(-2i/dim)`.

    The pairs are (i, i + dim/2), or (2i, 2i + 1) if `interleaved`.
    """
    import numpy as np

    x = _as_array(x)
    if x.ndim != 3 or x.shape[2] % 2 or np.shape(positions) != x.shape[:1]:
        raise InvalidRequest(
            f"rope needs x [tokens, heads, even dim] and positions [tokens]; found {x.shape} and {np.shape(positions)}."
        )
    frequencies = (1.0 / theta ** (np.arange(0, x.shape[2], 2) / x.shape[2])).astype(np.float32)
    cos, sin = evaluate("rope_table", np.asarray(positions, np.int32), frequencies, scale=1.0)
    return _one("rope", x, cos, sin, **({"interleaved": True} if interleaved else {}))


def _one(name: str, *operands: Array, **attributes: Any) -> Array:
    result = evaluate(name, *operands, **attributes)
    return result[0] if isinstance(result, tuple) else result


def _operations() -> dict[str, Operation]:
    """Those of the graph dialect that need neither a package's weights nor a cache."""
    from tessera_runtime.executor.reference.table import OPERATIONS

    return {
        name.removeprefix("graph."): operation
        for name, operation in OPERATIONS.items()
        if name.startswith("graph.") and not operation.weights
    }


def _operation(name: str) -> Operation:
    operations = _operations()
    found = operations.get(name.removeprefix("graph."))
    if found is None:
        import difflib

        near = difflib.get_close_matches(name, operations, n=1)
        meant = f"Did you mean {near[0]!r}?" if near else "op.names() lists them."
        raise InvalidRequest(f"There is no operation {name!r} to evaluate.", hint=meant)
    return found


def _check_attributes(name: str, operation: Operation, attributes: dict[str, Any]) -> None:
    known = {**operation.attributes, **operation.optional}
    for attribute in operation.attributes:
        if attribute not in attributes:
            raise InvalidRequest(f"The operation {name} needs the attribute {attribute!r}.")
    for attribute, value in attributes.items():
        if attribute not in known:
            listed = ", ".join(known) or "none"
            raise InvalidRequest(f"The operation {name} has no attribute {attribute!r}; it has {listed}.")
        if not known[attribute](value):
            raise InvalidRequest(f"The attribute {attribute!r} of the operation {name} cannot be {value!r}.")


def _as_array(values: Any) -> Array:
    """Floating point of any width becomes float32, integers int32."""
    import numpy as np

    array = np.asarray(values)
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if array.dtype.kind in "iu" and array.dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
        return array.astype(np.int32, copy=False)
    return array


def _check_attention(q: Array, k: Array, v: Array, window: int, softcap: float) -> None:
    fits = q.ndim == k.ndim == v.ndim == 3
    fits = fits and k.shape[:2] == v.shape[:2] and q.shape[2] == k.shape[2] and 0 < len(q) <= len(k)
    if not fits or not k.shape[1] or q.shape[1] % k.shape[1]:
        raise InvalidRequest(
            "flash_attention needs query [tokens, heads, dim], key [positions, key heads, dim] and value"
            " [positions, key heads, value dim], with tokens up to positions and heads a multiple of key heads;"
            f" found {q.shape}, {k.shape} and {v.shape}."
        )
    if window < 0 or softcap < 0:
        raise InvalidRequest("window and softcap of flash_attention are 0 (none) or positive.")
