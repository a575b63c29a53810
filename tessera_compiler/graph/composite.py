"""The ops that models are made of: weights, linear maps, norms, rotary embeddings, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
from xdsl.dialects.builtin import (
    ArrayAttr,
    BytesAttr,
    DenseIntOrFPElementsAttr,
    FloatAttr,
    IntegerAttr,
    StringAttr,
    TensorType,
    UnitAttr,
)
from xdsl.irdl import (
    attr_def,
    irdl_op_definition,
    operand_def,
    opt_attr_def,
    opt_operand_def,
    result_def,
    var_operand_def,
)
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.graph.base import Array, GraphOp
from tessera_compiler.graph.types import F32, I32, LOGIT_ROWS, TOKENS, Tensor, numpy_type, rows_of, tensor, type_of


def _check_vector(type: Tensor, size: int, what: str) -> None:
    if type != tensor((size,)):
        raise VerifyException(f"the {what} must be {tensor((size,))}; found {type}.")


def _check_rows(type: Tensor, rank: int, what: str) -> None:
    if rows_of(type) is None or len(type.get_shape()) != rank or type.get_element_type() != F32:
        raise VerifyException(f"the {what} must be f32 with rows and rank {rank}; found {type}.")


@irdl_op_definition
class WeightOp(GraphOp):
    """A tensor of the checkpoint: `sources`, each transposed if `transposed`, concatenated along axis 0.

    `name` is the tensor's name in the package. `evaluate` takes the sources as they are in the checkpoint.
    """

    name = "graph.weight"
    result = result_def(TensorType)
    weight_name = attr_def(StringAttr, attr_name="name")
    sources = attr_def(ArrayAttr[StringAttr])
    transposed = opt_attr_def(UnitAttr)
    FREE_RESULT: ClassVar[bool] = True

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        if result is None or rows_of(result) is not None or result.get_element_type() != F32:
            raise VerifyException(f"a weight is an f32 tensor without rows; found {result}.")
        if not values["sources"]:
            raise VerifyException("at least one source is needed.")
        if values.get("transposed") and len(result.get_shape()) != 2:
            raise VerifyException(f"only matrices can be transposed; found {result}.")
        return (result,)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        parts = [np.asarray(part, dtype=np.float32) for part in operands]
        if self.transposed:
            parts = [part.T for part in parts]
        whole = np.concatenate(parts, axis=0) if len(parts) > 1 else parts[0]
        expected = type_of(self.result).get_shape()
        if whole.shape != expected:
            raise VerifyException(f"weight {self.weight_name.data} must have shape {expected}; found {whole.shape}.")
        return (np.ascontiguousarray(whole),)


@irdl_op_definition
class ConstantOp(GraphOp):
    """A tensor that is known when the model is compiled. Scalars have shape []."""

    name = "graph.constant"
    result = result_def(TensorType)
    value = attr_def(DenseIntOrFPElementsAttr)
    FREE_RESULT: ClassVar[bool] = True

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        if result is None or rows_of(result) is not None:
            raise VerifyException(f"a constant has no rows; found {result}.")
        return (result,)

    @classmethod
    def of(cls, array: Any, module: str | None = None) -> ConstantOp:
        """The constant with the values of this array: integer arrays become i32, all else, Python numbers too, f32."""
        integers = isinstance(array, (np.ndarray, np.generic)) and np.issubdtype(array.dtype, np.integer)
        array = np.array(array, dtype=np.int32 if integers else np.float32, order="C")
        element = I32 if integers else F32
        type = tensor(array.shape, element)
        value = DenseIntOrFPElementsAttr(cast(Any, type), BytesAttr(array.tobytes()))
        return cls.make(result=type, value=value, module=module)

    @property
    def array(self) -> Array:
        """The value as an array."""
        type = type_of(self.result)
        return np.frombuffer(self.value.data.data, dtype=numpy_type(type.get_element_type())).reshape(type.get_shape())

    def verify_(self) -> None:
        super().verify_()
        if self.value.type != self.result.type:
            raise VerifyException(f"{self.name}: the value is {self.value.type}, but the result {self.result.type}.")
        if not np.isfinite(self.array).all():
            raise VerifyException(f"{self.name}: numbers in Graph IR are finite.")

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        return (self.array,)


@irdl_op_definition
class EmbeddingOp(GraphOp):
    """Row `ids[t] + offset` of `table` for each token `t`."""

    name = "graph.embedding"
    table = operand_def(TensorType)
    ids = operand_def(TensorType)
    result = result_def(TensorType)
    offset = attr_def(IntegerAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        table, ids = types
        if table.get_element_type() != F32 or len(table.get_shape()) != 2 or rows_of(table) is not None:
            raise VerifyException(f"the table must be an f32 matrix without rows; found {table}.")
        if rows_of(ids) is None or len(ids.get_shape()) != 1 or ids.get_element_type() != I32:
            raise VerifyException(f"the ids must be i32, one per row; found {ids}.")
        return (tensor((*ids.get_shape(), table.get_shape()[1]), F32, rows_of(ids)),)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        table, ids = operands
        return (table[ids + self.offset.value.data],)


@irdl_op_definition
class SelectRowsOp(GraphOp):
    """Row `rows[l]` of `x` for each wanted row `l`: the step from tokens (`T`) to logits (`L`)."""

    name = "graph.select_rows"
    x = operand_def(TensorType)
    rows = operand_def(TensorType)
    result = result_def(TensorType)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        x, rows = types
        if rows_of(x) != TOKENS:
            raise VerifyException(f'the operand must have rows "T"; found {x}.')
        if rows != tensor(rows.get_shape()[:1], I32, LOGIT_ROWS):
            raise VerifyException(f'the row numbers must be tensor<?xi32, "L">; found {rows}.')
        return (tensor(x.get_shape(), x.get_element_type(), LOGIT_ROWS),)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        x, rows = operands
        return (x[rows],)


@irdl_op_definition
class LinearOp(GraphOp):
    """`x @ weight.T + bias` over the last axis of `x`."""

    name = "graph.linear"
    x = operand_def(TensorType)
    weight = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    result = result_def(TensorType)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        x, weight = types[:2]
        shape = weight.get_shape()
        if len(shape) != 2 or rows_of(weight) is not None or weight.get_element_type() != F32:
            raise VerifyException(f"the weight must be an f32 matrix without rows; found {weight}.")
        if rows_of(x) is None or len(x.get_shape()) < 2 or x.get_element_type() != F32 or x.get_shape()[-1] != shape[1]:
            raise VerifyException(f"the operand must be f32 rows whose last axis has size {shape[1]}; found {x}.")
        if len(types) > 2:
            _check_vector(types[2], shape[0], "bias")
        return (tensor((*x.get_shape()[:-1], shape[0]), F32, rows_of(x)),)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        product = operands[0] @ operands[1].T
        return (product + operands[2] if len(operands) > 2 else product,)


@irdl_op_definition
class RmsNormOp(GraphOp):
    """`x / sqrt(mean(x^2) + eps) * (weight + weight_offset)` over the last axis; without a weight, no product."""

    name = "graph.rms_norm"
    x = operand_def(TensorType)
    weight = opt_operand_def(TensorType)
    result = result_def(TensorType)
    eps = attr_def(FloatAttr)
    weight_offset = attr_def(FloatAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        _check_rows(types[0], max(2, len(types[0].get_shape())), "operand")
        if len(types) > 1:
            _check_vector(types[1], types[0].get_shape()[-1], "weight")
        return (types[0],)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        x = operands[0]
        mean = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
        result = x * (1 / np.sqrt(mean + np.float32(self.eps.value.data)))
        if len(operands) > 1:
            result = result * (operands[1] + np.float32(self.weight_offset.value.data))
        return (result,)


@irdl_op_definition
class LayerNormOp(GraphOp):
    """`(x - mean) / sqrt(variance + eps) * (weight + weight_offset) + bias` over the last axis.

    The parameters are none, a weight, or a weight and a bias.
    """

    name = "graph.layer_norm"
    x = operand_def(TensorType)
    parameters = var_operand_def(TensorType)
    result = result_def(TensorType)
    eps = attr_def(FloatAttr)
    weight_offset = attr_def(FloatAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        _check_rows(types[0], max(2, len(types[0].get_shape())), "operand")
        if len(types) > 3:
            raise VerifyException(f"the parameters are none, a weight, or a weight and a bias; found {len(types) - 1}.")
        for parameter in types[1:]:
            _check_vector(parameter, types[0].get_shape()[-1], "weight or bias")
        return (types[0],)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        x = operands[0]
        centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
        variance = np.mean(centred * centred, axis=-1, keepdims=True, dtype=np.float32)
        result = centred * (1 / np.sqrt(variance + np.float32(self.eps.value.data)))
        if len(operands) > 1:
            result = result * (operands[1] + np.float32(self.weight_offset.value.data))
        return (result + operands[2] if len(operands) > 2 else result,)


@irdl_op_definition
class RopeTableOp(GraphOp):
    """`scale * cos` and `scale * sin` of the angles `positions[t] * inverse_frequencies[i]`, computed in f32."""

    name = "graph.rope_table"
    positions = operand_def(TensorType)
    inverse_frequencies = operand_def(TensorType)
    cos = result_def(TensorType)
    sin = result_def(TensorType)
    scale = attr_def(FloatAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        positions, frequencies = types
        if positions != tensor(positions.get_shape()[:1], I32, TOKENS):
            raise VerifyException(f'the positions must be tensor<?xi32, "T">; found {positions}.')
        if frequencies != tensor(frequencies.get_shape()[:1]):
            raise VerifyException(f"the inverse frequencies must be an f32 vector; found {frequencies}.")
        table = tensor((*positions.get_shape(), *frequencies.get_shape()), F32, TOKENS)
        return (table, table)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        positions, frequencies = operands
        angles = positions.astype(np.float32)[:, None] * frequencies[None, :]
        scale = np.float32(self.scale.value.data)
        return (np.cos(angles) * scale, np.sin(angles) * scale)


@irdl_op_definition
class RopeOp(GraphOp):
    """Rotates the first `2 * half` columns of each head by the angles of the table; the other columns stay.

    Column `i` is paired with `i + half`, or `2 i` with `2 i + 1` if `interleaved`: `(a cos - b sin, b cos + a sin)`.
    """

    name = "graph.rope"
    x = operand_def(TensorType)
    cos = operand_def(TensorType)
    sin = operand_def(TensorType)
    result = result_def(TensorType)
    interleaved = opt_attr_def(UnitAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        x, cos, sin = types
        _check_rows(x, 3, "operand")
        _check_rows(cos, 2, "cosine")
        if cos != sin or rows_of(cos) != rows_of(x) or 2 * cos.get_shape()[1] > x.get_shape()[2]:
            raise VerifyException(
                f"cosine and sine must have one type and at most half of {x}'s columns; found {cos}, {sin}."
            )
        return (x,)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        x, cos, sin = operands[0], operands[1][:, None, :], operands[2][:, None, :]
        half = cos.shape[-1]
        first, second = slice(0, half), slice(half, 2 * half)
        if self.interleaved:
            first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
        a, b = x[..., first], x[..., second]
        result = x.copy()
        result[..., first] = a * cos - b * sin
        result[..., second] = b * cos + a * sin
        return (result,)


@irdl_op_definition
class AttentionOp(GraphOp):
    """Causal attention of each token to its own sequence, through the KV cache of `layer`.

    Scores are `scale * q·k`, then `softcap * tanh(score / softcap)` unless `softcap` is 0; a token sees the positions
    up to its own, only the last `window` of them unless `window` is 0. Query head `i` reads KV head `i * hk // h`.
    `evaluate` is that of one sequence whose positions are 0..T-1 in row order.
    """

    name = "graph.attention"
    query = operand_def(TensorType)
    key = operand_def(TensorType)
    value = operand_def(TensorType)
    result = result_def(TensorType)
    layer = attr_def(IntegerAttr)
    scale = attr_def(FloatAttr)
    window = attr_def(IntegerAttr)
    softcap = attr_def(FloatAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        query, key, value = types
        for type, what in ((query, "query"), (key, "key"), (value, "value")):
            _check_rows(type, 3, what)
            if rows_of(type) != TOKENS:
                raise VerifyException(f'the {what} must have rows "T"; found {type}.')
        _, heads, width = query.get_shape()
        _, key_heads, key_width = key.get_shape()
        _, value_heads, value_width = value.get_shape()
        if key_width != width or value_heads != key_heads or heads % key_heads:
            raise VerifyException(
                f"query and key must have one width, key and value one number of heads that divides the query's; "
                f"found {query}, {key}, {value}."
            )
        return (tensor((query.get_shape()[0], heads, value_width), F32, TOKENS),)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        query, key, value = operands
        scale, window, softcap = (self.values[name] for name in ("scale", "window", "softcap"))
        group = query.shape[1] // key.shape[1]
        key, value = np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)
        scores = np.einsum("thd,shd->hts", query, key) * np.float32(scale)
        if softcap:
            scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
        tokens = np.arange(query.shape[0])
        distance = tokens[:, None] - tokens[None, :]
        visible = (distance >= 0) & (distance < window) if window else distance >= 0
        scores = np.where(visible, scores, np.float32(-np.inf))
        raised = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
        weights = raised / np.sum(raised, axis=-1, keepdims=True)
        return (np.einsum("hts,shd->thd", weights, value).astype(np.float32),)
