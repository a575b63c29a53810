"""Strides of a view say where NumPy finds the same elements."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.utils.test_value import create_ssa_value

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import DYNAMIC, TOKENS, tensor, type_of
from tessera_compiler.schedule.views import View, row_shape

SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4).map(tuple)


def factorizations(count: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of this many elements."""

    def cut(parts: list[int]) -> tuple[int, ...]:
        shape, rest = [], count
        for part in parts:
            divisor = math.gcd(rest, part)
            shape.append(divisor)
            rest //= divisor
        return (*shape, rest)

    return st.lists(st.sampled_from([1, 2, 3, 4, 6]), max_size=3).map(cut)


@st.composite
def operations(draw: st.DrawFn) -> list[graph.GraphOp]:
    """A chain of view ops, each applied to the result of the one before."""
    value = create_ssa_value(tensor([DYNAMIC, *draw(SHAPES)], rows=TOKENS))
    chain: list[graph.GraphOp] = []
    for kind in draw(st.lists(st.sampled_from(["reshape", "transpose", "slice", "broadcast"]), min_size=1, max_size=4)):
        shape = row_shape(type_of(value).get_shape())
        op: graph.GraphOp
        if kind == "reshape":
            target = draw(factorizations(math.prod(shape)))
            op = graph.ReshapeOp.make(value, result=tensor([DYNAMIC, *target], rows=TOKENS))
        elif kind == "transpose":
            order = draw(st.permutations(range(1, len(shape) + 1)))
            op = graph.TransposeOp.make(value, permutation=(0, *order))
        elif kind == "slice":
            axis = draw(st.integers(0, len(shape) - 1))
            start = draw(st.integers(0, shape[axis] - 1))
            step = draw(st.integers(1, 3))
            size = draw(st.integers(1, 1 + (shape[axis] - 1 - start) // step))
            op = graph.SliceOp.make(value, axis=axis + 1, start=start, size=size, step=step)
        else:
            wider = [draw(st.sampled_from([1, 3])) if size == 1 else size for size in shape]
            op = graph.BroadcastOp.make(value, result=tensor([DYNAMIC, *wider], rows=TOKENS))
        chain.append(op)
        value = op.results[0]
    return chain


@given(operations())
@settings(max_examples=400, deadline=None)
def test_a_view_addresses_what_the_ops_give(chain: list[graph.GraphOp]) -> None:
    shape = row_shape(type_of(chain[0].operands[0]).get_shape())
    buffer = np.arange(math.prod(shape), dtype=np.float32)
    values, view = buffer.reshape(1, *shape), View.contiguous(shape)
    for op in chain:
        (values,) = op.evaluate(values)
        following = view.through(op)
        if following is None:
            assert isinstance(op, graph.ReshapeOp), "every other view has strides"
            return
        view = following
        assert view.shape == values.shape[1:]
    places = np.full(view.shape, view.offset)
    for axis, stride in enumerate(view.strides):
        places = places + stride * np.arange(view.shape[axis]).reshape([-1] + [1] * (len(view.shape) - 1 - axis))
    np.testing.assert_array_equal(buffer[places], values[0])


@given(operations())
@settings(max_examples=200, deadline=None)
def test_a_copy_is_made_only_where_numpy_would(chain: list[graph.GraphOp]) -> None:
    shape = row_shape(type_of(chain[0].operands[0]).get_shape())
    values, view = np.zeros(shape), View.contiguous(shape)
    for op in chain:
        if isinstance(op, graph.BroadcastOp):
            return
        following = view.through(op)
        if isinstance(op, graph.ReshapeOp):
            reshaped = values.reshape(row_shape(type_of(op.results[0]).get_shape()))
            assert (following is not None) == np.shares_memory(reshaped, values)
            values = reshaped
        elif isinstance(op, graph.TransposeOp):
            values = values.transpose([axis - 1 for axis in op.values["permutation"][1:]])
        else:
            first, step, size = (op.values[name] for name in ("start", "step", "size"))
            index = [slice(None)] * values.ndim
            index[op.values["axis"] - 1] = slice(first, first + step * size, step)
            values = values[tuple(index)]
        if following is None:
            return
        view = following
