"""What is not Tile IR is refused, in a sentence that says why."""

from __future__ import annotations

import re

import pytest

from tessera_compiler.driver import parse_ir
from tessera_compiler.errors import InvalidGraph

KERNEL = """
"builtin.module"() ({{
  "tile.kernel"() ({{
  ^bb0(%f : memref<?x32xf32>, %g : memref<?x32xf32>, %i : memref<?xi32>, %w : memref<2x8x16x2xbf16>,
       %four : memref<2x8x16x8xui4>, %pairs : memref<2x8x16x4xui4>,
       %t : index, %l : index, %v : index):
    %c = "tile.constant_index"() {{value = 1 : i64}} : () -> index
    %x = "tile.full"() {{value = 1.0 : f64}} : () -> vector<2x16xf32>
    %n = "tile.full"() {{value = 1 : i64}} : () -> vector<2x16xi32>
    %b = "tile.full"() {{value = 1.0 : f64}} : () -> vector<2x16xbf16>
    %q = "tile.full"() {{value = 1 : i64}} : () -> vector<2x16xi1>
    {body}
    "tile.return"() : () -> ()
  }}) {{grid = {grid}, sym_name = "k"}} : () -> ()
}}) : () -> ()
"""
GRID = '["T", 3 : i64]'
STEPS = "row_step = 1 : i64, column_step = 0 : i64, lane_step = 1 : i64"
LOAD = """%z = "tile.load"(%f, %c, %c) {{{steps}, operandSegmentSizes = array<i32: 1, 1, 1, 0>}}
      : (memref<?x32xf32>, index, index) -> {result}"""
STORE = """"tile.store"({value}, %g, %c, %c) {{{steps}, operandSegmentSizes = array<i32: 1, 1, 1, 1, 0>}}
      : ({type}, memref<?x32xf32>, index, index) -> ()"""


def kernel(body: str, grid: str = GRID) -> str:
    return KERNEL.format(grid=grid, body=body)


def load(steps: str = STEPS, result: str = "vector<2x16xf32>") -> str:
    return LOAD.format(steps=steps, result=result)


def store(value: str = "%x", steps: str = STEPS, type: str = "vector<2x16xf32>") -> str:
    return STORE.format(value=value, steps=steps, type=type)


def unary(function: str, operand: str, type: str, result: str) -> str:
    return f'%z = "tile.unary"({operand}) {{function = "{function}"}} : ({type}) -> {result}'


def binary(op: str, function: str, operands: tuple[str, str], types: tuple[str, str], result: str) -> str:
    left, right = operands
    return f'%z = "tile.{op}"({left}, {right}) {{function = "{function}"}} : ({types[0]}, {types[1]}) -> {result}'


F32, BF16, I32, I1 = (f"vector<2x16x{element}>" for element in ("f32", "bf16", "i32", "i1"))
LOOP = """%z = "tile.for"(%c, %t, {step}, %x) ({{
    ^bb1(%j : {index}, %y : vector<2x16xf32>):
      "tile.yield"({result}) : ({type}) -> ()
    }}) : (index, index, index, vector<2x16xf32>) -> vector<2x16xf32>"""


def loop(step: str = "%c", index: str = "index", result: str = "%y", type: str = F32) -> str:
    return LOOP.format(step=step, index=index, result=result, type=type)


def dot(left: str, right: str, accumulator: str, types: tuple[str, str, str]) -> str:
    return f'%z = "tile.dot"({left}, {right}, {accumulator}) : ({", ".join(types)}) -> {types[2]}'


def panels(result: str, rows: int = 1, ahead: int = 0, limit: int = 0, packed: int = 1, along: str = "n") -> str:
    operands = rows + ahead + limit
    return (
        f'%z = "tile.load_panels"(%f, %c{", %c" * operands}) {{packed = {packed} : i64, along = "{along}", '
        f"operandSegmentSizes = array<i32: 1, 1, {rows}, {ahead}, {limit}>}} : "
        f"(memref<?x32xf32>, index{', index' * operands}) -> {result}"
    )


def store_panel(value: str, type: str, first: int = 0) -> str:
    return (
        f'"tile.store_panel"({value}, %g, %c, %c, %c) {{first = {first} : i64, step = 1 : i64, packed = 1 : i64, '
        f'along = "k", operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0>}} : '
        f"({type}, memref<?x32xf32>, index, index, index) -> ()"
    )


def parts(counts: str = "1 : i64, 2 : i64", axis: int = 1, first: str = "", at: str = "%p") -> str:
    body = '"tile.yield"() : () -> ()'
    return (
        f'%p = "tile.program_id"() {{axis = {axis} : i64}} : () -> index\n    '
        f'"tile.parts"({at}) ({{\n {first or body}\n }}, {{\n {body}\n }}) {{counts = [{counts}]}} : (index) -> ()'
    )


