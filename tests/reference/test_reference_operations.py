"""Every operation that can stand in a body: in the runtime's table, and equal to its definition in the compiler."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from xdsl.ir import Block

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.elementwise import FUNCTIONS, BinaryOp, CompareOp, UnaryOp
from tessera_compiler.graph.types import DYNAMIC, F32, I1, I32, tensor, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.evaluator import Cache, attend
from tessera_compiler.targets.reference.target import compile_reference
from tessera_pack.layouts import empty, place, to_bf16
from tessera_runtime.executor.reference.body import parse_body
from tessera_runtime.executor.reference.cache import CachePart
from tessera_runtime.executor.reference.error_function import erf
from tessera_runtime.executor.reference.table import OPERATIONS
from tessera_runtime.executor.reference.weights import UnpackedMemory, Weight

ROWS = 7
NEVER_IN_BODIES = {
    *("graph.weight", "schedule.weight", "graph.embedding", "graph.linear", "graph.attention"),
    "schedule.quantize_float",
}
"""Weights are inputs of groups; the next three become operations of Schedule IR before groups are formed; the last is
for GPUs alone."""
IN_BODIES = {op.name for op in (*graph.OPERATIONS, *schedule.GROUP_OPERATIONS)} - NEVER_IN_BODIES

ELEMENTS = {
    "f32": F32,
    "i32": I32,
    "i1": I1,
    "bf16": schedule.BF16,
    "u8": schedule.U8,
    "u4": schedule.U4,
    "i8": schedule.I8,
}


def test_the_table_is_exactly_what_can_stand_in_a_body() -> None:
    assert set(OPERATIONS) == IN_BODIES


@dataclass(frozen=True)
class Operand:
    """An operand: `rows` says whether it has one row per token, `layout` makes it a weight of the package."""

    shape: tuple[int, ...]
    element: str = "f32"
    rows: bool = True
    layout: str = ""
    largest: int = 2
    """Integers are smaller than this."""
    positive: bool = False

    @property
    def type(self) -> Any:
        if self.rows:
            return tensor((DYNAMIC, *self.shape), ELEMENTS[self.element], "T")
        return tensor(self.shape, ELEMENTS[self.element])

    def values(self, random: np.random.Generator) -> np.ndarray:
        shape = (ROWS, *self.shape) if self.rows else self.shape
        if self.element == "i1":
            return random.integers(0, 2, shape).astype(np.bool_)
        if self.element == "u8":
            return random.integers(1, 256, shape).astype(np.uint8)
        if self.element == "u4":
            return random.integers(0, 16, shape).astype(np.uint8)
        if self.element == "i8":
            return random.integers(-127, 128, shape).astype(np.int8)
        if self.element == "i32":
            return random.integers(0, self.largest, shape).astype(np.int32)
        values = (random.standard_normal(shape) * 2).astype(np.float32)
        if self.element == "bf16":
            return schedule.round_to_bfloat16(values)
        return np.abs(values) + np.float32(0.1) if self.positive else values


@dataclass(frozen=True)
class Case:
    operation: Any
    operands: tuple[Operand, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    result: Any = None

    def __str__(self) -> str:
        return self.operation.name.partition(".")[2]


def rows(*shape: int, **options: Any) -> Operand:
    return Operand(shape, **options)


def fixed(*shape: int, **options: Any) -> Operand:
    return Operand(shape, rows=False, **options)


def _unary(operation: Any) -> Case:
    if operation is graph.SoftcapOp:
        return Case(operation, (rows(9),), {"cap": 1.5})
    if operation is graph.LogicalNotOp:
        return Case(operation, (rows(9, element="i1"),))
    return Case(operation, (rows(3, 9, positive=operation in (graph.LogOp, graph.SqrtOp, graph.RsqrtOp)),))


def _binary(operation: Any) -> list[Case]:
    if operation is graph.GatedOp:
        return [Case(operation, (rows(9), rows(9)), {"activation": name}) for name in ("silu", "gelu", "gelu_tanh")]
    if operation is graph.LogicalAndOp:
        return [Case(operation, (rows(9, element="i1"), rows(9, element="i1")))]
    positive = operation is graph.PowOp
    whole = rows(1, 9, element="i32", largest=4)
    cases = [
        Case(operation, (rows(3, 9, positive=positive), fixed(9))),
        Case(operation, (fixed(positive=True), rows(9))),
    ]
    return cases if operation in (graph.DivOp, graph.PowOp) else [*cases, Case(operation, (whole, whole))]


_MATRIX = (41, 30)
_LONG, _WIDE = 4001, 2080
"""Columns enough for several pieces that are exact in float32, and a group of them."""
CASES = [
    *(_unary(op) for op in graph.OPERATIONS if issubclass(op, UnaryOp)),
    *(case for op in graph.OPERATIONS if issubclass(op, (BinaryOp, CompareOp)) for case in _binary(op)),
    Case(graph.ConstantOp, (), {"value": np.arange(6, dtype=np.int32).reshape(2, 3)}),
    Case(graph.ConstantOp, (), {"value": np.float32(0.1)}),
    Case(graph.SelectOp, (rows(9, element="i1"), rows(9), fixed(9))),
    Case(graph.CastOp, (rows(9),), result=tensor((DYNAMIC, 9), I32, "T")),
    Case(graph.CastOp, (rows(9, element="i32"),), result=tensor((DYNAMIC, 9), F32, "T")),
    Case(graph.ReshapeOp, (rows(12),), result=tensor((DYNAMIC, 3, 4), F32, "T")),
    Case(graph.BroadcastOp, (rows(1, 4),), result=tensor((DYNAMIC, 3, 4), F32, "T")),
    Case(graph.TransposeOp, (rows(3, 4),), {"permutation": (0, 2, 1)}),
    Case(graph.SliceOp, (rows(3, 9),), {"axis": 2, "start": 1, "size": 3, "step": 2}),
    Case(graph.ConcatOp, (rows(3, 2), rows(3, 4), rows(3, 1)), {"axis": 2}),
    Case(graph.SelectRowsOp, (rows(9), Operand((), "i32", largest=ROWS))),
    *(Case(op, (rows(3, 9),)) for op in (graph.ReduceSumOp, graph.ReduceMeanOp, graph.ReduceMaxOp, graph.SoftmaxOp)),
    Case(graph.RmsNormOp, (rows(9),), {"eps": 1e-5, "weight_offset": 0.0}),
    Case(graph.RmsNormOp, (rows(3, 9), fixed(9, layout="rows")), {"eps": 1e-5, "weight_offset": 1.0}),
    Case(graph.LayerNormOp, (rows(9),), {"eps": 1e-5, "weight_offset": 0.0}),
    Case(graph.LayerNormOp, (rows(9), fixed(9)), {"eps": 1e-5, "weight_offset": 1.0}),
    Case(graph.LayerNormOp, (rows(9), fixed(9), fixed(9)), {"eps": 0.1, "weight_offset": 0.0}),
    Case(graph.RopeTableOp, (Operand((), "i32", largest=90), fixed(4, positive=True)), {"scale": 1.25}),
    Case(graph.RopeOp, (rows(3, 10), rows(4), rows(4))),
    Case(graph.RopeOp, (rows(3, 10), rows(4), rows(4)), {"interleaved": True}),
    Case(schedule.CopyOp, (rows(3, 9),)),
    Case(schedule.RoundOp, (rows(3, 9),)),
    Case(schedule.QuantizeOp, (rows(9),), {"group": 16}),
    Case(schedule.QuantizeOp, (rows(50),), {"group": 16}),
    Case(schedule.PeaksOp, (rows(50),), {"group": 16}),
    Case(schedule.MatmulOp, (rows(30), fixed(*_MATRIX, layout="panels_k1"))),
    Case(schedule.MatmulOp, (rows(30), fixed(300, 30, layout="panels_k1"))),
    Case(schedule.MatmulOp, (rows(29, element="bf16"), fixed(41, 29, element="bf16", layout="panels_k2"))),
    Case(
        schedule.MatmulOp,
        (
            rows(_LONG, element="i8"),
            fixed(41, _LONG, element="u8", layout="panels_k4"),
            rows(2),
            rows(2, element="i32"),
            fixed(41),
        ),
        {"group": _WIDE},
    ),
    Case(
        schedule.MatmulOp,
        (
            rows(70, element="i8"),
            fixed(41, 70, element="u8", layout="panels_k4"),
            rows(3),
            rows(3, element="i32"),
            fixed(41),
        ),
        {"group": 32},
    ),
    Case(
        schedule.MatmulOp,
        (
            rows(77, element="i8"),
            fixed(41, 77, element="u4", layout="panels_k8"),
            rows(3),
            rows(3, element="i32", largest=4000),
            fixed(41),
            fixed(41, 3, element="u8", layout="panels_k1"),
            fixed(41, 3, element="u8", layout="panels_k1"),
        ),
        {"group": 32},
    ),
    Case(schedule.LookupOp, (Operand((), "i32", largest=39), fixed(*_MATRIX, layout="rows")), {"offset": 2}),
    Case(
        schedule.LookupOp,
        (Operand((), "i32", largest=41), fixed(41, 29, element="bf16", layout="panels_k2")),
        {"offset": 0},
    ),
    Case(
        schedule.LookupOp,
        (Operand((), "i32", largest=41), fixed(41, 29, element="u8", layout="panels_k4"), fixed(41, layout="rows")),
        {"offset": 0},
    ),
]


def test_every_operation_has_a_case() -> None:
    cached = {"schedule.cache_write", "schedule.attend"}  # tested below, with a cache
    assert {case.operation.name for case in CASES} == set(OPERATIONS) - cached


def build(case: Case) -> tuple[Any, dict[str, Any]]:
    """The op and, as JSON, the body of the group that holds it alone."""
    types = [operand.type for operand in case.operands]
    if case.operation is graph.SelectRowsOp:
        types[1] = tensor((DYNAMIC,), I32, "L")
    outer, inner = Block(arg_types=types), Block(arg_types=types)
    if case.operation is graph.ConstantOp:
        op = graph.ConstantOp.of(case.attributes["value"])
    else:
        op = case.operation.make(*inner.args, result=case.result, **case.attributes)
    inner.add_ops([op, schedule.YieldOp(op.results)])
    group = schedule.GroupOp("rows", outer.args, [result.type for result in op.results], inner)
    target = compile_reference({}, [group], SimpleNamespace(names=("group",)))  # type: ignore[arg-type]
    return op, json.loads(json.dumps(target.program["groups"]["group"]))


def as_weight(operand: Operand, values: np.ndarray) -> Weight:
    """The values as they lie in a package."""
    stored = empty(operand.shape, operand.element, operand.layout)
    place(stored, to_bf16(values) if operand.element == "bf16" else values, 0, operand.layout)
    description = {
        "name": "w",
        "dtype": operand.element,
        "shape": list(operand.shape),
        "layout": operand.layout,
    }
    return Weight(description, stored, UnpackedMemory(0))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operation_computes_what_it_means(case: Case) -> None:
    random = np.random.default_rng(0)
    op, description = build(case)
    values = [operand.values(random) for operand in case.operands]
    with np.errstate(all="ignore"):
        expected = op.evaluate(*values)
        inputs = [
            as_weight(operand, value) if operand.layout else value
            for operand, value in zip(case.operands, values, strict=True)
        ]
        found = parse_body("group", description).run(inputs, [])
    assert len(found) == len(expected)
    for ours, theirs, result in zip(found, expected, op.results, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if type_of(result).get_element_type() == F32:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-5 if "matmul" in str(case) else 1e-7)
        else:
            np.testing.assert_array_equal(ours, theirs)


def test_quantized_products_are_exact() -> None:
    """All terms as large as they get, over more columns than float32 adds up exactly."""
    case = next(each for each in CASES if each.operation is schedule.MatmulOp and len(each.operands) == 5)
    op, description = build(case)
    x = np.full((ROWS, _LONG), 127, np.int8)
    x[1] = -127
    weight = np.full((41, _LONG), 255, np.uint8)
    weight[3] = 1
    weight[:, 5] = 2
    scale, scales = np.ones((ROWS, 2), np.float32), np.ones(41, np.float32)
    total = np.zeros((ROWS, 2), np.int32)
    inputs = [x, as_weight(case.operands[1], weight), scale, total, scales]
    (found,) = parse_body("group", description).run(inputs, [])
    np.testing.assert_array_equal(found, op.evaluate(x, weight, scale, total, scales)[0])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_activation_of_the_compiler_is_one_here(name: str) -> None:
    op, description = build(Case(graph.GatedOp, (rows(9), rows(9)), {"activation": name}))
    gate, up = np.abs(np.random.default_rng(1).standard_normal((2, ROWS, 9))).astype(np.float32)
    (found,) = parse_body("group", description).run([gate, up], [])
    np.testing.assert_allclose(found, op.evaluate(gate, up)[0], rtol=1e-6)


def test_the_error_function_is_the_nearest_float() -> None:
    x = np.concatenate([np.linspace(-5, 5, 20_001), [0.0, -0.0, 1e-30, -1e-8, np.inf, -np.inf]]).astype(np.float32)
    np.testing.assert_array_equal(erf(x), FUNCTIONS["erf"](x))
    assert np.isnan(erf(np.array([np.nan, 1], np.float32))).tolist() == [True, False]
    assert np.signbit(erf(np.array([-0.0], np.float32)))[0]


@pytest.mark.parametrize("element", ["f32", "bf16", "i8"])
@pytest.mark.parametrize(("window", "softcap", "key_heads"), [(0, 0.0, 2), (5, 0.0, 1), (20, 2.5, 4)])
def test_attention_through_the_cache(element: str, window: int, softcap: float, key_heads: int) -> None:
    """Keys and values of three sequences of 1, 20 and 40 positions, the last written in two steps."""
    random = np.random.default_rng(0)
    heads, key_dim, value_dim = 4, 6, 5
    tables = np.array([[4, 0, 0], [2, 7, 0], [6, 1, 3]], np.int32)
    lengths = [1, 20, 40]
    sequences = np.concatenate([np.full(length, index) for index, length in enumerate(lengths)]).astype(np.int32)
    positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    where = (rows(element="i32"), rows(element="i32"), Operand((3,), "i32"))
    common = {"cache": 0, "element": element}
    writers = {
        part: build(Case(schedule.CacheWriteOp, (rows(key_heads, width), *where), {"part": part, **common}))
        for part, width in (("key", key_dim), ("value", value_dim))
    }
    reader = build(
        Case(
            schedule.AttendOp,
            (rows(heads, key_dim), *where),
            {
                "key_heads": key_heads,
                "value_dim": value_dim,
                "scale": 0.4,
                "window": window,
                "softcap": softcap,
                **common,
            },
        )
    )
    size = {"f32": 4, "bf16": 2, "i8": 1}[element]
    offset = -(-key_heads * key_dim * 16 * size // 64) * 64
    layer = {"heads": key_heads, "key_dim": key_dim, "value_dim": value_dim, "dtype": element, "key_offset": 64}
    layer["value_offset"] = 64 + offset
    if element == "i8":
        layer |= {"key_scale_offset": 192, "value_scale_offset": 256, "value_offset": 320, "head_bytes": 448}
    description = {"block_tokens": 16, "layers": [layer]}
    pool = np.zeros((8, 4096), np.uint8)
    parts = {part: CachePart(pool, description, 0, part) for part in ("key", "value")}
    expected_cache = Cache(8)
    for step in (positions < 30, positions >= 30):
        step = np.flatnonzero(step)
        inputs = (positions[step], sequences[step], tables)
        for part, (op, body) in writers.items():
            x = random.standard_normal((len(step), key_heads, key_dim if part == "key" else value_dim)).astype(
                np.float32
            )
            expected_cache.write(op, x, *inputs)
            assert parse_body(part, body).run([x, *inputs], [parts[part]]) == []
        query = random.standard_normal((len(step), heads, key_dim)).astype(np.float32)
        expected = attend(reader[0], expected_cache, query, *inputs)
        (found,) = parse_body("attend", reader[1]).run([query, *inputs], [parts["key"], parts["value"]])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not pool[:, :64].any() and not pool[[0, 5]].any(), "something was written where nothing lies"
