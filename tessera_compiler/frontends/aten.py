"""The table of ATen operations: what each becomes in Graph IR.

A handler takes the importer and the node's arguments and returns the `Tracked` result (or a list of them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from xdsl.ir import SSAValue

from tessera_compiler.frontends import aten_shape as shapes
from tessera_compiler.frontends.importer import Importer, Tracked
from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import F32, I32

Handler = Callable[..., Any]


def _unary(operation: type[graph.GraphOp]) -> Handler:
    def handle(importer: Importer, x: Any) -> Tracked:
        operand = importer.tracked(x)
        return Tracked(importer.emit(operation, operand.value), operand.shape)

    return handle


def _binary(operation: type[graph.GraphOp]) -> Handler:
    def handle(importer: Importer, a: Any, b: Any, *, alpha: float = 1) -> Tracked:
        left, right = _pair(importer, a, b)
        if alpha != 1:
            shape = right.shape
            scale = importer.tracked(alpha, right)
            right = Tracked(importer.emit(graph.MulOp, right.value, scale.value), shape)
        return importer.broadcast(operation, left, right)

    return handle


def _pair(importer: Importer, a: Any, b: Any) -> tuple[Tracked, Tracked]:
    """Both operands in the element type that torch would compute in."""
    left = importer.tracked(a) if isinstance(a, torch.fx.Node) else importer.tracked(a, importer.tracked(b))
    right = importer.tracked(b, left)
    if left.element == right.element:
        return left, right
    wider = F32 if F32 in (left.element, right.element) else I32
    return importer.cast(left, wider), importer.cast(right, wider)


def _reversed_subtract(importer: Importer, x: Any, other: Any, alpha: float = 1) -> Tracked:
    if alpha != 1:
        raise importer.refuse("a scaled rsub is not expected in models.")
    left, right = _pair(importer, other, x)
    return importer.broadcast(graph.SubOp, left, right)


def _clamp(importer: Importer, x: Any, low: Any = None, high: Any = None) -> Tracked:
    result = importer.tracked(x)
    for operation, bound in ((graph.MaximumOp, low), (graph.MinimumOp, high)):
        if bound is not None:
            result = importer.broadcast(operation, result, importer.tracked(bound, result))
    return result


def _true_divide(importer: Importer, a: Any, b: Any) -> Tracked:
    left, right = _pair(importer, a, b)
    return importer.broadcast(graph.DivOp, importer.cast(left, F32), importer.cast(right, F32))


def _where(importer: Importer, condition: Any, a: Any, b: Any) -> Tracked:
    left, right = _pair(importer, a, b)
    return importer.broadcast(graph.SelectOp, importer.tracked(condition), left, right)


def _same(importer: Importer, x: Any, *ignored: Any, **options: Any) -> Tracked:
    return importer.tracked(x)


def _dropout(importer: Importer, x: Any, probability: float, train: bool) -> Tracked:
    if train:
        raise importer.refuse("dropout is active; the model must be in evaluation mode.")
    return importer.tracked(x)


def _to(importer: Importer, x: Any, *ignored: Any, **options: Any) -> Tracked:
    return importer.cast(importer.tracked(x), importer.output_element())


def _gelu(importer: Importer, x: Any, approximate: str = "none") -> Tracked:
    operand = importer.tracked(x)
    operation = graph.GeluTanhOp if approximate == "tanh" else graph.GeluOp
    return Tracked(importer.emit(operation, operand.value), operand.shape)


def _softplus(importer: Importer, x: Any, beta: float = 1, threshold: float = 20) -> Tracked:
    if beta != 1:
        raise importer.refuse("only a softplus whose beta is 1 is compiled.")
    # Above its threshold torch returns x, which is what the formula gives in float32 there.
    if threshold < 20:
        raise importer.refuse("only a softplus whose threshold is 20 or more is compiled.")
    result: Tracked = _unary(graph.SoftplusOp)(importer, x)
    return result


def _along_last(importer: Importer, x: Any, dim: Any) -> tuple[Tracked, SSAValue]:
    """The operand and its value with the reduced dimension as last axis."""
    operand = importer.tracked(x)
    dims = [dim] if isinstance(dim, int) else list(dim or range(len(operand.shape)))
    if len(dims) != 1 or importer.positive(dims[0], operand.shape) != len(operand.shape) - 1:
        raise importer.refuse("only reductions over the last dimension are compiled.")
    last = len(operand.shape) - 1
    if isinstance(operand.shape[last], str):
        raise importer.refuse("tokens are reduced over, which would make a token's result depend on others.")
    return operand, importer.with_axes(operand, importer.kept_axes(operand, last))


def _reduce(operation: type[graph.GraphOp]) -> Handler:
    def handle(importer: Importer, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tracked:
        if dtype not in (None, torch.float32):
            raise importer.refuse(f"it accumulates in {dtype}.")
        _, value = _along_last(importer, x, dim)
        return importer.result(importer.emit(operation, value))

    return handle


def _softmax(importer: Importer, x: Any, dim: int, *ignored: Any, **options: Any) -> Tracked:
    _, value = _along_last(importer, x, dim)
    return importer.result(importer.emit(graph.SoftmaxOp, value))


def _layer_norm(
    importer: Importer,
    x: Any,
    shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tracked:
    if len(shape) != 1:
        raise importer.refuse("only layer norms over the last dimension are compiled.")
    _, value = _along_last(importer, x, -1)
    parameters = [None if each is None else importer.tracked(each).value for each in (weight, bias)]
    if parameters[0] is None and parameters[1] is not None:
        parameters[0] = importer.constant(np.ones(shape, dtype=np.float32))
    return importer.result(importer.emit(graph.LayerNormOp, value, *parameters, eps=float(eps), weight_offset=0.0))


def _rms_norm(
    importer: Importer, x: Any, shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Tracked:
    if len(shape) != 1:
        raise importer.refuse("only norms over the last dimension are compiled.")
    _, value = _along_last(importer, x, -1)
    scale = None if weight is None else importer.tracked(weight).value
    eps = float(np.finfo(np.float32).eps) if eps is None else float(eps)
    return importer.result(importer.emit(graph.RmsNormOp, value, scale, eps=eps, weight_offset=0.0))


def _linear(importer: Importer, x: Any, weight: Any, bias: Any = None) -> Tracked:
    _, value = _along_last(importer, x, -1)
    matrix = importer.tracked(weight)
    offset = None if bias is None else importer.with_axes(importer.tracked(bias), [0])
    product = importer.emit(graph.LinearOp, value, importer.with_axes(matrix, [0, 1]), offset)
    return importer.result(product)


def _addmm(importer: Importer, bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Tracked:
    if beta != 1 or alpha != 1:
        raise importer.refuse("a scaled addmm is not expected in models.")
    _, value = _along_last(importer, x, -1)
    matrix = importer.with_axes(importer.permuted(importer.tracked(weight), [1, 0]), [0, 1])
    offset = importer.with_axes(importer.tracked(bias), [0])
    return importer.result(importer.emit(graph.LinearOp, value, matrix, offset))


def _matmul(importer: Importer, a: Any, b: Any) -> Tracked:
    left, right = importer.tracked(a), importer.tracked(b)
    if len(left.shape) > 1 and len(right.shape) > 1 and left.shape[-1] == 1:
        # An outer product: each element is one product.
        return importer.broadcast(graph.MulOp, left, right)
    if len(right.shape) == 2 and all(isinstance(size, int) for size in right.shape):
        matrix = importer.with_axes(importer.permuted(right, [1, 0]), [0, 1])
        _, value = _along_last(importer, a, -1)
        return importer.result(importer.emit(graph.LinearOp, value, matrix, None))
    raise importer.refuse("a product of two computed tensors outside of attention is not compiled.")


def _embedding(importer: Importer, table: Any, ids: Any, *ignored: Any) -> Tracked:
    rows = importer.tracked(ids)
    if len(rows.axes) != 1:
        raise importer.refuse("one id per token is expected.")
    value = importer.emit(graph.EmbeddingOp, importer.with_axes(importer.tracked(table), [0, 1]), rows.value, offset=0)
    return importer.result(value)


def _index(importer: Importer, x: Any, indices: Sequence[Any]) -> Tracked:
    operand = importer.tracked(x)
    positions = [axis for axis, index in enumerate(indices) if index is not None]
    if len(positions) != 1:
        raise importer.refuse("only indexing along one dimension is compiled.")
    (dim,) = positions
    index = importer.tracked(indices[dim])
    if operand.shape[dim] == "T" and index.shape == ("L",):
        return importer.result(importer.emit(graph.SelectRowsOp, operand.value, index.value))
    if dim == 0 and len(operand.shape) == 2 and len(index.axes) == 1 and index.shape[index.axes[0]] == "T":
        table = importer.with_axes(operand, [0, 1])
        return importer.result(importer.emit(graph.EmbeddingOp, table, index.value, offset=0))
    raise importer.refuse(f"indexing {list(operand.shape)} with {list(index.shape)} is not compiled.")


def _attention(
    importer: Importer, query: Any, key: Any, value: Any, scale: float, window: int, softcap: float
) -> Tracked:
    # Torch has [1, heads, T, width]; the op wants tokens, heads and width, even where one of them is 1.
    operands = [importer.with_axes(importer.tracked(each), [2, 1, 3]) for each in (query, key, value)]
    layer = len(importer.attention_modules)
    importer.attention_modules.append(importer.path or "")
    return importer.result(
        importer.emit(graph.AttentionOp, *operands, layer=layer, scale=scale, window=window, softcap=softcap)
    )


_FUNCTIONS = {
    "neg": graph.NegOp,
    "exp": graph.ExpOp,
    "log": graph.LogOp,
    "sqrt": graph.SqrtOp,
    "rsqrt": graph.RsqrtOp,
    "reciprocal": graph.ReciprocalOp,
    "tanh": graph.TanhOp,
    "sigmoid": graph.SigmoidOp,
    "silu": graph.SiluOp,
    "relu": graph.ReluOp,
    "square": graph.SquareOp,
    "abs": graph.AbsOp,
    "sin": graph.SinOp,
    "cos": graph.CosOp,
    "erf": graph.ErfOp,
    "expm1": graph.Expm1Op,
    "floor": graph.FloorOp,
    "logical_not": graph.LogicalNotOp,
}
_COMPARISONS = {
    "lt": graph.LessOp,
    "le": graph.LessEqualOp,
    "gt": graph.GreaterOp,
    "ge": graph.GreaterEqualOp,
    "eq": graph.EqualOp,
    "ne": graph.NotEqualOp,
}

HANDLERS: dict[str, Handler] = {
    **{f"aten.{name}.default": _unary(operation) for name, operation in _FUNCTIONS.items()},
    **{
        f"aten.{name}.{overload}": _binary(operation)
        for name, operation in _COMPARISONS.items()
        for overload in ("Scalar", "Tensor")
    },
    **{
        f"aten.{name}.{overload}": _binary(operation)
        for name, operation in (("add", graph.AddOp), ("sub", graph.SubOp), ("mul", graph.MulOp))
        for overload in ("Tensor", "Scalar")
    },
    "aten.div.Tensor": _true_divide,
    "aten.div.Scalar": _true_divide,
    "aten.rsub.Scalar": _reversed_subtract,
    "aten.rsub.Tensor": _reversed_subtract,
    "aten.pow.Tensor_Scalar": _binary(graph.PowOp),
    "aten.pow.Tensor_Tensor": _binary(graph.PowOp),
    "aten.pow.Scalar": _binary(graph.PowOp),
    "aten.maximum.default": _binary(graph.MaximumOp),
    "aten.minimum.default": _binary(graph.MinimumOp),
    "aten.max.other": _binary(graph.MaximumOp),
    "aten.min.other": _binary(graph.MinimumOp),
    "aten.clamp.default": _clamp,
    "aten.clamp_min.default": _clamp,
    "aten.clamp_max.default": lambda importer, x, high: _clamp(importer, x, None, high),
    "aten.logical_and.default": _binary(graph.LogicalAndOp),
    "aten.where.self": _where,
    "aten.where.ScalarOther": _where,
    "aten.gelu.default": _gelu,
    "aten.softplus.default": _softplus,
    "aten.mean.dim": _reduce(graph.ReduceMeanOp),
    "aten.sum.dim_IntList": _reduce(graph.ReduceSumOp),
    "aten.amax.default": _reduce(graph.ReduceMaxOp),
    "aten.softmax.int": _softmax,
    "aten._softmax.default": _softmax,
    "aten.layer_norm.default": _layer_norm,
    "aten.rms_norm.default": _rms_norm,
    "aten.linear.default": _linear,
    "aten.addmm.default": _addmm,
    "aten.matmul.default": _matmul,
    "aten.mm.default": _matmul,
    "aten.bmm.default": _matmul,
    "aten.embedding.default": _embedding,
    "aten.index.Tensor": _index,
    "tessera.attention.default": _attention,
    **dict.fromkeys(
        (
            "aten.alias.default",
            "aten.clone.default",
            "aten.contiguous.default",
            "aten.detach.default",
            "aten.detach_.default",
            "aten.lift_fresh_copy.default",
            "aten.to.device",
        ),
        _same,
    ),
    "aten.dropout.default": _dropout,
    **dict.fromkeys(("aten.to.dtype", "aten.to.dtype_layout", "aten._to_copy.default", "aten.type_as.default"), _to),
    **dict.fromkeys(
        (
            "aten.view.default",
            "aten.reshape.default",
            "aten._unsafe_view.default",
            "aten.flatten.using_ints",
            "aten.unflatten.int",
            "aten.squeeze.dim",
            "aten.squeeze.dims",
            "aten.squeeze.default",
            "aten.unsqueeze.default",
        ),
        shapes.view,
    ),
    "aten.permute.default": shapes.permute,
    "aten.transpose.int": shapes.transpose,
    "aten.t.default": shapes.matrix_transpose,
    **dict.fromkeys(("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default"), shapes.expand),
    "aten.repeat.default": shapes.repeat,
    "aten.repeat_interleave.self_int": shapes.repeat_interleave,
    "aten.slice.Tensor": shapes.cut,
    "aten.select.int": shapes.select,
    **dict.fromkeys(("aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default"), shapes.split),
    "aten.unbind.int": shapes.unbind,
    "aten.cat.default": shapes.cat,
    "aten.stack.default": shapes.stack,
    **dict.fromkeys(
        ("aten.empty.memory_format", "aten.new_empty.default", "aten.empty_like.default"), shapes.unwritten
    ),
    "aten.copy.default": shapes.copy,
    "aten.slice_scatter.default": shapes.slice_scatter,
    "aten.ones.default": shapes.filled(1),
    "aten.zeros.default": shapes.filled(0),
    "aten.ones_like.default": shapes.filled(1),
    "aten.zeros_like.default": shapes.filled(0),
    "aten.full.default": shapes.filled_with,
    "aten.full_like.default": shapes.filled_with,
    "aten.scalar_tensor.default": shapes.scalar_tensor,
    "aten.arange.default": shapes.arange,
    "aten.arange.start": shapes.arange,
    "aten.arange.start_step": shapes.arange,
}
"""ATen operation → handler. What is not here is refused by name."""
