"""Every op of Graph IR: what `evaluate` gives, against torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from xdsl.ir import Block

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.base import Array
from tessera_compiler.graph.types import DYNAMIC, F32, I32, LOGIT_ROWS, TOKENS, Tensor, static_tensor, tensor

T = 5
_random = np.random.default_rng(0)


def rows(*shape: int) -> Array:
    return _random.normal(size=(T, *shape)).astype(np.float32)


def fixed(*shape: int) -> Array:
    return _random.normal(size=shape).astype(np.float32)


X, Y, POSITIVE = rows(4), rows(4), np.abs(rows(4)) + np.float32(0.1)
HEADS, VECTOR, MATRIX = rows(2, 6), fixed(4), fixed(3, 4)
IDS = np.asarray([3, 0, 2, 2, 1], dtype=np.int32)
ANGLES = rows(2)
QUERY, KEY, VALUE = rows(4, 6), rows(2, 6), rows(2, 3)


@dataclass(frozen=True)
class Row:
    """One op on some operands. Arrays of T rows are tokens; `expected` is what torch gives."""

    op: type[graph.GraphOp]
    operands: tuple[Array, ...]
    expected: Any
    values: dict[str, Any] = field(default_factory=dict)
    result: Tensor | None = None
    logit_operands: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.op.name.removeprefix("graph.") + "".join(f"-{key}" for key in self.values)


def type_of_array(array: Array, encoding: str) -> Tensor:
    static = static_tensor(array)
    if array.ndim == 0 or array.shape[0] != (T if encoding == TOKENS else 2):
        return static
    return tensor((DYNAMIC, *array.shape[1:]), static.get_element_type(), encoding)


def rotated(x: torch.Tensor, angles: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """The rotation as a product of complex numbers."""
    width = 2 * angles.shape[-1]
    part = x[..., :width]
    pairs = part.unflatten(-1, (-1, 2)) if interleaved else part.unflatten(-1, (2, -1)).transpose(-1, -2)
    turned = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles), angles)[:, None]
    real = torch.view_as_real(turned)
    whole = real.flatten(-2) if interleaved else real.transpose(-1, -2).flatten(-2)
    return torch.cat([whole, x[..., width:]], dim=-1)


def attended(scale: float, window: int, softcap: float) -> torch.Tensor:
    """Attention by torch, head by head, over an explicit mask."""
    distance = torch.arange(T)[:, None] - torch.arange(T)[None]
    hidden = (distance < 0) | (distance >= window if window else distance < 0)
    heads = []
    for head in range(4):
        scores = scale * torch.from_numpy(QUERY[:, head] @ KEY[:, head // 2].T)
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        heads.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ torch.from_numpy(VALUE[:, head // 2]))
    return torch.stack(heads, dim=1)


def unary(op: type[graph.GraphOp], function: Any, x: Array = X) -> Row:
    return Row(op, (x,), function(torch.from_numpy(x)))


def binary(op: type[graph.GraphOp], function: Any, a: Array = X, b: Array = Y) -> Row:
    return Row(op, (a, b), function(torch.from_numpy(a), torch.from_numpy(b)))


t = torch.from_numpy
ATTENTION = {"layer": 0, "scale": 0.3, "window": 0, "softcap": 0.0}
TABLE = [
    Row(
        graph.WeightOp,
        (MATRIX, MATRIX),
        np.concatenate([MATRIX, MATRIX]),
        {"name": "w", "sources": ("a", "b")},
        tensor((6, 4)),
    ),
    Row(graph.WeightOp, (MATRIX,), MATRIX.T, {"name": "w", "sources": ("a",), "transposed": True}, tensor((4, 3))),
    Row(graph.EmbeddingOp, (MATRIX, IDS), MATRIX[IDS - 1], {"offset": -1}),
    Row(graph.SelectRowsOp, (X, np.asarray([4, 1], dtype=np.int32)), X[[4, 1]], logit_operands=(1,)),
    Row(graph.LinearOp, (X, MATRIX), F.linear(t(X), t(MATRIX))),
    Row(graph.LinearOp, (X, MATRIX, fixed(3) * 0 + 2), F.linear(t(X), t(MATRIX)) + 2),
    Row(graph.AttentionOp, (QUERY, KEY, VALUE), attended(0.3, 0, 0.0), ATTENTION),
    Row(graph.AttentionOp, (QUERY, KEY, VALUE), attended(0.3, 2, 0.5), {**ATTENTION, "window": 2, "softcap": 0.5}),
    Row(graph.RmsNormOp, (X,), F.rms_norm(t(X), (4,), eps=0.1), {"eps": 0.1, "weight_offset": 0.0}),
    Row(graph.RmsNormOp, (X, VECTOR), F.rms_norm(t(X), (4,), t(VECTOR) + 1, 0.1), {"eps": 0.1, "weight_offset": 1.0}),
    Row(graph.LayerNormOp, (X,), F.layer_norm(t(X), (4,), eps=0.1), {"eps": 0.1, "weight_offset": 0.0}),
    Row(
        graph.LayerNormOp,
        (X, VECTOR, VECTOR),
        F.layer_norm(t(X), (4,), t(VECTOR) + 1, t(VECTOR), 0.1),
        {"eps": 0.1, "weight_offset": 1.0},
    ),
    Row(
        graph.RopeTableOp,
        (IDS, np.asarray([1.0, 0.5], dtype=np.float32)),
        (
            2 * torch.cos(t(IDS)[:, None] * torch.tensor([1, 0.5])),
            2 * torch.sin(t(IDS)[:, None] * torch.tensor([1, 0.5])),
        ),
        {"scale": 2.0},
    ),
    Row(graph.RopeOp, (HEADS, np.cos(ANGLES), np.sin(ANGLES)), rotated(t(HEADS), t(ANGLES), False)),
    Row(
        graph.RopeOp,
        (HEADS, np.cos(ANGLES), np.sin(ANGLES)),
        rotated(t(HEADS), t(ANGLES), True),
        {"interleaved": True},
    ),
    Row(graph.GatedOp, (X, Y), F.gelu(t(X)) * t(Y), {"activation": "gelu"}),
    Row(graph.GatedOp, (X, Y), F.silu(t(X)) * t(Y), {"activation": "silu"}),
    Row(graph.SoftcapOp, (X,), 0.5 * torch.tanh(t(X) / 0.5), {"cap": 0.5}),
    Row(graph.SoftmaxOp, (X * 100,), (t(X) * 100).softmax(-1)),
    unary(graph.NegOp, torch.neg),
    unary(graph.ExpOp, torch.exp),
    unary(graph.LogOp, torch.log, POSITIVE),
    unary(graph.SqrtOp, torch.sqrt, POSITIVE),
    unary(graph.RsqrtOp, torch.rsqrt, POSITIVE),
    unary(graph.ReciprocalOp, torch.reciprocal, POSITIVE),
    unary(graph.TanhOp, torch.tanh),
    unary(graph.SigmoidOp, torch.sigmoid, X * 100),
    unary(graph.SiluOp, F.silu, X * 100),
    unary(graph.GeluOp, F.gelu),
    unary(graph.GeluTanhOp, lambda x: F.gelu(x, approximate="tanh")),
    unary(graph.ReluOp, torch.relu),
    unary(graph.SquareOp, torch.square),
    unary(graph.AbsOp, torch.abs),
    unary(graph.SinOp, torch.sin),
    unary(graph.CosOp, torch.cos),
    unary(graph.ErfOp, torch.erf),
    unary(graph.Expm1Op, torch.expm1),
    unary(graph.SoftplusOp, F.softplus, X * 100),
    unary(graph.FloorOp, torch.floor),
    unary(graph.LogicalNotOp, torch.logical_not, X > 0),
    binary(graph.AddOp, torch.add),
    binary(graph.AddOp, torch.add, IDS, IDS),
    binary(graph.SubOp, torch.sub, X, VECTOR),
    binary(graph.MulOp, torch.mul, HEADS, rows(1, 6)),
    binary(graph.DivOp, torch.div, X, POSITIVE),
    binary(graph.MaximumOp, torch.maximum),
    binary(graph.MinimumOp, torch.minimum),
    binary(graph.PowOp, torch.pow, POSITIVE, Y),
    binary(graph.LessOp, torch.less),
    binary(graph.LessEqualOp, torch.less_equal, IDS, IDS),
    binary(graph.GreaterOp, torch.greater),
    binary(graph.GreaterEqualOp, torch.greater_equal, IDS, IDS),
    binary(graph.EqualOp, torch.eq, IDS, IDS),
    binary(graph.NotEqualOp, torch.ne),
    binary(graph.LogicalAndOp, torch.logical_and, X > 0, Y > 0),
    Row(graph.SelectOp, (X > 0, X, Y), torch.where(t(X) > 0, t(X), t(Y))),
    Row(graph.CastOp, (X * 10,), (t(X) * 10).to(torch.int32), result=tensor((DYNAMIC, 4), I32, TOKENS)),
    Row(graph.ReduceSumOp, (X,), t(X).sum(-1, keepdim=True)),
    Row(graph.ReduceMeanOp, (X,), t(X).mean(-1, keepdim=True)),
    Row(graph.ReduceMaxOp, (X,), t(X).amax(-1, keepdim=True)),
    Row(graph.ReshapeOp, (HEADS,), t(HEADS).reshape(T, 3, 4), result=tensor((DYNAMIC, 3, 4), F32, TOKENS)),
    Row(
        graph.BroadcastOp,
        (rows(1, 2) * 0 + 3,),
        torch.full((T, 3, 2), 3.0),
        result=tensor((DYNAMIC, 3, 2), F32, TOKENS),
    ),
    Row(graph.TransposeOp, (HEADS,), t(HEADS).transpose(1, 2), {"permutation": (0, 2, 1)}),
    Row(graph.SliceOp, (HEADS,), t(HEADS)[:, :, 1:6:2], {"axis": 2, "start": 1, "size": 3, "step": 2}),
    Row(graph.ConcatOp, (HEADS, HEADS), torch.cat([t(HEADS), t(HEADS)], dim=2), {"axis": 2}),
]


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_evaluate(row: Row) -> None:
    types = [
        type_of_array(operand, LOGIT_ROWS if place in row.logit_operands else TOKENS)
        for place, operand in enumerate(row.operands)
    ]
    if row.op is graph.WeightOp:
        types = []
    block = Block(arg_types=types)
    op = row.op.make(*block.args, result=row.result, **row.values)
    op.verify()
    results = op.evaluate(*row.operands)
    expected = row.expected if isinstance(row.expected, tuple) else (row.expected,)
    assert len(results) == len(expected) == len(op.results)
    for found, wanted, result in zip(results, expected, op.results, strict=True):
        wanted = np.asarray(wanted)
        assert found.dtype == wanted.dtype and type_of_array(found, "L" if row.logit_operands else "T") == result.type
        np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)


def test_constant() -> None:
    for array in (np.float32(2.5), VECTOR, IDS, np.int32(7)):
        op = graph.ConstantOp.of(array)
        op.verify()
        np.testing.assert_array_equal(op.evaluate()[0], array)
        assert op.evaluate()[0].dtype == array.dtype


def test_no_rows_at_all_are_computed_too() -> None:
    """A step may want no logits."""
    nothing = np.zeros((0, 4), np.float32)
    block = Block(arg_types=[tensor((DYNAMIC, 4), F32, LOGIT_ROWS)])
    reshape = graph.ReshapeOp.make(block.args[0], result=tensor((DYNAMIC, 2, 2), F32, LOGIT_ROWS))
    assert reshape.evaluate(nothing)[0].shape == (0, 2, 2)
    assert graph.SoftmaxOp.make(block.args[0]).evaluate(nothing)[0].shape == (0, 4)


def test_every_op_has_a_row() -> None:
    assert {row.op for row in TABLE} | {graph.ConstantOp} == set(graph.OPERATIONS)
