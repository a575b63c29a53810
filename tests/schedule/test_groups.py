"""Which ops become one kernel, and which do not."""

from __future__ import annotations

import pytest
from head_programs import HeadProgram
from small_programs import RandomProgram, body_of, groups_of, program
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation

from tessera_compiler.driver import CompileOptions, schedule_passes
from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.passes.choose_numerics import ChooseNumerics
from tessera_compiler.schedule.passes.form_groups import FormGroups

X = """
    %w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x8xf32>
    %x = "graph.embedding"(%w, %ids) {offset = 0 : i64} : (tensor<9x8xf32>, tensor<?xi32, "T">) -> tensor<?x8xf32, "T">
    %v = "graph.weight"() {name = "v", sources = ["v"]} : () -> tensor<8x8xf32>
    %g = "graph.weight"() {name = "g", sources = ["g"]} : () -> tensor<8xf32>"""
T4 = 'tensor<?x4xf32, "T">'
T8, HEADS, T1 = 'tensor<?x8xf32, "T">', 'tensor<?x2x4xf32, "T">', 'tensor<?x1xf32, "T">'
LINEAR = f'"graph.linear"(%x, %v) : ({T8}, tensor<8x8xf32>) -> {T8}'
NORM = f"{{eps = 1.0e-05 : f64, weight_offset = 0.0 : f64}} : ({T8}, tensor<8xf32>) -> {T8}"


def unary(op: str, value: str, type: str = T8) -> str:
    return f'"graph.{op}"({value}) : ({type}) -> {type}'


def add(left: str, right: str, type: str = T8) -> str:
    return f'"graph.add"({left}, {right}) : ({type}, {type}) -> {type}'


def _slice(start: int, step: int) -> str:
    values = f"axis = 1 : i64, start = {start} : i64, size = 4 : i64, step = {step} : i64"
    return f"{{{values}}} : ({T8}) -> {T4}"


