"""The text of Graph IR, what the verifier refuses, and with which words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from jaxlib.mlir import ir as mlir
from sketch import Sketch, run
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.errors import InvalidGraph
from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.text import parse_module, print_module
from tessera_compiler.graph.types import DYNAMIC, F32, I32, TOKENS, tensor


def small_module() -> ModuleOp:
    """A module with every kind of attribute: strings, arrays, units, numbers, dense elements."""
    s = Sketch()
    table = graph.RopeTableOp.make(s.positions, s.constant(np.asarray([1.0, 1 / 3])), scale=1 / 3)
    s.block.add_op(table)
    x = s.hidden("model.embed_tokens.weight", 8)
    weight = s.make(graph.WeightOp, result=tensor((8, 8)), name="ab", sources=("a", "b"), transposed=None)
    heads = s.reshape(s.make(graph.LinearOp, x, weight, module="model.layers.0"), 2, 4)
    turned = s.make(graph.RopeOp, heads, table.cos, table.sin, interleaved=True)
    attended = s.make(graph.AttentionOp, turned, turned, heads, layer=0, scale=0.1, window=7, softcap=0.0)
    moved = s.make(graph.TransposeOp, attended, permutation=(0, 2, 1))
    flat = s.reshape(moved, 8)
    shifted = s.make(graph.AddOp, s.token_ids, s.constant(np.int32(1)))
    more = s.make(graph.EmbeddingOp, s.weight("other", 13, 8), shifted, offset=1)
    return s.module(s.make(graph.SelectRowsOp, s.make(graph.AddOp, flat, more), s.logit_rows))


def test_text_is_read_back_as_it_was() -> None:
    module = small_module()
    text = print_module(module)
    again = parse_module(text)
    assert print_module(again) == text
    np.testing.assert_array_equal(run(again), run(module))


def test_mlir_reads_the_text() -> None:
    text = print_module(small_module())
    with mlir.Context() as context:
        context.allow_unregistered_dialects = True
        module = mlir.Module.parse(text)
        assert module.operation.verify()
        assert '"graph.attention"' in str(module)


@pytest.mark.parametrize(
    "value", [0.1, 1 / 3, 1e-5, 1e-45, 3.4e38, 16777217.0, 123456789.0, 5e-324, 1e300, -0.0], ids=str
)
def test_numbers_survive_the_text(value: float) -> None:
    s = Sketch()
    single = np.float32(min(value, 3.4e38))
    x = s.make(graph.MulOp, s.hidden("x", 1), s.constant(single))
    text = print_module(s.module(s.make(graph.SoftcapOp, x, cap=value)))
    constants = [op for op in parse_module(text).walk() if isinstance(op, graph.ConstantOp | graph.SoftcapOp)]
    assert isinstance(constants[0], graph.ConstantOp) and constants[0].array == single
    assert isinstance(constants[1], graph.SoftcapOp) and constants[1].cap.value.data == value


def hidden(s: Sketch) -> SSAValue:
    return s.hidden("x", 4)


REFUSED: list[tuple[str, Callable[[Sketch], object]]] = [
    ("shapes do not broadcast", lambda s: s.make(graph.AddOp, hidden(s), s.weight("w", 3))),
    ("would move its rows off axis 0", lambda s: s.make(graph.AddOp, hidden(s), s.reshape(hidden(s), 1, 4))),
    ("one element type", lambda s: s.make(graph.AddOp, s.positions, hidden(s))),
    ("must hold numbers", lambda s: s.make(graph.AddOp, *[s.make(graph.LessOp, hidden(s), hidden(s))] * 2)),
    ("must hold i1", lambda s: s.make(graph.LogicalAndOp, hidden(s), hidden(s))),
    ("the operand must hold f32", lambda s: s.make(graph.ExpOp, s.positions)),
    ('rows "T" and "L" do not mix', lambda s: s.make(graph.AddOp, s.token_ids, s.logit_rows)),
    ("whose last axis has size 3", lambda s: s.make(graph.LinearOp, hidden(s), s.weight("w", 2, 3))),
    ("the weight must be an f32 matrix", lambda s: s.make(graph.LinearOp, hidden(s), s.weight("w", 4))),
    ("the bias must be", lambda s: s.make(graph.LinearOp, hidden(s), s.weight("w", 2, 4), s.weight("b", 4))),
    ("leave rows in place", lambda s: s.make(graph.TransposeOp, hidden(s), permutation=(1, 0))),
    ("axis 0 is rows", lambda s: s.slice(hidden(s), 0, 0, 1)),
    ("do not lie in axis 1", lambda s: s.slice(hidden(s), 1, 3, 2)),
    ("axis 0 is rows", lambda s: s.make(graph.ConcatOp, hidden(s), hidden(s), axis=0)),
    ("may differ in axis 1 only", lambda s: s.make(graph.ConcatOp, hidden(s), s.reshape(hidden(s), 2, 2), axis=1)),
    ("must have the operand's elements", lambda s: s.reshape(hidden(s), 5)),
    (
        "rows are never made by broadcasting",
        lambda s: s.make(graph.BroadcastOp, s.weight("w", 4), result=tensor([DYNAMIC, 4], F32, TOKENS)),
    ),
    ("the activation must be one of", lambda s: s.make(graph.GatedOp, hidden(s), hidden(s), activation="swish")),
    ("one i32", lambda s: s.make(graph.EmbeddingOp, s.weight("w", 3, 4), hidden(s), offset=0)),
    ('must have rows "T"', lambda s: s.make(graph.SelectRowsOp, s.weight("w", 3, 4), s.logit_rows)),
    ("the weight must be", lambda s: s.make(graph.RmsNormOp, hidden(s), s.weight("w", 3), eps=1e-6, weight_offset=0.0)),
    ("at most half", lambda s: s.make(graph.RopeOp, s.reshape(hidden(s), 1, 4), hidden(s), hidden(s))),
    (
        "divides the query's",
        lambda s: s.make(
            graph.AttentionOp,
            s.reshape(hidden(s), 4, 1),
            s.reshape(s.hidden("k", 3), 3, 1),
            s.reshape(s.hidden("k", 3), 3, 1),
            layer=0,
            scale=1.0,
            window=0,
            softcap=0.0,
        ),
    ),
    ("only matrices", lambda s: s.make(graph.WeightOp, result=tensor((4,)), name="w", sources=("w",), transposed=True)),
    ("a constant has no rows", lambda s: s.make(graph.ConstantOp, result=tensor([DYNAMIC], I32, TOKENS))),
]


@pytest.mark.parametrize(("words", "mistake"), REFUSED, ids=[words for words, _ in REFUSED])
def test_mistakes_are_refused_in_words(words: str, mistake: Callable[[Sketch], object]) -> None:
    with pytest.raises(VerifyException) as caught:
        mistake(Sketch())
    message = str(caught.value).replace("i32, one per row", "one i32")
    assert words in message and message.startswith("graph.")


def test_a_wrong_result_type_in_text_is_refused() -> None:
    text = print_module(small_module())
    wrong = text.replace('tensor<?x4x2xf32, "T">', 'tensor<?x8x1xf32, "T">')
    with pytest.raises(InvalidGraph, match=r"graph.transpose: the result must be tensor<\?x4x2xf32"):
        parse_module(wrong)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises(VerifyException, match="finite"):
        graph.ConstantOp.of(np.asarray([1.0, value])).verify()
    with pytest.raises(VerifyException, match="finite"):
        s = Sketch()
        s.make(graph.SoftcapOp, s.hidden("x", 1), cap=value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('tensor<?x8xf32, "T">', 'tensor<?x8xf32, "S">', "named"),
        ('tensor<?x8xf32, "T">', "tensor<?x8xf32>", "axis 0 is dynamic exactly when"),
        ("graph.attention", "graph.attend", "attend"),
        ("xf32", "xf64", "f64"),
        ("})", "}", "expected"),
    ],
)
def test_text_that_is_not_graph_ir_is_refused(old: str, new: str, words: str) -> None:
    with pytest.raises(InvalidGraph, match=words):
        parse_module(print_module(small_module()).replace(old, new))


def test_a_module_holds_one_function() -> None:
    with pytest.raises(InvalidGraph, match="@decode_graph"):
        entry_function(ModuleOp([]))


def test_a_weight_of_another_shape_is_noticed() -> None:
    weight = graph.WeightOp.make(result=tensor((3, 4)), name="w", sources=("w",))
    with pytest.raises(VerifyException, match=r"weight w must have shape \(3, 4\); found \(4, 3\)"):
        weight.evaluate(np.zeros((4, 3), np.float32))