def when(result: str = "%x", type: str = F32) -> str:
    return (
        f'%z = "tile.when"(%c, %x) ({{\n "tile.yield"({result}) : ({type}) -> ()\n }}) : '
        "(index, vector<2x16xf32>) -> vector<2x16xf32>"
    )


def stack(type: str = "vector<4x16x16xf32>") -> str:
    return f'%k = "tile.empty_stack"() : () -> {type}\n    '


def load_stack(step: int = 16, result: str = "vector<2x16x16xf32>") -> str:
    return (
        f'%k = "tile.load_stack"(%f, %c, %c) {{part_step = {step} : i64, '
        "operandSegmentSizes = array<i32: 1, 1, 1, 0>}"
        f" : (memref<?x32xf32>, index, index) -> {result}"
    )


ONE = '%o = "tile.full"() {value = 0.0 : f64} : () -> vector<1x1xf32>\n    '
PANELS = (
    '%p = "tile.load_packed"(%w, %c, %c) : (memref<2x8x16x2xbf16>, index, index) -> vector<16x16xbf16>\n    '
    '%a = "tile.full"() {value = 0.0 : f64} : () -> vector<2x16xf32>\n    '
)
SQUARE = '%s = "tile.full"() {value = 0.0 : f64} : () -> vector<16x16xf32>\n    '
SQUARE_BF16 = (
    SQUARE.replace("%s", "%h")
    + '%u = "tile.unary"(%h) {function = "neg"} : (vector<16x16xf32>) -> vector<16x16xf32>\n    '
    + '%s = "tile.cast"(%u) : (vector<16x16xf32>) -> vector<16x16xbf16>\n    '
)

VALID = {
    "load": load(),
    "store": store(),
    "unary": unary("neg", "%n", I32, I32),
    "binary": binary("binary", "add", ("%x", "%x"), (F32, F32), F32),
    "compare": binary("compare", "less", ("%n", "%n"), (I32, I32), I1),
    "loop": loop(),
    "dot": SQUARE + dot("%x", "%s", "%x", (F32, "vector<16x16xf32>", F32)),
    "parts": parts(),
    "when": when(),
    "stack": stack() + '%z = "tile.sum_stack"(%k) : (vector<4x16x16xf32>) -> vector<16x16xf32>',
    "load_stack": load_stack(),
    "program_id": '%z = "tile.program_id"() {axis = 1 : i64} : () -> index',
}