CASES = {
    "what follows row by row is one kernel": (
        [f"%n = {unary('tanh', '%x')}", f'%z = "graph.rms_norm"(%n, %g) {NORM}'],
        [["lookup", "tanh", "rms_norm"]],
    ),
    "elementwise ops join the product they follow": (
        [f"%l = {LINEAR}", f"%t = {unary('silu', '%l')}", f"%z = {add('%t', '%x')}"],
        [["lookup"], ["matmul", "silu", "add"]],
    ),
    "a product never joins": (
        [f"%t = {unary('tanh', '%x')}", f"%z = {LINEAR}"],
        [["lookup", "tanh"], ["matmul"]],
    ),
    "a norm does not join a product: it needs whole rows": (
        [f"%l = {LINEAR}", f'%z = "graph.rms_norm"(%l, %g) {NORM}'],
        [["lookup"], ["matmul"], ["rms_norm"]],
    ),
    "a view of what a group makes is read by another": (
        [
            f'%h = "graph.reshape"(%x) : ({T8}) -> {HEADS}',
            f"%t = {unary('tanh', '%h', HEADS)}",
            f'%z = "graph.reshape"(%t) : ({HEADS}) -> {T8}',
        ],
        [["lookup"], ["reshape", "tanh"], ["reshape", "copy"]],
    ),
    "what a view reads after a product is another kernel": (
        [
            f"%l = {LINEAR}",
            f'%a = "graph.slice"(%l) {_slice(0, 1)}',
            f'%b = "graph.slice"(%l) {_slice(4, 1)}',
            f'%z = "graph.gated"(%a, %b) {{activation = "silu"}} : ({T4}, {T4}) -> {T4}',
        ],
        [["lookup"], ["matmul"], ["slice", "slice", "gated"]],
    ),
    "a sum over columns is used again in the same row": (
        [f'%s = "graph.reduce_sum"(%x) : ({T8}) -> {T1}', f'%z = "graph.mul"(%x, %s) : ({T8}, {T1}) -> {T8}'],
        [["lookup", "reduce_sum", "mul"]],
    ),
    "a column joins no product: it has not the product's shape": (
        [
            f'%s = "graph.reduce_sum"(%x) : ({T8}) -> {T1}',
            f"%l = {LINEAR}",
            f'%z = "graph.mul"(%l, %s) : ({T8}, {T1}) -> {T8}',
        ],
        [["lookup", "reduce_sum"], ["matmul"], ["mul"]],
    ),
    "what two products need is made where the first is ready, without a cycle": (
        [
            f"%l = {LINEAR}",
            f'%m = "graph.linear"(%l, %v) : ({T8}, tensor<8x8xf32>) -> {T8}',
            f"%z = {add('%l', '%m')}",
        ],
        [["lookup"], ["matmul"], ["matmul", "add"]],
    ),
    "columns of a product are copied where they do not lie one after another": (
        [
            f'%a = "graph.slice"(%x) {_slice(0, 2)}',
            '%u = "graph.weight"() {name = "u", sources = ["u"]} : () -> tensor<8x4xf32>',
            f'%z = "graph.linear"(%a, %u) : (tensor<?x4xf32, "T">, tensor<8x4xf32>) -> {T8}',
        ],
        [["lookup"], ["slice", "copy"], ["matmul"]],
    ),
    "ops on weights alone are computed where they are used": (
        [
            '%e = "graph.exp"(%g) : (tensor<8xf32>) -> tensor<8xf32>',
            f'%z = "graph.mul"(%x, %e) : ({T8}, tensor<8xf32>) -> {T8}',
        ],
        [["lookup", "exp", "mul"]],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    lines, expected = CASES[name]
    result = lines[-1].rpartition("-> ")[2].strip()
    module = program(X + "\n    " + "\n    ".join(lines), "%z", result)
    for each in (ChooseNumerics("fp32"), FormGroups()):
        each.apply(module)
    module.verify()
    assert [body_of(group) for group in groups_of(module)] == expected


def bodies(module: ModuleOp, *, heads: bool = True) -> list[str]:
    """The ops of each group, but for views."""
    for each in (ChooseNumerics("fp32"), FormGroups(heads)):
        each.apply(module)
    module.verify()
    return [" ".join(op for op in body_of(group) if op not in ("slice", "reshape")) for group in groups_of(module)]


@pytest.mark.parametrize(
    ("program_", "expected"),
    [
        (HeadProgram(), "matmul rope rope cache_write cache_write"),
        (HeadProgram(rotated=8, interleaved=True, bias=True), "matmul add rope rope cache_write cache_write"),
        (HeadProgram(norm=True), "matmul rms_norm rope rms_norm rope cache_write cache_write"),
        (HeadProgram(rotated=0), "matmul copy cache_write cache_write"),
        (HeadProgram(width=40, rotated=40, queries=2, keys=1), "matmul rope rope cache_write cache_write"),
    ],
    ids=["rope", "bias", "norm", "copy", "ragged"],
)
def test_heads_join_the_product_they_are_cut_from(program_: HeadProgram, expected: str) -> None:
    assert expected in bodies(program_.module())
    assert expected not in bodies(program_.module(), heads=False)


@pytest.mark.parametrize(
    "program_",
    [
        HeadProgram(width=24, rotated=24, queries=3, keys=1),
        HeadProgram(width=272, rotated=16, queries=2, keys=1),
    ],
    ids=["heads fill no blocks", "a head is too wide"],
)
def test_heads_that_cannot_be_blocked_have_kernels_of_their_own(program_: HeadProgram) -> None:
    assert bodies(program_.module()) == bodies(program_.module(), heads=False)


def test_a_row_that_is_used_as_a_whole_too_is_stored() -> None:
    module = HeadProgram().module()
    block = entry_function(module).body.block
    row = next(op for op in block.ops if op.name == "graph.linear")
    block.insert_op_after(graph.ReduceMaxOp.make(row.results[0]), row)
    assert "matmul" in bodies(module)


def test_what_is_made_after_the_product_is_not_waited_for() -> None:
    module = HeadProgram().module()
    block = entry_function(module).body.block
    row, table = (next(op for op in block.ops if op.name == f"graph.{name}") for name in ("linear", "rope_table"))
    table.detach()
    block.insert_op_after(table, row)
    found = bodies(module)
    assert "matmul copy copy cache_write" in found and "rope" in found


@pytest.mark.parametrize("seed", range(30))
def test_order_respects_every_dependency(seed: int) -> None:
    module = RandomProgram(seed).module
    for each in schedule_passes(CompileOptions("int8", 48, 11)):
        each.apply(module)
    position: dict[Operation, int] = {group: number for number, group in enumerate(groups_of(module))}
    written: dict[tuple[int, str], int] = {}
    for number, group in enumerate(groups_of(module)):
        for value in group.inputs:
            assert position.get(value.owner, -1) < number  # type: ignore[arg-type]
        for op in group.body.block.ops:
            if isinstance(op, schedule.CacheWriteOp):
                written[op.cache.value.data, op.part.data] = number
            if isinstance(op, schedule.AttendOp):
                assert all(written[op.cache.value.data, part] < number for part in ("key", "value"))
