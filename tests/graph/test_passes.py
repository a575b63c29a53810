"""Each pass on the smallest module that shows its rule: the text after it, and that it computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sketch import Sketch, run
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.passes.activations import RecogniseActivations, RecogniseGated
from tessera_compiler.graph.passes.cleanup import EliminateCommonSubexpressions, EliminateDeadCode
from tessera_compiler.graph.passes.folding import FoldConstants, FoldIntoLeaves, FoldScalars
from tessera_compiler.graph.passes.linears import MergeLinears, SelectRowsEarly
from tessera_compiler.graph.passes.norms import RecogniseNorms
from tessera_compiler.graph.passes.rewriting import Pass
from tessera_compiler.graph.passes.rotary import RecogniseRotary
from tessera_compiler.graph.passes.shapes import SimplifyShapes
from tessera_compiler.graph.pipeline import PASSES, run_passes, simplify
from tessera_compiler.graph.text import parse_module, print_module
from tessera_compiler.graph.types import DYNAMIC, F32, TOKENS, tensor

if TYPE_CHECKING:
    from golden_files import Golden

Written = Callable[[Sketch], SSAValue]


def dead_code(s: Sketch) -> SSAValue:
    x = s.hidden("x", 4)
    s.make(graph.ExpOp, s.make(graph.NegOp, x))
    return s.make(graph.ReluOp, x)


def common_subexpressions(s: Sketch) -> SSAValue:
    x = s.hidden("x", 4)
    first = s.make(graph.ReluOp, x, module="model.a")
    second = s.make(graph.ReluOp, x, module="model.b")
    return s.make(graph.AddOp, first, second)


def constants(s: Sketch) -> SSAValue:
    frequencies = s.make(graph.ReciprocalOp, s.constant(np.asarray([1.0, 2.0, 4.0, 8.0])))
    return s.make(graph.MulOp, s.hidden("x", 4), s.make(graph.MulOp, frequencies, s.constant(2.0)))


def scalars(s: Sketch) -> SSAValue:
    x = s.hidden("x", 4)
    scaled = s.make(graph.MulOp, s.constant(3.0), s.make(graph.DivOp, x, s.constant(4.0)))
    same = s.make(graph.AddOp, s.make(graph.MulOp, scaled, s.constant(1.0)), s.constant(0.0))
    squared = s.make(graph.PowOp, same, s.constant(2.0))
    positive = s.make(graph.AddOp, squared, s.constant(1.0))
    return s.make(graph.MulOp, s.weight("w", 4), s.make(graph.DivOp, same, s.make(graph.SqrtOp, positive)))


def leaves(s: Sketch) -> SSAValue:
    shifted = s.make(graph.AddOp, s.positions, s.constant(np.int32(2)))
    embedded = s.make(graph.EmbeddingOp, s.weight("position", 11, 4), shifted, offset=1)
    matrix = s.make(graph.TransposeOp, s.weight("conv", 4, 6), permutation=(1, 0))
    return s.make(graph.LinearOp, embedded, matrix)


def shapes(s: Sketch) -> SSAValue:
    heads = s.reshape(s.reshape(s.hidden("x", 12), 3, 4), 2, 6)
    turned = s.make(graph.TransposeOp, s.make(graph.TransposeOp, heads, permutation=(0, 2, 1)), permutation=(0, 2, 1))
    joined = s.make(graph.ConcatOp, turned, s.make(graph.NegOp, turned), axis=2)
    cut = s.slice(s.slice(joined, 2, 0, 3, 2), 2, 1, 2, 1)
    return s.make(graph.CastOp, cut, result=tensor([DYNAMIC, 2, 2], F32, TOKENS))


def silu(s: Sketch) -> SSAValue:
    x = s.hidden("x", 4)
    return s.make(graph.MulOp, x, s.make(graph.SigmoidOp, x))


def gelu_tanh(s: Sketch) -> SSAValue:
    x = s.hidden("x", 4)
    cube = s.make(graph.MulOp, s.make(graph.PowOp, x, s.constant(3.0)), s.constant(0.044715))
    inner = s.make(graph.MulOp, s.make(graph.AddOp, x, cube), s.constant((2 / np.pi) ** 0.5))
    bent = s.make(graph.AddOp, s.make(graph.TanhOp, inner), s.constant(1.0))
    return s.make(graph.MulOp, s.make(graph.MulOp, x, s.constant(0.5)), bent)


def gelu_tanh_factored(s: Sketch) -> SSAValue:
    """`0.5 x (1 + tanh(0.79788 x (1 + 0.044715 x x)))`, as GPT-J and BLOOM have it."""
    x = s.hidden("x", 4)
    square = s.make(graph.MulOp, s.make(graph.MulOp, x, s.constant(0.044715)), x)
    inner = s.make(graph.MulOp, x, s.make(graph.AddOp, square, s.constant(1.0)))
    tanh = s.make(graph.TanhOp, s.make(graph.MulOp, inner, s.constant((2 / np.pi) ** 0.5)))
    return s.make(graph.MulOp, s.make(graph.MulOp, x, s.make(graph.AddOp, tanh, s.constant(1.0))), s.constant(0.5))


def gelu(s: Sketch) -> SSAValue:
    x = s.hidden("x", 4)
    erf = s.make(graph.ErfOp, s.make(graph.MulOp, x, s.constant(0.5**0.5)))
    bent = s.make(graph.AddOp, erf, s.constant(1.0))
    return s.make(graph.MulOp, s.make(graph.MulOp, x, s.constant(0.5)), bent)


def softcap(s: Sketch) -> SSAValue:
    shrunk = s.make(graph.MulOp, s.hidden("x", 4), s.constant(1 / 30))
    return s.make(graph.MulOp, s.make(graph.TanhOp, shrunk), s.constant(30.0))


def gated(s: Sketch) -> SSAValue:
    gate = s.make(graph.SiluOp, s.hidden("gate", 4))
    return s.make(graph.MulOp, s.hidden("up", 4), gate)


def root_mean_square(s: Sketch, x: SSAValue) -> SSAValue:
    mean = s.make(graph.ReduceMeanOp, s.make(graph.SquareOp, x))
    return s.make(graph.MulOp, x, s.make(graph.RsqrtOp, s.make(graph.AddOp, mean, s.constant(1e-6))))


def rms_norm(s: Sketch) -> SSAValue:
    return s.make(graph.MulOp, root_mean_square(s, s.hidden("x", 4)), s.weight("w", 4))


def rms_norm_plus_one(s: Sketch) -> SSAValue:
    weight = s.make(graph.AddOp, s.weight("w", 4), s.constant(1.0))
    return s.make(graph.MulOp, weight_last(s, s.hidden("x", 4)), weight)


def weight_last(s: Sketch, x: SSAValue) -> SSAValue:
    """The norm as a sum divided by the size, with reshapes around the root and the factor on the left."""
    total = s.make(graph.ReduceSumOp, s.make(graph.SquareOp, x))
    mean = s.make(graph.MulOp, total, s.constant(0.25))
    flat = s.make(graph.ReshapeOp, mean, result=tensor([DYNAMIC], F32, TOKENS))
    root = s.make(graph.RsqrtOp, s.make(graph.AddOp, flat, s.constant(1e-6)))
    return s.make(graph.MulOp, s.reshape(root, 1), x)


def rms_norm_per_head(s: Sketch) -> SSAValue:
    heads = s.reshape(s.hidden("x", 8), 2, 4)
    return s.make(graph.MulOp, root_mean_square(s, heads), s.weight("w", 4))


def layer_norm(s: Sketch) -> SSAValue:
    x = s.hidden("x", 4)
    centred = s.make(graph.SubOp, x, s.make(graph.ReduceMeanOp, x))
    weighted = s.make(graph.MulOp, root_mean_square(s, centred), s.weight("w", 4))
    return s.make(graph.AddOp, weighted, s.weight("b", 4))


def tables(s: Sketch, repeat: bool, half: int = 2, scale: float = 1.0) -> tuple[SSAValue, SSAValue]:
    """Cosines and sines [T, 1, 2 half], either half after half or each twice."""
    positions = s.make(graph.CastOp, s.positions, result=tensor([DYNAMIC], F32, TOKENS))
    angles = s.make(graph.MulOp, s.reshape(positions, 1), s.constant(np.asarray([0.5**i for i in range(half)])))
    if repeat:
        twice = s.make(graph.BroadcastOp, s.reshape(angles, half, 1), result=tensor([DYNAMIC, half, 2], F32, TOKENS))
        angles = s.reshape(twice, 2 * half)
    else:
        angles = s.make(graph.ConcatOp, angles, angles, axis=1)
    made = [s.make(kind, angles) for kind in (graph.CosOp, graph.SinOp)]
    scaled = [table if scale == 1 else s.make(graph.MulOp, table, s.constant(scale)) for table in made]
    return s.reshape(scaled[0], 1, 2 * half), s.reshape(scaled[1], 1, 2 * half)


def turned(s: Sketch, x: SSAValue, cos: SSAValue, sin: SSAValue, crossed: SSAValue) -> SSAValue:
    return s.make(graph.AddOp, s.make(graph.MulOp, x, cos), s.make(graph.MulOp, crossed, sin))


def rotated_half(s: Sketch, x: SSAValue, half: int = 2) -> SSAValue:
    return s.make(graph.ConcatOp, s.make(graph.NegOp, s.slice(x, 2, half, half)), s.slice(x, 2, 0, half), axis=2)


def rope(s: Sketch) -> SSAValue:
    x = s.reshape(s.hidden("x", 8), 2, 4)
    return turned(s, x, *tables(s, repeat=False, scale=1.25), rotated_half(s, x))


def rope_partial(s: Sketch) -> SSAValue:
    x = s.reshape(s.hidden("x", 14), 2, 7)
    part = s.slice(x, 2, 0, 4)
    rotated = turned(s, part, *tables(s, repeat=False), rotated_half(s, part))
    return s.make(graph.ConcatOp, rotated, s.slice(x, 2, 4, 3), axis=2)


def rope_interleaved(s: Sketch) -> SSAValue:
    x = s.reshape(s.hidden("x", 8), 2, 4)
    even, odd = s.slice(x, 2, 0, 2, 2), s.slice(x, 2, 1, 2, 2)
    pairs = [s.reshape(part, 2, 2, 1) for part in (s.make(graph.NegOp, odd), even)]
    crossed = s.reshape(s.make(graph.ConcatOp, *pairs, axis=3), 2, 4)
    return turned(s, x, *tables(s, repeat=True), crossed)


def rope_by_halves(s: Sketch) -> SSAValue:
    """`[a cos - b sin, b cos + a sin]`, with tables of half the width."""
    x = s.reshape(s.hidden("x", 8), 2, 4)
    cos, sin = (s.slice(table, 2, 0, 2) for table in tables(s, repeat=False))
    a, b = s.slice(x, 2, 0, 2), s.slice(x, 2, 2, 2)
    first = s.make(graph.SubOp, s.make(graph.MulOp, a, cos), s.make(graph.MulOp, b, sin))
    second = s.make(graph.AddOp, s.make(graph.MulOp, b, cos), s.make(graph.MulOp, a, sin))
    return s.make(graph.ConcatOp, first, second, axis=2)


def rope_between_heads(s: Sketch) -> SSAValue:
    """Queries, keys and values of each head side by side, as GPT-NeoX has them; these are the keys."""
    x = s.slice(s.reshape(s.hidden("x", 24), 2, 12), 2, 4, 4)
    return turned(s, x, *tables(s, repeat=False), rotated_half(s, x))


def no_rope(s: Sketch) -> SSAValue:
    """Both halves are subtracted: a reflection, not a rotation, so it must stay."""
    x = s.reshape(s.hidden("x", 8), 2, 4)
    crossed = s.make(graph.ConcatOp, s.slice(x, 2, 2, 2), s.slice(x, 2, 0, 2), axis=2)
    return turned(s, x, *tables(s, repeat=False), crossed)


def rows_early(s: Sketch) -> SSAValue:
    x = s.hidden("x", 4)
    normed = s.make(graph.RmsNormOp, s.make(graph.AddOp, x, x), s.weight("w", 4), eps=1e-6, weight_offset=0.0)
    logits = s.make(graph.LinearOp, normed, s.weight("head", 9, 4), module="lm_head")
    return s.make(graph.SelectRowsOp, logits, s.logit_rows)


def linears(s: Sketch) -> SSAValue:
    x = s.hidden("x", 4)
    parts = [
        s.make(graph.LinearOp, x, s.weight(f"model.attn.{name}_proj.weight", 3, 4), module=f"model.attn.{name}_proj")
        for name in ("q", "k")
    ]
    other = s.make(graph.LinearOp, x, s.weight("model.mlp.fc.weight", 3, 4), module="model.mlp.fc")
    return s.make(graph.ConcatOp, *parts, other, axis=1)


CASES: list[tuple[Pass, Written]] = [
    (EliminateDeadCode(), dead_code),
    (EliminateCommonSubexpressions(), common_subexpressions),
    (FoldConstants(), constants),
    (FoldScalars(), scalars),
    (FoldIntoLeaves(), leaves),
    (SimplifyShapes(), shapes),
    (RecogniseActivations(), silu),
    (RecogniseActivations(), gelu_tanh),
    (RecogniseActivations(), gelu_tanh_factored),
    (RecogniseActivations(), gelu),
    (RecogniseActivations(), softcap),
    (RecogniseGated(), gated),
    (RecogniseNorms(), rms_norm),
    (RecogniseNorms(), rms_norm_plus_one),
    (RecogniseNorms(), rms_norm_per_head),
    (RecogniseNorms(), layer_norm),
    (RecogniseRotary(), rope),
    (RecogniseRotary(), rope_partial),
    (RecogniseRotary(), rope_interleaved),
    (RecogniseRotary(), rope_by_halves),
    (RecogniseRotary(), rope_between_heads),
    (SelectRowsEarly(), rows_early),
    (MergeLinears(), linears),
]


@pytest.mark.parametrize(("each", "written"), CASES, ids=[written.__name__ for _, written in CASES])
def test_rule(each: Pass, written: Written, golden: Golden) -> None:
    sketch = Sketch()
    module = sketch.module(written(sketch))
    before, expected = print_module(module), run(module)
    run_passes(module, [each])
    after = print_module(module)
    assert after != before
    assert parse_module(after) is not None
    np.testing.assert_allclose(run(module), expected, rtol=1e-5, atol=1e-6)
    golden.check(f"{written.__name__}.mlir", f"// {type(each).__name__}\n{body(before)}// -->\n{body(after)}")


def body(text: str) -> str:
    """The lines of the function."""
    return "".join(f"{line.strip()}\n" for line in text.splitlines()[3:-3])


def test_every_pass_has_a_case() -> None:
    assert {type(each) for each in PASSES} == {type(each) for each, _ in CASES}


def norm_of_another(s: Sketch) -> SSAValue:
    """Divided by the size of something else."""
    mean = s.make(graph.ReduceMeanOp, s.make(graph.SquareOp, s.hidden("y", 4)))
    return s.make(graph.MulOp, s.hidden("x", 4), s.make(graph.RsqrtOp, s.make(graph.AddOp, mean, s.constant(1e-6))))


def centred_by_another(s: Sketch) -> SSAValue:
    """A mean is subtracted, but not that of what it is subtracted from."""
    centred = s.make(graph.SubOp, s.hidden("x", 4), s.make(graph.ReduceMeanOp, s.hidden("y", 4)))
    return s.make(graph.RmsNormOp, centred, None, eps=1e-6, weight_offset=0.0)


def mean_of_too_few(s: Sketch) -> SSAValue:
    return s.make(graph.MulOp, s.make(graph.ReduceSumOp, s.hidden("x", 4)), s.constant(1 / 3))


def uncapped(s: Sketch) -> SSAValue:
    """The scale after the tangent is not the inverse of the one before it."""
    shrunk = s.make(graph.MulOp, s.hidden("x", 4), s.constant(1 / 30))
    return s.make(graph.MulOp, s.make(graph.TanhOp, shrunk), s.constant(29.0))


def other_gelu(s: Sketch) -> SSAValue:
    """Quick GELU: a sigmoid of a multiple."""
    x = s.hidden("x", 4)
    return s.make(graph.MulOp, x, s.make(graph.SigmoidOp, s.make(graph.MulOp, x, s.constant(1.702))))


def shared_activation(s: Sketch) -> SSAValue:
    """The activated gate is needed by itself too."""
    gate = s.make(graph.SiluOp, s.hidden("gate", 4))
    return s.make(graph.AddOp, gate, s.make(graph.MulOp, gate, s.hidden("up", 4)))


def two_angles(s: Sketch) -> SSAValue:
    """Cosines and sines of different angles."""
    x = s.reshape(s.hidden("x", 8), 2, 4)
    cos, _ = tables(s, repeat=False)
    _, sin = tables(s, repeat=True)
    return turned(s, x, cos, sin, rotated_half(s, x))


def rows_needed_elsewhere(s: Sketch) -> SSAValue:
    x = s.make(graph.ReluOp, s.hidden("x", 4))
    chosen = s.make(graph.SelectRowsOp, x, s.logit_rows)
    heads = s.reshape(x, 1, 4)
    options = {"layer": 0, "scale": 1.0, "window": 0, "softcap": 0.0}
    attended = s.reshape(s.make(graph.AttentionOp, heads, heads, heads, **options), 4)
    return s.make(graph.AddOp, chosen, s.make(graph.SelectRowsOp, attended, s.logit_rows))


LEFT_ALONE: list[tuple[Pass, Written]] = [
    (RecogniseRotary(), no_rope),
    (RecogniseRotary(), two_angles),
    (RecogniseNorms(), norm_of_another),
    (RecogniseNorms(), centred_by_another),
    (RecogniseNorms(), mean_of_too_few),
    (RecogniseActivations(), uncapped),
    (RecogniseActivations(), other_gelu),
    (RecogniseGated(), shared_activation),
    (SelectRowsEarly(), rows_needed_elsewhere),
]


@pytest.mark.parametrize(("each", "written"), LEFT_ALONE, ids=[written.__name__ for _, written in LEFT_ALONE])
def test_what_only_looks_alike_stays(each: Pass, written: Written) -> None:
    sketch = Sketch()
    module = sketch.module(written(sketch))
    EliminateDeadCode().apply(module)
    before = print_module(module)
    each.apply(module)
    assert print_module(module) == before


def test_a_linear_with_a_shared_weight_is_not_merged() -> None:
    s = Sketch()
    x, shared = s.hidden("x", 4), s.weight("w", 4, 4)
    first = s.make(graph.LinearOp, x, shared, module="m.a")
    second = s.make(graph.LinearOp, s.make(graph.ReluOp, x), shared, module="m.b")
    third = s.make(graph.LinearOp, x, s.weight("v", 4, 4), module="m.c")
    module = s.module(s.make(graph.AddOp, s.make(graph.AddOp, first, second), third))
    before = print_module(module)
    MergeLinears().apply(module)
    assert print_module(module) == before


@pytest.mark.parametrize("with_bias", [False, True])
def test_linears_merge_only_if_all_or_none_have_a_bias(with_bias: bool) -> None:
    s = Sketch()
    x = s.hidden("x", 4)
    parts = [
        s.make(graph.LinearOp, x, s.weight(f"m.{n}.weight", 3, 4), s.weight(f"m.{n}.bias", 3) if biased else None)
        for n, biased in (("a", True), ("b", with_bias))
    ]
    module = s.module(s.make(graph.ConcatOp, *parts, axis=1))
    expected = run(module)
    MergeLinears().apply(module)
    count = sum(isinstance(op, graph.LinearOp) for op in module.walk())
    assert count == (1 if with_bias else 2)
    np.testing.assert_allclose(run(module), expected, rtol=1e-6)


def test_each_pass_is_dumped_in_order() -> None:
    sketch = Sketch()
    module: ModuleOp = sketch.module(rms_norm(sketch))
    seen: list[tuple[int, str]] = []
    simplify(module, lambda number, each, _: seen.append((number, type(each).__name__)))
    assert seen == [(number, type(each).__name__) for number, each in enumerate(PASSES)]


def test_simplifying_twice_changes_nothing() -> None:
    sketch = Sketch()
    module = sketch.module(rope_partial(sketch))
    simplify(module)
    once = print_module(module)
    simplify(module)
    assert print_module(module) == once
