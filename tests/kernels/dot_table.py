"""The table of Tile IR: cases for products of tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from cases import Array, Case, blank, generator, padded, values_of
from memory_table import panels

from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.types import buffer_type

Table = dict[str, Callable[[], Iterator[Case]]]

ROUNDINGS = {("f32", "f32"): 1, ("f32", "bf16"): 1, ("bf16", "bf16"): 2}
"""How often a target may round for each k: once with a fused multiply-add, twice where products are added in pairs."""


def error_bound(pair: tuple[str, str], left: Array, right: Array, accumulator: Array) -> Array:
    """What rounding in float32 can do to a dot: the classic bound, k roundings of the sum of magnitudes."""
    if pair[0] == "i8":
        return np.zeros((left.shape[0], right.shape[1]))
    magnitudes = np.abs(left.astype(np.float64)) @ np.abs(right.astype(np.float64)) + np.abs(accumulator)
    # Half a unit for the interpreter's own rounding of the exact result; denormals are flushed by some instructions.
    return np.asarray((ROUNDINGS[pair] * left.shape[1] + 1) * 2.0**-24 * magnitudes + 1e-37 * left.shape[1])


def unpacked(weight: Array, columns: int, depth: int) -> Array:
    """[K, N] of a weight in panels; those of u4 share bytes."""
    if depth == 8:
        weight = np.concatenate([weight & 15, weight >> 4], axis=3)
    count, groups, _, packed = weight.shape
    return weight.transpose(1, 3, 0, 2).reshape(groups * packed, count * 16)[:columns]


def packed_cases(left_element: str, right_element: str) -> Iterator[Case]:
    packed = {"f32": 1, "bf16": 2, "u8": 4, "u4": 8}[right_element]
    result = "i32" if left_element == "i8" else "f32"
    for rows, panel_count, depth, before, tokens in (
        (1, 1, packed, 0, 2),
        (1, 4, 36 // packed * packed, 0, 1),
        (2, 2, 100 // packed * packed, 0, 3),
        (3, 1, 12 // packed * packed, 8, 7),
        (4, 4, 64, packed, 5),
        (5, 3, 8, 0, 6),
        (6, 4, 260 // packed * packed, 0, 13),
    ):
        random = generator("packed", left_element, rows, depth)
        outputs = 16 * panel_count * 2
        weight = panels(random, (outputs, depth + before), packed, right_element)
        x = values_of(random, (tokens, padded(depth + before)), left_element, special=False)
        start = values_of(random, (1, 16), result, special=False)
        b = KernelBuilder(
            f"packed_{left_element}_{right_element}_{rows}x{panel_count}x{depth}",
            [f"T/{rows}", 2],
            [
                buffer_type([None, x.shape[1]], left_element),
                buffer_type([*weight.shape[:3], packed], right_element),
                buffer_type([1, 16], result),
                buffer_type([None, outputs], result),
            ],
        )
        width = panel_count * 16
        first, output = b.index("mul", b.program_id(0), rows), b.index("mul", b.program_id(1), width)
        k0 = b.constant(before)
        left = b.load(b.buffers[0], first, k0, (rows, depth), limit=b.tokens, row_step=1)
        right = b.load_packed(b.buffers[1], output, k0, (depth, width))
        zero = b.constant(0)
        accumulator = None
        if rows != 6:
            one = b.load(b.buffers[2], zero, zero, (1, 1))
            accumulator = b.binary("add", b.full(0, (rows, width), result), one)
        b.store(b.dot(left, right, accumulator), b.buffers[3], first, output, limit=b.tokens, row_step=1)
        matrix = unpacked(weight, depth + before, packed)[before:]
        begin = start[0, 0] if rows != 6 else np.zeros((), start.dtype)
        bounds = (
            {}
            if result == "i32"
            else {3: error_bound((left_element, right_element), x[:, before : before + depth], matrix, begin)}
        )
        yield Case(b.finish(), [x, weight, start, blank(tokens, outputs, result)], tokens, bounds=bounds)


def general_cases(right_element: str) -> Iterator[Case]:
    """A right operand in rows with a ragged edge; left operands in memory and computed; unrolled and in a loop."""
    for rows, depth, columns, computed in (
        (1, 1, 1, False),
        (1, 16, 5, True),
        (2, 17, 16, False),
        (3, 16, 33, True),
        (4, 100, 17, False),
        (6, 260, 48, True),
    ):
        random = generator("general", right_element, rows)
        tokens = 3
        x = values_of(random, (tokens, rows * depth), "f32", special=False)
        y = values_of(random, (tokens, depth * columns), right_element, special=False)
        b = KernelBuilder(
            f"dot_f32_{right_element}_{rows}x{depth}x{columns}",
            ["T"],
            [
                buffer_type([None, rows * depth], "f32"),
                buffer_type([None, depth * columns], right_element),
                buffer_type([None, rows * columns], "f32"),
            ],
        )
        token, zero = b.program_id(0), b.constant(0)
        left = b.load(b.buffers[0], token, zero, (rows, depth), column_step=depth)
        right = b.load(b.buffers[1], token, zero, (depth, columns), column_step=columns)
        if computed:
            left = b.binary("mul", left, 2.0)
        if computed and right_element == "f32":
            right = b.select(b.compare("greater", right, b.full(-1.0)), right, b.full(0.5))
        accumulator = b.full(-1.5, (rows, columns)) if depth > 1 else None
        b.store(b.dot(left, right, accumulator), b.buffers[2], token, zero, column_step=columns)
        begin = np.full((rows, columns), -1.5 if depth > 1 else 0.0)
        bound = [
            error_bound(
                ("f32", right_element),
                x[token].reshape(rows, depth) * (2 if computed else 1),
                np.maximum(np.abs(y[token].reshape(depth, columns)), 0.5),
                begin,
            ).reshape(-1)
            for token in range(tokens)
        ]
        yield Case(b.finish(), [x, y, blank(tokens, rows * columns)], tokens, bounds={2: np.array(bound)})


def transposed_cases() -> Iterator[Case]:
    """The left operand read with steps, and from single columns of what an earlier dot gave."""
    tokens, depth, columns = 2, 16, 40
    random = generator("twice")
    x, y = (values_of(random, (tokens, width), "f32", special=False) for width in (3 * depth * 2, depth * columns))
    z = values_of(random, (tokens, columns * 20), "f32", special=False)
    b = KernelBuilder(
        "dot_twice",
        ["T"],
        [buffer_type([None, n], "f32") for n in (x.shape[1], y.shape[1], z.shape[1], 3 * columns, 60)],
    )
    token, zero = b.program_id(0), b.constant(0)
    left = b.load(b.buffers[0], token, zero, (3, depth), column_step=2 * depth, lane_step=2)
    first = b.dot(left, b.load(b.buffers[1], token, zero, (depth, columns), column_step=columns))
    b.store(first, b.buffers[3], token, zero, column_step=columns)
    second = b.dot(first, b.load(b.buffers[2], token, zero, (columns, 20), column_step=20))
    b.store(second, b.buffers[4], token, zero, column_step=20)
    bounds: dict[int, list[Array]] = {3: [], 4: []}
    for row in range(tokens):
        a = np.abs(x[row].reshape(3, 2 * depth)[:, ::2].astype(np.float64))
        m, n = (np.abs(v[row].astype(np.float64)) for v in (y, z))
        inner = error_bound(("f32", "f32"), a, m.reshape(depth, columns), np.zeros(1))
        product = a @ m.reshape(depth, columns)
        bounds[3].append(inner.reshape(-1))
        outer = error_bound(("f32", "f32"), product, n.reshape(columns, 20), np.zeros(1)) + inner @ n.reshape(
            columns, 20
        )
        bounds[4].append(outer.reshape(-1))
    buffers = [x, y, z, blank(tokens, 3 * columns), blank(tokens, 60)]
    yield Case(b.finish(), buffers, tokens, bounds={key: np.array(rows) for key, rows in bounds.items()})


DOT_TABLE: Table = {
    "dot packed f32 f32": lambda: packed_cases("f32", "f32"),
    "dot packed bf16 bf16": lambda: packed_cases("bf16", "bf16"),
    "dot packed i8 u8": lambda: packed_cases("i8", "u8"),
    "dot packed i8 u4": lambda: packed_cases("i8", "u4"),
    "dot f32 f32": lambda: general_cases("f32"),
    "dot f32 bf16": lambda: general_cases("bf16"),
    "dot of a dot": transposed_cases,
}
