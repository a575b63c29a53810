"""The table of Tile IR for devices: the ops that all targets have but panels, and those of blocks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
try:
    from cases import Case, blank, generator, values_of
    from dot_table import DOT_TABLE
    from elementwise_table import ELEMENTWISE_TABLE
    from memory_table import MEMORY_TABLE
finally:
    sys.path.pop(0)

from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.types import buffer_type

Table = dict[str, Callable[[], Iterator[Case]]]


def blocks() -> Iterator[Case]:
    """Loads and stores in both orders of axes, with and without a period and a count, ragged and whole."""
    for element in ("f32", "bf16", "i8", "u8"):
        for rows, columns, period, count, across in (
            (16, 16, 0, None, False),
            (5, 17, 0, 3, False),
            (12, 8, 3, 7, False),
            (6, 1, 2, None, False),
            (7, 5, 0, 4, True),
        ):
            random = generator("blocks", element, rows, columns)
            width, tokens = rows * columns + 3, 4
            x = values_of(random, (tokens * rows, width), element, special=False)
            symbol = f"block_{element}_{rows}x{columns}"
            b = KernelBuilder(symbol, ["T"], [buffer_type([None, width], element), buffer_type([None, width], element)])
            first = b.index("mul", b.program_id(0), rows)
            two, limit = b.constant(2), None if count is None else b.constant(count)
            if across:
                steps = {"column_step": 1, "lane_row_step": 1}
            else:
                steps = {"period": period, "row_step": 1, "lane_step": 1, "column_step": columns if period else 0}
            loaded = b.load_block(b.buffers[0], first, two, (rows, columns), count=limit, **steps)
            b.store_block(loaded, b.buffers[1], first, b.constant(0), count=limit, **steps)
            yield Case(b.finish(), [x, blank(tokens * rows, width, element)], tokens)


def dots() -> Iterator[Case]:
    """Products with a right operand that is read across, of every pair of elements."""
    for left_element, right_element in (("f32", "f32"), ("bf16", "bf16"), ("i8", "u8")):
        for rows, depth, columns in ((16, 32, 16), (7, 40, 20), (64, 64, 64)):
            random = generator("block dots", left_element, rows, depth)
            x = values_of(random, (rows, 64), left_element, special=False)
            y = values_of(random, (columns, 64), right_element, special=False)
            if left_element != "i8":
                x, y = np.clip(x, -4, 4), np.clip(y, -4, 4)
            result = "i32" if left_element == "i8" else "f32"
            b = KernelBuilder(
                f"block_dot_{left_element}_{rows}x{depth}x{columns}",
                [1],
                [
                    buffer_type([None, 64], left_element),
                    buffer_type([None, 64], right_element),
                    buffer_type([None, 64], result),
                ],
            )
            zero = b.constant(0)
            left = b.load_block(b.buffers[0], zero, zero, (rows, depth), row_step=1, lane_step=1)
            right = b.load_block(b.buffers[1], zero, zero, (depth, columns), column_step=1, lane_row_step=1)
            if right_element == "u8":
                right = b.cast(right, "i8")
            sums = b.dot(left, right, b.full(0, (rows, columns), result))
            b.store_block(sums, b.buffers[2], zero, zero, row_step=1, lane_step=1)
            bound = 0.0 if result == "i32" else 1e-4
            yield Case(b.finish(), [x, y, blank(rows, 64, result)], 1, bounds={2: np.full((rows, 64), bound)})


def repeated() -> Iterator[Case]:
    for rows, repeat in ((16, 1), (12, 3), (5, 2)):
        b = KernelBuilder(f"repeated_{rows}", [1], [buffer_type([None, 4], "i32")])
        numbers = b.iota(b.constant(7), rows, 0, repeat)
        b.store_block(numbers, b.buffers[0], b.constant(0), b.constant(1), row_step=1)
        yield Case(b.finish(), [blank(rows, 4, "i32")], 1)


BLOCK_TABLE: Table = {
    **ELEMENTWISE_TABLE,
    **{name: cases for name, cases in MEMORY_TABLE.items() if "pack" not in name and "panel" not in name},
    **{name: cases for name, cases in DOT_TABLE.items() if "pack" not in name and "panel" not in name},
    "blocks": blocks,
    "dots of blocks": dots,
    "iota repeated": repeated,
}