INVALID = [
    (parts("1 : i64, 1 : i64"), "the parts are run by 2 instances; the grid is ['T', 3]"),
    (parts("3 : i64"), "2 bodies do not match 1 counts"),
    (when("%n", I32), "ends by yielding tiles like the initial ones"),
    (stack("vector<3x16x16xf32>"), "so many as a power of two; found vector<3x16x16xf32>"),
    (stack("vector<16x16xf32>"), "a stack has tiles, rows and columns"),
    (stack("vector<4x16x16xbf16>"), "a stack of zeros must be vector<4x16x16xf32>"),
    (stack() + '%z = "tile.sum_stack"(%k) : (vector<4x16x16xf32>) -> vector<4x16xf32>', "the sum of a stack must be"),
    (
        stack() + f'%z = "tile.dot_stack"(%k, %k, %k) : ({", ".join(["vector<4x16x16xf32>"] * 3)}) -> '
        "vector<4x16x16xf32>",
        "stacks of bf16 or f16 are multiplied; found f32",
    ),
    (load_stack(8), "the tiles of a stack do not overlap; found a step of 8"),
    (load_stack(result="vector<2x16x16xbf16>"), "a buffer of f32 differ"),
    (parts("3 : i64, 0 : i64"), "each part is run by at least one instance"),
    (parts(axis=0), "the parts are run by 3 instances; the grid is ['T', 3]"),
    (parts(at="%c"), "an instance runs one by its place in the grid"),
    (parts(first=f'"tile.yield"(%x) : ({F32}) -> ()'), "a part takes nothing and ends by yielding nothing"),
    (unary("sinc", "%x", F32, F32), "unknown function 'sinc'; known: neg, abs"),
    (unary("exp", "%n", I32, I32), "exp is not defined on i32, only on f32"),
    (unary("not", "%x", F32, F32), "not is not defined on f32, only on i1"),
    (unary("exp", "%b", BF16, BF16), "exp is not defined on bf16"),
    (unary("exp", "%x", F32, "vector<2x17xf32>"), "the result of a unary function must be vector<2x16xf32>"),
    (binary("binary", "hypot", ("%x", "%x"), (F32, F32), F32), "unknown function 'hypot'"),
    (binary("binary", "add", ("%x", "%n"), (F32, I32), F32), "one element type; cast one of them"),
    (binary("binary", "div", ("%n", "%n"), (I32, I32), I32), "div is not defined on i32, only on f32"),
    (binary("binary", "and", ("%x", "%x"), (F32, F32), F32), "and is not defined on f32, only on i1"),
    (binary("binary", "add", ("%x", "%x"), (F32, F32), "vector<2x1xf32>"), "the result of a binary function must be"),
    (SQUARE + binary("binary", "add", ("%x", "%s"), (F32, "vector<16x16xf32>"), F32), "do not broadcast"),
    (binary("compare", "like", ("%x", "%x"), (F32, F32), I1), "unknown comparison 'like'; known: less"),
    (binary("compare", "less", ("%x", "%n"), (F32, I32), I1), "one element type; cast one of them"),
    (binary("compare", "less", ("%b", "%b"), (BF16, BF16), I1), "less is not defined on bf16, only on f32 and i32"),
    (binary("compare", "less", ("%x", "%x"), (F32, F32), F32), "the result of a comparison must be vector<2x16xi1>"),
    (f'%z = "tile.select"(%x, %x, %x) : ({F32}, {F32}, {F32}) -> {F32}', "the condition of a select is a tile of i1"),
    (f'%z = "tile.select"(%q, %x, %n) : ({I1}, {F32}, {I32}) -> {F32}', "the sides of a select have one element type"),
    (f'%z = "tile.select"(%q, %x, %x) : ({I1}, {F32}, {F32}) -> {I32}', "the result of a select must be"),
    (f'%z = "tile.cast"(%b) : ({BF16}) -> {I32}', "no cast from bf16 to i32"),
    (f'%z = "tile.cast"(%b) : ({BF16}) -> vector<1x16xf32>', "the result of a cast must be vector<2x16xf32>"),
    (
        f'%z = "tile.reduce"(%x) {{function = "mean"}} : ({F32}) -> vector<2x1xf32>',
        "unknown reduction 'mean'; known: sum, max, min",
    ),
    (f'%z = "tile.reduce"(%x) {{function = "sum"}} : ({F32}) -> {F32}', "the result of a reduction must be"),
    (f'%z = "tile.reduce"(%b) {{function = "sum"}} : ({BF16}) -> vector<2x1xbf16>', "sum is not defined on bf16"),
    (dot("%x", "%x", "%x", (F32, F32, F32)), "does not fit"),
    (SQUARE + dot("%x", "%s", "%n", (F32, "vector<16x16xf32>", I32)), "no dot of f32 and f32 into i32"),
    (
        SQUARE_BF16 + dot("%b", "%s", "%x", (BF16, "vector<16x16xbf16>", F32)),
        "a dot of bf16 and bf16 takes its right operand from panels",
    ),
    (PANELS + dot("%x", "%p", "%a", (F32, "vector<16x16xbf16>", F32)), "a dot of f32 with panels of bf16"),
    (PANELS + dot("%b", "%p", "%a", (BF16, "vector<16x16xbf16>", F32)), "is loaded with lane_step 1"),
    (load(result="vector<2x16xi8>"), "expected a buffer of i8 with 2 axes; found memref<?x32xf32>"),
    (load(result="vector<16xf32>"), "every tile has rows and columns; found vector<16xf32>"),
    (load(result="vector<2x16xf64>"), "f16, f8_e4m3, i1, i8, i32, u8, u4; found vector<2x16xf64>"),
    (load(STEPS.replace("lane_step = 1", "lane_step = 0")), "lane_step at least 1; found 1, 0 and 0"),
    (load(STEPS.replace("row_step = 1", "row_step = -1")), "at least 0"),
    (store("%b", type=BF16), "a tile of bf16 is stored to a buffer of f32; cast it first"),
    (store(steps=STEPS.replace("row_step = 1", "row_step = 0")), "go to different places; both steps are 0"),
    (load().replace("%f", "%g") + "\n    " + store(), "k loads from a buffer that it stores to"),
    ('%z = "tile.load_index"(%f, %c) : (memref<?x32xf32>, index) -> index', "expected a buffer of i32 with 1 axes"),
    (
        '%z = "tile.load_packed"(%f, %c, %c) : (memref<?x32xf32>, index, index) -> vector<16x16xf32>',
        "expected a buffer in a panel layout, [N/16, K/k, 16, k]; found memref<?x32xf32>",
    ),
    (
        '%z = "tile.load_packed"(%w, %c, %c) : (memref<2x8x16x2xbf16>, index, index) -> vector<16x8xbf16>',
        "its columns must be a multiple of 16",
    ),
    (
        '%z = "tile.load_packed"(%four, %c, %c) : (memref<2x8x16x8xui4>, index, index) -> vector<8x16xui4>'
        '\n    %y = "tile.cast"(%z) : (vector<8x16xui4>) -> vector<8x16xf32>',
        "a tile of u4 is the right operand of a dot, and nothing else",
    ),
    (
        '%z = "tile.load_packed"(%pairs, %c, %c) : (memref<2x8x16x4xui4>, index, index) -> vector<8x16xui4>',
        "panels of u4, and no others, are 8 deep; found memref<2x8x16x4xui4>",
    ),
    (
        '%z = "tile.load_packed_row"(%four, %c, %c) : (memref<2x8x16x8xui4>, index, index) -> vector<1x8xui4>',
        "a row of u4 is not loaded",
    ),
    (
        '%z = "tile.load_packed_row"(%w, %c, %c) : (memref<2x8x16x2xbf16>, index, index) -> vector<1x8xf32>',
        "a tile of f32 is loaded from panels of bf16",
    ),
    (panels("vector<16x16xf32>", rows=2), "2 rows hold 32 of axis n"),
    (panels("vector<16x16xbf16>"), "is loaded from memref<?x32xf32>"),
    (panels("vector<16x16xf32>", limit=1), "a limit of k goes with rows along k"),
    (panels("vector<16x16xf32>", ahead=2), "as many rows are read next as now"),
    (panels("vector<16x16xf32>", packed=3), "panels hold 1, 2 or 4 of k together"),
    (panels("vector<16x16xf32>", along="m"), "continue along n or k; found 1, m"),
    (
        panels("vector<16x16xf32>")
        + '\n    %y = "tile.unary"(%z) {function = "neg"} : (vector<16x16xf32>) -> vector<16x16xf32>',
        "are only multiplied by a dot",
    ),
    (store_panel("%x", "vector<2x16xf32>"), "each row of the tile has a row of the buffer"),
    (ONE + store_panel("%o", "vector<1x1xf32>", first=-1), "columns count up from 0"),
    (
        '%z = "tile.index"(%c, %c) {function = "pow"} : (index, index) -> index',
        "unknown index function 'pow'; known: add, sub, mul, div, rem, min, max",
    ),
    ('%z = "tile.program_id"() {axis = 2 : i64} : () -> index', "a grid of 2 axes has no axis 2"),
    ('%z = "tile.full"() {value = 1 : i64} : () -> vector<1x1xf32>', "full of one number of its kind"),
    (
        '%z = "tile.iota"(%c) {axis = 0 : i64} : (index) -> vector<1x16xi32>',
        "iota along axis 0 cannot give vector<1x16xi32>",
    ),
    (loop(step="%t"), "the step of a loop is a constant of at least 1"),
    (loop(index="i32"), "the body of a loop takes the index, then the carried tiles"),
    (loop(result="%n", type=I32), "the body of a loop ends by yielding the carried tiles"),
]


