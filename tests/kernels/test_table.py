"""Every op and function of Tile IR, on the NumPy interpreter and on the processor, within a stated error budget.

The budgets of functions stand in `tessera_compiler.tile.functions`, those of products in `dot_table`; the rest
is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from cases import Case
from dot_table import DOT_TABLE
from elementwise_table import ELEMENTWISE_TABLE
from memory_table import MEMORY_TABLE
from native_kernels import NATIVE_CLASSES, Array, NativeKernels, object_of
from panel_table import PANEL_TABLE
from programs import slow_from

from tessera_compiler.targets.cpu.object_code import CPU_CLASSES
from tessera_compiler.tile import dialect, functions
from tessera_compiler.tile.types import element_name
from tessera_runtime.executor.cpu.object_check import check_object

TABLE = {**ELEMENTWISE_TABLE, **MEMORY_TABLE, **DOT_TABLE, **PANEL_TABLE}
WITH_FUNCTION = (dialect.UnaryOp, dialect.BinaryOp, dialect.CompareOp, dialect.ReduceOp, dialect.IndexOp)
DIFFERS_BETWEEN_CLASSES = {"dot packed bf16 bf16", "dot panels bf16 bf16"}
"""Only some classes have an instruction for products of bfloat16, with a rounding of its own."""


@cache
def cases_of(name: str) -> tuple[Case, ...]:
    return tuple(TABLE[name]())


@cache
def results_of(name: str, cpu_class: str) -> list[list[Array]]:
    cases = cases_of(name)
    kernels = NativeKernels([case.kernel for case in cases], cpu_class)
    return [
        kernels.run(
            case.kernel,
            case.buffers,
            tokens=case.tokens,
            logit_rows=case.logit_rows,
            table_width=case.table_width,
            tiles=case.tiles,
        )
        for case in cases
    ]


def test_there_is_a_class_to_run() -> None:
    assert NATIVE_CLASSES, "this machine runs none of the CPU classes, so nothing below means anything"


@pytest.mark.parametrize("cpu_class", slow_from(1, NATIVE_CLASSES))
@pytest.mark.parametrize("name", TABLE)
def test_cpu_computes_what_the_interpreter_does(name: str, cpu_class: str) -> None:
    for case, found in zip(cases_of(name), results_of(name, cpu_class), strict=True):
        case.check(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TABLE) - DIFFERS_BETWEEN_CLASSES))
def test_all_classes_give_the_same_bits(name: str) -> None:
    first, *others = [results_of(name, cpu_class) for cpu_class in NATIVE_CLASSES]
    for other in others:
        for case, one, two in zip(cases_of(name), first, other, strict=True):
            for left, right in zip(one, two, strict=True):
                assert left.tobytes() == right.tobytes() or same_but_for_nan(left, right), case.kernel.symbol


def same_but_for_nan(left: Array, right: Array) -> bool:
    """Whether the bits are the same wherever there is a number; which NaN is which no class promises."""
    if left.dtype != np.float32:
        return False
    return bool(np.all((left.view(np.uint32) == right.view(np.uint32)) | (np.isnan(left) & np.isnan(right))))


@pytest.mark.slow
def test_whole_table_stands_alone_on_aarch64() -> None:
    """What this machine cannot run is compiled, linked without an undefined symbol, and passes the loader's check."""
    kernels = [case.kernel for name in TABLE for case in cases_of(name)[:: max(1, len(cases_of(name)) - 1)]]
    data = object_of(kernels, CPU_CLASSES["aarch64"])
    symbols = [kernel.symbol for kernel in kernels]
    assert set(check_object(data, "aarch64", symbols, page_bytes=65536).symbols) == set(symbols)


def functions_used() -> Iterator[tuple[str, str]]:
    for name in TABLE:
        for case in cases_of(name):
            for op in case.kernel.walk():
                if isinstance(op, WITH_FUNCTION):
                    yield op.name, op.function.data


def test_no_op_is_missing_in_the_table() -> None:
    used = {type(op) for name in TABLE for case in cases_of(name) for op in case.kernel.walk()}
    assert used >= set(dialect.TILE_OPERATIONS)


def test_no_function_is_missing_in_the_table() -> None:
    wanted = {
        *(("tile.unary", name) for name in functions.UNARY),
        *(("tile.binary", name) for name in functions.BINARY),
        *(("tile.compare", name) for name in functions.COMPARE),
        *(("tile.reduce", name) for name in functions.REDUCE),
        *(("tile.index", name) for name in dialect.INDEX_FUNCTIONS),
    }
    assert wanted <= set(functions_used())


def test_no_pair_of_elements_is_missing_in_the_table() -> None:
    ops = [op for name in TABLE for case in cases_of(name) for op in case.kernel.walk()]
    casts = {
        (element_name(op.operand.type), element_name(op.result.type)) for op in ops if isinstance(op, dialect.CastOp)
    }
    assert casts >= dialect.CASTS
    dots = {(element_name(op.left.type), element_name(op.right.type)) for op in ops if isinstance(op, dialect.DotOp)}
    assert dots == {*dialect.DotOp.ELEMENTS, *dialect.DotOp.PANELS_ELEMENTS}


def test_a_wrong_result_is_noticed() -> None:
    """The comparison is worth something only if a small mistake shows."""
    for name in ("unary exp", "reduce sum", "dot f32 f32", "dot packed i8 u8", "load"):
        case = cases_of(name)[-1]
        wrong = case.expected()
        row = wrong[-1].reshape(-1)
        finite = [index for index, value in enumerate(row) if np.isfinite(value) and value not in (0, 77)]
        row[finite[-1]] += 1 if row.dtype.kind == "i" else np.abs(row[finite[-1]]) * 1e-4 + 1e-4
        with pytest.raises(AssertionError, match="beyond the budget"):
            case.check(wrong)
