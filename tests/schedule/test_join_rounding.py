"""Where attention stores its result as the product that follows reads it, and where a kernel of its own makes that."""

from __future__ import annotations

import pytest
from head_programs import HeadProgram
from small_programs import body_of, groups_of, program
from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.schedule.passes.choose_numerics import ChooseNumerics
from tessera_compiler.schedule.passes.form_groups import FormGroups
from tessera_compiler.schedule.passes.join_rounding import JoinRounding


def after_attention(module: ModuleOp, dtype: str, join: JoinRounding) -> list[list[str]]:
    """The ops of the groups from attention to the product that follows, but for views."""
    for each in (ChooseNumerics(dtype), FormGroups(heads=True), join):
        each.apply(module)
    module.verify()
    bodies = [[op for op in body_of(group) if op not in ("reshape", "slice")] for group in groups_of(module)]
    start = next(number for number, body in enumerate(bodies) if "attend" in body)
    end = next(number for number, body in enumerate(bodies) if number > start and "matmul" in body)
    return bodies[start:end]


@pytest.mark.parametrize(
    ("width", "dtype", "expected"),
    [
        (64, "int8", [["attend", "quantize"]]),
        (128, "int8", [["attend", "quantize"]]),
        (96, "int4", [["attend", "quantize"]]),
        (80, "bf16", [["attend", "round"]]),
        (80, "int8", [["attend"], ["quantize"]]),
        (96, "int8", [["attend"], ["quantize"]]),
        (32, "int8", [["attend"], ["quantize"]]),
        (80, "int4", [["attend"], ["quantize"]]),
        (64, "fp32", [["attend"]]),
    ],
)
def test_heads_of_whole_groups_are_quantized_by_attention(width: int, dtype: str, expected: list[list[str]]) -> None:
    subject = HeadProgram(width=width, rotated=16)
    assert after_attention(subject.module(), dtype, JoinRounding(quantized=True)) == expected


def test_only_rounding_joins_unless_it_is_asked_for() -> None:
    subject = HeadProgram(width=64)
    assert after_attention(subject.module(), "int8", JoinRounding()) == [["attend"], ["quantize"]]
    assert after_attention(subject.module(), "bf16", JoinRounding()) == [["attend", "round"]]


def test_an_odd_row_is_rounded_by_a_kernel_that_pads_it() -> None:
    subject = HeadProgram(width=15, rotated=8, queries=3, keys=1)
    assert after_attention(subject.module(), "bf16", JoinRounding()) == [["attend"], ["round"]]


def test_what_something_else_uses_too_stays_as_it_is() -> None:
    text, result, type_ = HeadProgram(width=64, queries=1, keys=1).text()
    rows = 'tensor<?x64xf32, "T">'
    text = text.replace("%out =", f'%other = "graph.tanh"(%flat) : ({rows}) -> {rows}\n    %out =')
    found = after_attention(program(text, result, type_), "int8", JoinRounding(quantized=True))
    assert found[0] == ["attend"] and ["quantize"] in found