@pytest.mark.parametrize("name", VALID)
def test_valid(name: str) -> None:
    parse_ir(kernel(VALID[name]))


@pytest.mark.parametrize(("body", "words"), INVALID, ids=[words[:40] for _, words in INVALID])
def test_invalid(body: str, words: str) -> None:
    with pytest.raises(InvalidGraph, match=re.escape(words)):
        parse_ir(kernel(body))


@pytest.mark.parametrize("entry", ['"S"', '"T/0"', '"T / 4"', "0 : i64", "-3 : i64"])
def test_invalid_grids(entry: str) -> None:
    with pytest.raises(InvalidGraph, match=r"an entry of a grid is a positive integer, Q, .*L/m"):
        parse_ir(kernel("", grid=f"[{entry}, 1 : i64]"))


def test_the_number_of_tiles_is_asked_last() -> None:
    with pytest.raises(InvalidGraph, match="Q, which no kernel is told, is the last entry of a grid"):
        parse_ir(kernel("", grid='["Q", 1 : i64]'))
    parse_ir(kernel("", grid='[1 : i64, "Q"]'))


def test_a_kernel_takes_buffers_then_indices() -> None:
    text = kernel("").replace("%t : index", "%t : i64")
    with pytest.raises(InvalidGraph, match="a kernel takes its buffers, then three indices: T, L and W"):
        parse_ir(text)


def test_text_that_is_no_ir_at_all() -> None:
    with pytest.raises(InvalidGraph, match="not valid Tessera IR"):
        parse_ir("hello")
