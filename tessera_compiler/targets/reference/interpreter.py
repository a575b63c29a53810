"""Runs Tile IR kernels in NumPy: the oracle that every other target is compared with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import Block, Operation, SSAValue

from tessera_compiler.tile import dialect


def grid_size(entry: str | int, tokens: int, logit_rows: int, tiles: int = 0, singles: int = 0, chunks: int = 1) -> int:
    """The number of instances along one grid axis: an integer, `Q`, `D`, `C`, `T`, `L`, `T/m` or `L/m` (rounded up)."""
    if isinstance(entry, int):
        return entry
    symbol, _, divisor = entry.partition("/")
    count = {"T": tokens, "L": logit_rows, "Q": tiles, "D": singles, "C": chunks}[symbol]
    return -(-count // int(divisor or 1))


def run_kernel(
    kernel: dialect.KernelOp,
    buffers: Sequence[NDArray[Any]],
    *,
    tokens: int,
    logit_rows: int = 0,
    table_width: int = 0,
    tiles: int = 0,
    singles: int = 0,
    chunks: int = 1,
) -> None:
    """Runs all instances of a kernel, in order; stores change `buffers` in place."""
    sizes = [grid_size(entry, tokens, logit_rows, tiles, singles, chunks) for entry in kernel.grid_entries]
    block = kernel.body.block
    arguments = [*buffers, tokens, logit_rows, table_width]
    for program in itertools.product(*[range(size) for size in sizes]):
        values: dict[SSAValue, Any] = dict(zip(block.args, arguments, strict=True))
        _run_block(block, values, program)


def _run_block(block: Block, values: dict[SSAValue, Any], program: tuple[int, ...]) -> list[Any]:
    for operation in block.ops:
        if isinstance(operation, dialect.YieldOp):
            return _values(operation.values, values)
        if isinstance(operation, dialect.ForOp):
            _run_loop(operation, values, program)
        elif isinstance(operation, dialect.WhenOp):
            done = values[operation.at] == 0
            results = _run_block(operation.body.block, values, program) if done else _values(operation.initial, values)
            values.update(zip(operation.results, results, strict=True))
        elif isinstance(operation, dialect.PartsOp):
            _run_block(operation.body_of(values[operation.at]), values, program)
        else:
            _run_operation(operation, values, program)
    return []


def _run_loop(loop: dialect.ForOp, values: dict[SSAValue, Any], program: tuple[int, ...]) -> None:
    carried = _values(loop.initial, values)
    body = loop.body.block
    rounds = range(values[loop.lower], values[loop.upper], values[loop.step])
    for index in rounds if loop.once is None else rounds[:1]:
        values.update(zip(body.args, [index, *carried], strict=True))
        carried = _run_block(body, values, program)
    values.update(zip(loop.results, carried, strict=True))


def _values(of: Sequence[SSAValue], values: dict[SSAValue, Any]) -> list[Any]:
    return [values[each] for each in of]


def _run_operation(operation: Operation, values: dict[SSAValue, Any], program: tuple[int, ...]) -> None:
    if isinstance(operation, dialect.ProgramIdOp):
        values[operation.result] = program[operation.axis.value.data]
    elif isinstance(operation, dialect.TileOperation | dialect.StoreOp | dialect.StorePanelOp | dialect.StoreBlockOp):
        results = operation.evaluate(*[values[operand] for operand in operation.operands])
        values.update(zip(operation.results, results, strict=True))
    elif not isinstance(operation, dialect.ReturnOp):
        raise TypeError(f"{operation.name} is not a Tile IR operation")


def as_buffer(values: NDArray[Any]) -> NDArray[Any]:
    """A writable copy in the form the interpreter works on."""
    return np.array(values, order="C")
