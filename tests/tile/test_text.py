"""Kernels are text that reads back as the same kernels, and that MLIR itself reads."""

from __future__ import annotations

from functools import cache

import pytest
from jaxlib.mlir import ir as mlir
from programs import compiled, slow_from

from tessera_compiler.driver import parse_ir, print_ir
from tessera_compiler.tile.dialect import TILE_OPERATIONS

PROGRAMS = [("llama", "fp32"), ("llama", "int8"), ("gemma2", "bf16"), ("llama", "int4")]


@cache
def text_of(name: str, dtype: str) -> str:
    """All kernels of a program, as a package holds them."""
    return compiled(name, dtype, ("x86-64-v4",)).tile_ir


@pytest.mark.parametrize(("name", "dtype"), slow_from(2, PROGRAMS))
def test_print_parse_print(name: str, dtype: str) -> None:
    text = text_of(name, dtype)
    assert text.count('"tile.kernel"') > 10
    assert print_ir(parse_ir(text)) == text


@pytest.mark.parametrize(("name", "dtype"), slow_from(2, PROGRAMS))
def test_mlir_reads_it(name: str, dtype: str) -> None:
    context = mlir.Context()
    context.allow_unregistered_dialects = True
    module = mlir.Module.parse(text_of(name, dtype), context)
    assert module.operation.verify()
    kernels = [op for op in module.body.operations if op.operation.name == "tile.kernel"]
    assert len(kernels) == text_of(name, dtype).count('"tile.kernel"')


def test_all_ops_occur_in_the_text() -> None:
    text = "".join(text_of(name, dtype) for name, dtype in PROGRAMS)
    assert [op.name for op in TILE_OPERATIONS if f'"{op.name}"' not in text] == []
