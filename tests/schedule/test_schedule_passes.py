"""Each pass on a program of a few lines: what it makes of it stands in `golden/`."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from golden_files import Golden
from head_programs import HeadProgram
from small_programs import program
from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.driver import Pass, parse_ir, print_ir
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.schedule.passes.choose_numerics import ChooseNumerics
from tessera_compiler.schedule.passes.find_peaks import FindPeaks
from tessera_compiler.schedule.passes.flatten_concats import FlattenConcats
from tessera_compiler.schedule.passes.form_groups import FormGroups
from tessera_compiler.schedule.passes.join_rounding import JoinRounding
from tessera_compiler.schedule.passes.mark_layers import MarkLayers
from tessera_compiler.schedule.passes.plan_memory import PlanMemory
from tessera_compiler.schedule.passes.plan_phases import PlanPhases
from tessera_compiler.schedule.passes.plan_tiles import Blocking, PlanTiles, schedule_key

LINEAR = (
    """
    %w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x6xf32>
    %x = "graph.embedding"(%w, %ids) {offset = 0 : i64} : (tensor<9x6xf32>, tensor<?xi32, "T">) -> tensor<?x6xf32, "T">
    %v = "graph.weight"() {name = "v", sources = ["v"]} : () -> tensor<4x6xf32>
    %b = "graph.weight"() {name = "b", sources = ["b"]} : () -> tensor<4xf32>
    %y = "graph.linear"(%x, %v, %b) {module = "block.0.out"}
      : (tensor<?x6xf32, "T">, tensor<4x6xf32>, tensor<4xf32>) -> tensor<?x4xf32, "T">
    %z = "graph.tanh"(%y) {module = "block.1"} : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
    %s = "graph.select_rows"(%z, %rows) : (tensor<?x4xf32, "T">, tensor<?xi32, "L">) -> tensor<?x4xf32, "L">""",
    "%s",
    'tensor<?x4xf32, "L">',
)
ATTENTION = (
    """
    %w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x8xf32>
    %x = "graph.embedding"(%w, %ids) {offset = 0 : i64} : (tensor<9x8xf32>, tensor<?xi32, "T">) -> tensor<?x8xf32, "T">
    %q = "graph.reshape"(%x) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
    %a = "graph.attention"(%q, %q, %q) {layer = 0 : i64, scale = 0.5 : f64, window = 0 : i64, softcap = 0.0 : f64}
      : (tensor<?x2x4xf32, "T">, tensor<?x2x4xf32, "T">, tensor<?x2x4xf32, "T">) -> tensor<?x2x4xf32, "T">
    %f = "graph.reshape"(%a) : (tensor<?x2x4xf32, "T">) -> tensor<?x8xf32, "T">
    %y = "graph.add"(%f, %x) : (tensor<?x8xf32, "T">, tensor<?x8xf32, "T">) -> tensor<?x8xf32, "T">
    %s = "graph.select_rows"(%y, %rows) : (tensor<?x8xf32, "T">, tensor<?xi32, "L">) -> tensor<?x8xf32, "L">""",
    "%s",
    'tensor<?x8xf32, "L">',
)
ATTENDED = (
    """
    %w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x128xf32>
    %x = "graph.embedding"(%w, %ids) {offset = 0 : i64}
      : (tensor<9x128xf32>, tensor<?xi32, "T">) -> tensor<?x128xf32, "T">
    %q = "graph.reshape"(%x) : (tensor<?x128xf32, "T">) -> tensor<?x2x64xf32, "T">
    %a = "graph.attention"(%q, %q, %q) {layer = 0 : i64, scale = 0.5 : f64, window = 0 : i64, softcap = 0.0 : f64}
      : (tensor<?x2x64xf32, "T">, tensor<?x2x64xf32, "T">, tensor<?x2x64xf32, "T">) -> tensor<?x2x64xf32, "T">
    %f = "graph.reshape"(%a) : (tensor<?x2x64xf32, "T">) -> tensor<?x128xf32, "T">
    %v = "graph.weight"() {name = "v", sources = ["v"]} : () -> tensor<9x128xf32>
    %y = "graph.linear"(%f, %v) : (tensor<?x128xf32, "T">, tensor<9x128xf32>) -> tensor<?x9xf32, "T">
    %s = "graph.select_rows"(%y, %rows) : (tensor<?x9xf32, "T">, tensor<?xi32, "L">) -> tensor<?x9xf32, "L">""",
    "%s",
    'tensor<?x9xf32, "L">',
)
TIED = (
    """
    %w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x6xf32>
    %x = "graph.embedding"(%w, %ids) {offset = 2 : i64} : (tensor<9x6xf32>, tensor<?xi32, "T">) -> tensor<?x6xf32, "T">
    %s = "graph.select_rows"(%x, %rows) : (tensor<?x6xf32, "T">, tensor<?xi32, "L">) -> tensor<?x6xf32, "L">
    %y = "graph.linear"(%s, %w) : (tensor<?x6xf32, "L">, tensor<9x6xf32>) -> tensor<?x9xf32, "L">""",
    "%y",
    'tensor<?x9xf32, "L">',
)
TWO = (
    """
    %w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x40xf32>
    %x = "graph.embedding"(%w, %ids) {offset = 0 : i64}
      : (tensor<9x40xf32>, tensor<?xi32, "T">) -> tensor<?x40xf32, "T">
    %u = "graph.weight"() {name = "u", sources = ["u"]} : () -> tensor<6x40xf32>
    %y = "graph.linear"(%x, %u) : (tensor<?x40xf32, "T">, tensor<6x40xf32>) -> tensor<?x6xf32, "T">
    %s = "graph.select_rows"(%y, %rows) : (tensor<?x6xf32, "T">, tensor<?xi32, "L">) -> tensor<?x6xf32, "L">
    %v = "graph.weight"() {name = "v", sources = ["v"]} : () -> tensor<9x6xf32>
    %z = "graph.linear"(%s, %v) : (tensor<?x6xf32, "L">, tensor<9x6xf32>) -> tensor<?x9xf32, "L">""",
    "%z",
    'tensor<?x9xf32, "L">',
)
HEADS = (
    """
    %w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x8xf32>
    %x = "graph.embedding"(%w, %ids) {offset = 0 : i64} : (tensor<9x8xf32>, tensor<?xi32, "T">) -> tensor<?x8xf32, "T">
    %q = "graph.reshape"(%x) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
    %c = "graph.concat"(%q, %q) {axis = 1 : i64}
      : (tensor<?x2x4xf32, "T">, tensor<?x2x4xf32, "T">) -> tensor<?x4x4xf32, "T">
    %s = "graph.select_rows"(%c, %rows) : (tensor<?x4x4xf32, "T">, tensor<?xi32, "L">) -> tensor<?x4x4xf32, "L">""",
    "%s",
    'tensor<?x4x4xf32, "L">',
)
GATE = (
    """
    %w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x64xf32>
    %x = "graph.embedding"(%w, %ids) {offset = 0 : i64}
      : (tensor<9x64xf32>, tensor<?xi32, "T">) -> tensor<?x64xf32, "T">
    %u = "graph.weight"() {name = "u", sources = ["a", "b"]} : () -> tensor<128x64xf32>
    %y = "graph.linear"(%x, %u) : (tensor<?x64xf32, "T">, tensor<128x64xf32>) -> tensor<?x128xf32, "T">
    %a = "graph.slice"(%y) {axis = 1 : i64, start = 0 : i64, size = 64 : i64, step = 1 : i64}
      : (tensor<?x128xf32, "T">) -> tensor<?x64xf32, "T">
    %b = "graph.slice"(%y) {axis = 1 : i64, start = 64 : i64, size = 64 : i64, step = 1 : i64}
      : (tensor<?x128xf32, "T">) -> tensor<?x64xf32, "T">
    %g = "graph.gated"(%a, %b) {activation = "silu"}
      : (tensor<?x64xf32, "T">, tensor<?x64xf32, "T">) -> tensor<?x64xf32, "T">
    %v = "graph.weight"() {name = "v", sources = ["v"]} : () -> tensor<64x64xf32>
    %d = "graph.linear"(%g, %v) : (tensor<?x64xf32, "T">, tensor<64x64xf32>) -> tensor<?x64xf32, "T">
    %s = "graph.select_rows"(%d, %rows) : (tensor<?x64xf32, "T">, tensor<?xi32, "L">) -> tensor<?x64xf32, "L">""",
    "%s",
    'tensor<?x64xf32, "L">',
)
QKV = HeadProgram(rotated=8).text()
TUNED = {schedule_key("x86-64-v4", "f32", 4, 6): (Blocking(0, 3, 1),)}

RULES: dict[str, tuple[tuple[str, str, str], Sequence[Pass], Pass]] = {
    "mark_layers": (LINEAR, (), MarkLayers(("block.0", "block.1"))),
    "choose_numerics_fp32": (LINEAR, (), ChooseNumerics("fp32")),
    "choose_numerics_bf16": (LINEAR, (), ChooseNumerics("bf16")),
    "choose_numerics_int8": (LINEAR, (), ChooseNumerics("int8")),
    "choose_numerics_tied_int8": (TIED, (), ChooseNumerics("int8")),
    "choose_numerics_int4": (TWO, (), ChooseNumerics("int4")),
    "choose_numerics_tied_int4": (TIED, (), ChooseNumerics("int4")),
    "choose_numerics_attention": (ATTENTION, (), ChooseNumerics("bf16")),
    "flatten_concats": (HEADS, (), FlattenConcats()),
    "form_groups": (LINEAR, (ChooseNumerics("fp32"),), FormGroups()),
    "form_groups_gate": (GATE, (ChooseNumerics("int8"),), FormGroups()),
    "form_groups_peaks": (TWO, (ChooseNumerics("fp32"), FindPeaks()), FormGroups()),
    "find_peaks": (TWO, (ChooseNumerics("fp32"),), FindPeaks()),
    "form_groups_attention": (ATTENTION, (ChooseNumerics("fp32"),), FormGroups()),
    "form_groups_heads": (QKV, (ChooseNumerics("bf16"),), FormGroups(heads=True)),
    "join_rounding": (ATTENDED, (ChooseNumerics("bf16"), FormGroups()), JoinRounding()),
    "join_rounding_quantized": (ATTENDED, (ChooseNumerics("int8"), FormGroups()), JoinRounding(quantized=True)),
    "plan_tiles": (LINEAR, (ChooseNumerics("fp32"), FormGroups()), PlanTiles(("x86-64-v4", "x86-64-v3"))),
    "plan_tiles_tuned": (LINEAR, (ChooseNumerics("fp32"), FormGroups()), PlanTiles(("x86-64-v4",), TUNED)),
    "plan_phases": (ATTENTION, (ChooseNumerics("fp32"), FormGroups()), PlanPhases()),
    "plan_memory": (ATTENTION, (ChooseNumerics("fp32"), FormGroups(), PlanPhases()), PlanMemory()),
}


def body(module: ModuleOp) -> str:
    """The lines of the function, without its frame."""
    lines = print_ir(module).splitlines()
    inputs = next(number for number, line in enumerate(lines) if line.lstrip().startswith("^bb0"))
    end = next(number for number, line in enumerate(lines) if '"func.return"' in line)
    return "\n".join(line.removeprefix("    ") for line in lines[inputs : end + 1]) + "\n"


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str, golden: Golden) -> None:
    text, before, rule = RULES[name]
    module = program(*text)
    for each in before:
        each.apply(module)
    given = body(module)
    rule.apply(module)
    module.verify()
    golden.check(f"{name}.mlir", f"// {type(rule).__name__}\n{given}// -->\n{body(module)}")


@pytest.mark.parametrize("name", RULES)
def test_text_reads_back_as_the_same_program(name: str) -> None:
    text, before, rule = RULES[name]
    module = program(*text)
    for each in (*before, rule):
        each.apply(module)
    printed = print_ir(module)
    assert print_ir(parse_ir(printed)) == printed


def test_planning_twice_changes_nothing() -> None:
    module = program(*ATTENTION)
    for each in (ChooseNumerics("fp32"), FormGroups(), PlanPhases(), PlanMemory()):
        each.apply(module)
    text = print_ir(module)
    for each in (PlanPhases(), PlanMemory()):
        each.apply(module)
    assert print_ir(module) == text
    assert len(list(entry_function(module).body.block.args)) == 5
