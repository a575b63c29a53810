"""The table of Tile IR: cases for memory, indices, constants and loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from cases import Array, Case, blank, generator, padded, values_of
from xdsl.ir import SSAValue

from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.dialect import INDEX_FUNCTIONS
from tessera_compiler.tile.types import buffer_type

Table = dict[str, Callable[[], Iterator[Case]]]
ELEMENTS = ("f32", "bf16", "i8", "u8", "i32")
WIDTHS = (1, 5, 16, 17, 100, 260)
CONSTANTS = {"f32": (0.0, -2.5, 1e-40, np.inf, -np.inf, 1 / 3), "bf16": (0.0, -2.5, 3.0), "i8": (-128, 7), "u8": (200,)}


def load_cases() -> Iterator[Case]:
    """Every element through every kind of step; rows past the limit are not read."""
    tokens = 7
    for element in ELEMENTS:
        for rows, columns, row_step, column_step, lane_step in (
            (1, 17, 0, 0, 1),
            (1, 21, 0, 0, 3),
            (4, 5, 0, 24, 2),
            (3, 16, 0, 16, 1),
            (3, 33, 1, 0, 1),
            (2, 19, 1, 3, 2),
            (5, 1, 1, 7, 1),
        ):
            width = padded(rows * column_step + columns * lane_step + 3)
            b = KernelBuilder(
                f"load_{element}_{rows}_{columns}_{row_step}_{column_step}_{lane_step}",
                [f"T/{rows}" if row_step else "T"],
                [buffer_type([None, width], element), buffer_type([None, rows * columns + 5], element)],
            )
            first = b.index("mul", b.program_id(0), rows if row_step else 1)
            tile = b.load(
                b.buffers[0],
                first,
                b.constant(2),
                (rows, columns),
                limit=b.tokens if row_step else None,
                row_step=row_step,
                column_step=column_step,
                lane_step=lane_step,
            )
            limit = b.tokens if row_step else None
            b.store(tile, b.buffers[1], first, b.constant(1), limit=limit, row_step=row_step, column_step=columns)
            x = values_of(generator("load", element, columns), (tokens, width), element)
            yield Case(b.finish(), [x, blank(tokens, rows * columns + 5, element)], tokens)


def store_cases() -> Iterator[Case]:
    """The same on the side of the store, with whatever lies between left alone."""
    tokens = 7
    for element in ELEMENTS:
        for rows, columns, row_step, column_step, lane_step in (
            (1, 17, 0, 0, 1),
            (1, 21, 0, 0, 3),
            (4, 5, 0, 24, 2),
            (3, 33, 1, 0, 1),
            (2, 19, 1, 3, 2),
            (5, 1, 1, 7, 16),
        ):
            width = padded(rows * column_step + columns * lane_step + 3)
            b = KernelBuilder(
                f"store_{element}_{rows}_{columns}_{row_step}_{column_step}_{lane_step}",
                [f"T/{rows}" if row_step else "T"],
                [buffer_type([None, columns], element), buffer_type([None, width], element)],
            )
            first = b.index("mul", b.program_id(0), rows if row_step else 1)
            limit = b.tokens if row_step else None
            tile = b.load(b.buffers[0], first, b.constant(0), (rows, columns), limit=limit, row_step=row_step)
            b.store(
                tile,
                b.buffers[1],
                first,
                b.constant(2),
                limit=limit,
                row_step=row_step,
                column_step=column_step,
                lane_step=lane_step,
            )
            x = values_of(generator("store", element, columns), (tokens, columns), element)
            yield Case(b.finish(), [x, blank(tokens, width, element)], tokens)


def single_row_cases() -> Iterator[Case]:
    """One row of a weight for all tokens, and one number of a row for all columns."""
    for columns in WIDTHS:
        width = padded(columns)
        b = KernelBuilder(
            f"broadcast_{columns}",
            ["T"],
            [buffer_type([1, width], "f32"), buffer_type([None, 16], "f32"), buffer_type([None, width], "f32")],
        )
        token, zero = b.program_id(0), b.constant(0)
        row = b.load(b.buffers[0], zero, zero, (1, columns))
        b.store(b.binary("mul", row, b.load(b.buffers[1], token, b.constant(3), (1, 1))), b.buffers[2], token, zero)
        random = generator("broadcast", columns)
        buffers = [values_of(random, (1, width), "f32"), values_of(random, (3, 16), "f32"), blank(3, width)]
        yield Case(b.finish(), buffers, 3)


def panels(random: np.random.Generator, shape: tuple[int, int], packed: int, element: str) -> Array:
    """A weight of [N, K] in a panel layout, every element of the padding as well; two of u4 share a byte."""
    rows, columns = shape
    groups = -(-columns // packed)
    size = 4 if element == "u4" else packed
    values = values_of(random, (rows // 16 * groups, 16 * size), "u8" if element == "u4" else element, special=False)
    return values.reshape(rows // 16, groups, 16, size)


def packed_tile_cases() -> Iterator[Case]:
    """Tiles of panels that no dot multiplies, from anywhere in k, alone and broadcast over rows."""
    for element, packed in (("f32", 1), ("bf16", 1), ("u8", 1), ("bf16", 2), ("u8", 4)):
        for rows, columns, at in ((1, 16, 0), (1, 64, 5), (3, 32, 2)):
            weight = panels(generator("tile", element, packed, rows), (96, 11), packed, element)
            b = KernelBuilder(
                f"packed_tile_{element}_{packed}_{rows}x{columns}",
                ["T"],
                [
                    buffer_type([None], "i32"),
                    buffer_type(list(weight.shape), element),
                    buffer_type([None, 3 * columns], "f32"),
                ],
            )
            token = b.program_id(0)
            first = b.index("mul", b.load_index(b.buffers[0], token), 16)
            tile = b.cast(b.load_packed(b.buffers[1], first, b.constant(at), (rows, columns)), "f32")
            whole = b.binary("add", tile, b.full(1.0, (3, columns)))
            b.store(whole, b.buffers[2], token, b.constant(0), column_step=columns)
            ids = np.array([0, 2, 1], np.int32)
            yield Case(b.finish(), [ids, weight, blank(len(ids), 3 * columns)], len(ids))


def packed_row_cases() -> Iterator[Case]:
    for element, packed in (("f32", 1), ("bf16", 2), ("u8", 4)):
        for columns in WIDTHS:
            depth = columns + 8
            weight = panels(generator("row", element, columns), (48, depth), packed, element)
            width = padded(columns)
            b = KernelBuilder(
                f"packed_row_{element}_{columns}",
                ["T"],
                [
                    buffer_type([None], "i32"),
                    buffer_type(list(weight.shape), element),
                    buffer_type([None, width], "f32"),
                ],
            )
            token = b.program_id(0)
            row = b.load_packed_row(b.buffers[1], b.load_index(b.buffers[0], token), b.constant(8), columns)
            b.store(b.cast(row, "f32"), b.buffers[2], token, b.constant(0))
            ids = np.array([47, 0, 16, 15, 31], np.int32)
            yield Case(b.finish(), [ids, weight, blank(len(ids), width)], len(ids))


def full_cases() -> Iterator[Case]:
    for element, numbers in {**CONSTANTS, "i32": (-(2**31), 5)}.items():
        for number, value in enumerate(numbers):
            columns = WIDTHS[number % len(WIDTHS)]
            b = KernelBuilder(f"full_{element}_{number}", ["T"], [buffer_type([None, 2 * columns], element)])
            b.store(
                b.full(value, (2, columns), element), b.buffers[0], b.program_id(0), b.constant(0), column_step=columns
            )
            yield Case(b.finish(), [blank(2, 2 * columns, element)], 2)
    b = KernelBuilder("full_i1", ["T"], [buffer_type([None, 16], "f32")])
    chosen = b.select(b.full(1, (1, 5), "i1"), b.full(3.0), b.full(4.0))
    b.store(chosen, b.buffers[0], b.program_id(0), b.constant(0))
    yield Case(b.finish(), [blank(2, 16)], 2)


def iota_cases() -> Iterator[Case]:
    for columns in WIDTHS:
        for axis in (0, 1):
            count = min(columns, 17) if axis == 0 else columns
            b = KernelBuilder(f"iota_{axis}_{count}_{columns}", ["T"], [buffer_type([None, 17 * columns], "i32")])
            token = b.program_id(0)
            start = b.index("sub", b.index("mul", token, 1000), b.tokens)
            tile = b.iota(start, count, axis)
            if axis == 0:
                tile = b.binary("add", tile, b.full(0, (1, columns), "i32"))
            b.store(tile, b.buffers[0], token, b.constant(0), column_step=columns)
            yield Case(b.finish(), [blank(3, 17 * columns, "i32")], 3)


def index_cases() -> Iterator[Case]:
    """Every index function on numbers read from a buffer and on T, L and W; ids of three axes of the grid."""
    for function in INDEX_FUNCTIONS:
        b = KernelBuilder(
            f"index_{function}",
            ["T", 3, "L/2"],
            [buffer_type([None], "i32"), buffer_type([None], "i32"), buffer_type([None, 48], "i32")],
        )
        token, second, third = (b.program_id(axis) for axis in range(3))
        left, right = (b.load_index(buffer, token) for buffer in b.buffers[:2])
        values = [b.index(function, left, right), b.tokens, b.logit_rows, b.table_width, second, third]
        place = b.index("mul", b.index("add", b.index("mul", third, 3), second), 8)
        for offset, value in enumerate(values):
            b.store(b.iota(value, 1), b.buffers[2], token, b.index("add", place, offset))
        signed = function not in ("div", "rem")
        left_numbers = np.array([17, 0, 5, -9 if signed else 9], np.int32)
        right_numbers = np.array([5, 3, 17, -2 if signed else 2], np.int32)
        buffers = [left_numbers, right_numbers, blank(4, 48, "i32")]
        yield Case(b.finish(), buffers, 4, logit_rows=3, table_width=11)


def _one_round(b: KernelBuilder, columns: int, index: SSAValue, carried: list[SSAValue]) -> list[SSAValue]:
    """The second tile becomes the first; the first, after a loop inside, the second."""
    first, second = carried
    row = b.load(b.buffers[1], index, b.constant(0), (1, columns))
    total = b.binary("add", first, b.binary("mul", row, second))
    (inner,) = b.loop(
        b.constant(0),
        index,
        2,
        [total],
        lambda round_, held: [b.binary("sub", held[0], b.cast(b.iota(round_, 1), "f32"))],
    )
    return [second, inner]


def loop_cases() -> Iterator[Case]:
    """Loops that carry nothing, one tile, and two that depend on each other; of no, one and many rounds; nested."""
    for columns in (1, 17, 260):
        width = padded(columns)
        b = KernelBuilder(
            f"loop_{columns}",
            ["T"],
            [
                buffer_type([None], "i32"),
                buffer_type([None, width], "f32"),
                buffer_type([None, width], "f32"),
                buffer_type([None, width], "f32"),
            ],
        )
        token, zero = b.program_id(0), b.constant(0)
        count = b.load_index(b.buffers[0], token)

        results = b.loop(
            zero,
            count,
            1,
            [b.full(1.0, (1, columns)), b.full(2.0, (1, columns))],
            lambda index, carried, b=b, columns=columns: _one_round(b, columns, index, carried),  # type: ignore[misc]
        )
        (once,) = b.loop(
            b.constant(1),
            count,
            1,
            [results[1]],
            lambda index, held, b=b: [b.binary("add", held[0], held[0])],  # type: ignore[misc]
            once=True,
        )
        for result, buffer in zip((results[0], once), b.buffers[2:], strict=True):
            b.store(result, buffer, token, zero)
        counts = np.array([0, 1, 2, 5], np.int32)
        x = np.abs(values_of(generator("loop", columns), (6, width), "f32", special=False)) % 2
        yield Case(b.finish(), [counts, x, blank(4, width), blank(4, width)], 4)


def columns_cases() -> Iterator[Case]:
    """Columns from anywhere, neighbours or not, of a tile that is loaded, computed, or the sums of a product."""
    tokens, rows = 5, 2
    for element in ELEMENTS:
        for width, first, count, step in (
            (64, 32, 32, 1),
            (80, 40, 40, 1),
            (21, 5, 16, 1),
            (33, 0, 17, 2),
            (64, 1, 32, 2),
            (100, 3, 20, 5),
            (320, 16, 260, 1),
            (400, 7, 190, 2),
            (5, 4, 1, 1),
        ):
            b = KernelBuilder(
                f"columns_{element}_{width}_{first}_{count}_{step}",
                [f"T/{rows}"],
                [buffer_type([None, padded(width)], element), buffer_type([None, padded(count)], element)],
            )
            row, zero = b.index("mul", b.program_id(0), rows), b.constant(0)
            tile = b.load(b.buffers[0], row, zero, (rows, width), limit=b.tokens, row_step=1)
            if element == "f32":
                tile = b.binary("mul", tile, b.reduce("max", tile))
            b.store(b.columns(tile, first, count, step), b.buffers[1], row, zero, limit=b.tokens, row_step=1)
            x = values_of(generator("columns", element, width), (tokens, padded(width)), element)
            yield Case(b.finish(), [x, blank(tokens, padded(count), element)], tokens)
    weight = panels(generator("columns"), (64, 32), 1, "f32")
    b = KernelBuilder(
        "columns_of_a_product",
        ["T"],
        [
            buffer_type([None, 32], "f32"),
            buffer_type(list(weight.shape), "f32"),
            buffer_type([None, 32], "f32"),
        ],
    )
    token, zero = b.program_id(0), b.constant(0)
    sums = b.dot(b.load(b.buffers[0], token, zero, (1, 32)), b.load_packed(b.buffers[1], zero, zero, (32, 64)))
    b.store(b.binary("sub", b.columns(sums, 8, 32), b.columns(sums, 0, 32, 2)), b.buffers[2], token, zero)
    # Whole numbers, whose products add up without rounding.
    x = generator("columns").integers(-8, 9, (3, 32)).astype(np.float32)
    yield Case(b.finish(), [x, np.rint(np.clip(weight, -8, 8)), blank(3, 32)], 3)


def reuse_cases() -> Iterator[Case]:
    """A costly value used several times, a value used in two segments, a column used by all rows."""
    columns = 37
    b = KernelBuilder("reuse", ["T"], [buffer_type([None, 48], "f32"), buffer_type([None, 96], "f32")])
    token, zero = b.program_id(0), b.constant(0)
    x = b.load(b.buffers[0], token, zero, (1, columns))
    raised = b.unary("exp", x)
    b.store(b.binary("sub", raised, b.reduce("max", raised)), b.buffers[1], token, zero)
    b.store(b.binary("div", raised, b.reduce("sum", raised)), b.buffers[1], token, b.constant(48))
    x_values = generator("reuse").uniform(-3, 3, (4, 48)).astype(np.float32)
    yield Case(b.finish(), [x_values, blank(4, 96)], 4, budget=64)


MEMORY_TABLE: Table = {
    "load": load_cases,
    "load a single row": single_row_cases,
    "load_packed": packed_tile_cases,
    "load_packed_row": packed_row_cases,
    "store": store_cases,
    "full": full_cases,
    "iota": iota_cases,
    "index": index_cases,
    "columns": columns_cases,
    "for": loop_cases,
    "values used again": reuse_cases,
}
