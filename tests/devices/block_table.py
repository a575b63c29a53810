"""The table of Tile IR for devices: the ops that all targets have but panels, and those of blocks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from xdsl.ir import SSAValue

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
try:
    from cases import Case, blank, generator, values_of
    from dot_table import DOT_TABLE
    from elementwise_table import ELEMENTWISE_TABLE
    from memory_table import MEMORY_TABLE
finally:
    sys.path.pop(0)

from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.float8 import round_to_float8
from tessera_compiler.tile.types import buffer_type

Table = dict[str, Callable[[], Iterator[Case]]]
Body = Callable[[SSAValue], None]


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
    pairs = (("f32", "f32"), ("bf16", "bf16"), ("f16", "f16"), ("f8_e4m3", "f8_e4m3"), ("i8", "u8"))
    for left_element, right_element in pairs:
        for rows, depth, columns in ((16, 32, 16), (7, 40, 20), (64, 64, 64)):
            random = generator("block dots", left_element, rows, depth)
            x = values_of(random, (rows, 64), left_element, special=False)
            y = values_of(random, (columns, 64), right_element, special=False)
            if left_element != "i8":
                x, y = np.clip(x, -4, 4), np.clip(y, -4, 4)
            if left_element == "f8_e4m3":
                x, y = round_to_float8(x), round_to_float8(y)
            if left_element == "f16":
                x, y = x.astype(np.float16), y.astype(np.float16)
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


def narrow_floats() -> Iterator[Case]:
    """Ties, numbers below the least normal one, the largest, and back."""
    ties = np.arange(-448, 449, 0.5).astype(np.float32)
    small = (np.arange(-64, 65) * 2.0**-11).astype(np.float32)
    for element, values in (("f8_e4m3", ties), ("f8_e4m3", small), ("f16", ties * 100), ("f16", small * 2.0**-14)):
        x = np.resize(values, (-(-len(values) // 40), 40)).astype(np.float32)
        rows = len(x)
        name = f"narrow_{element}_{rows}_{values[0] < -0.1}"
        b = KernelBuilder(name, [1], [buffer_type([None, 40], "f32"), buffer_type([None, 40], element)])
        zero = b.constant(0)
        loaded = b.load_block(b.buffers[0], zero, zero, (rows, 40), row_step=1, lane_step=1)
        b.store_block(b.cast(loaded, element), b.buffers[1], zero, zero, row_step=1, lane_step=1)
        yield Case(b.finish(), [x, blank(rows, 40, element)], 1, signed_zeros=False)


def transposes() -> Iterator[Case]:
    for element in ("f32", "bf16", "i8"):
        for rows, columns in ((16, 32), (5, 17), (1, 16)):
            random = generator("transposes", element, rows, columns)
            x = values_of(random, (rows, columns), element, special=False)
            buffers = [buffer_type([None, columns], element), buffer_type([None, rows], element)]
            b = KernelBuilder(f"transpose_{element}_{rows}x{columns}", [1], buffers)
            zero = b.constant(0)
            loaded = b.load_block(b.buffers[0], zero, zero, (rows, columns), row_step=1, lane_step=1)
            b.store_block(b.transpose(loaded), b.buffers[1], zero, zero, row_step=1, lane_step=1)
            yield Case(b.finish(), [x, blank(columns, rows, element)], 1)


def unpacked() -> Iterator[Case]:
    """Numbers of four bits, of every pair of a word."""
    for rows, words in ((16, 16), (5, 16), (64, 32)):
        for pair in range(4):
            random = generator("unpacked", rows, words, pair)
            shapes = ((rows, words), (rows, 1), (rows, 1))
            given = [random.integers(-(2**31), 2**31, shape).astype(np.int32) for shape in shapes]
            buffers = [buffer_type([None, shape[1]], "i32") for shape in shapes]
            name = f"unpacked_{rows}x{words}_{pair}"
            b = KernelBuilder(name, [1], [*buffers, buffer_type([None, 2 * words], "f32")])
            zero = b.constant(0)
            loaded = [
                b.load_block(buffer, zero, zero, shape, row_step=1, lane_step=1)
                for buffer, shape in zip(b.buffers, shapes, strict=False)
            ]
            numbers, scales, zeros = loaded
            b.store_block(b.unpack(numbers, scales, zeros, pair), b.buffers[3], zero, zero, row_step=1, lane_step=1)
            yield Case(b.finish(), [*given, blank(rows, 2 * words, "f32")], 1, signed_zeros=False)


def parts() -> Iterator[Case]:
    """Kernels of which an instance does one of several things, by its place; with loops and values from outside."""
    for counts in ((3,), (2, 1), (1, 3, 2)):
        width, tokens = 16, 3
        x = values_of(generator("parts", *counts), (tokens, width), "f32", special=False)
        total = sum(counts)
        buffers = [buffer_type([None, width], "f32"), *[buffer_type([None, width * total], "f32")] * len(counts)]
        b = KernelBuilder(f"parts_of_{total}", ["T", total], buffers)
        row, at, factor = b.program_id(0), b.program_id(1), b.full(3.0)

        def body(number: int, b: KernelBuilder = b, row: SSAValue = row, factor: SSAValue = factor) -> Body:
            def written(index: SSAValue) -> None:
                zero = b.constant(0)
                (sums,) = b.loop(
                    zero,
                    b.constant(number + 1),
                    1,
                    [b.load(b.buffers[0], row, zero, (1, 16))],
                    lambda _, carried: [b.binary("mul", carried[0], factor)],
                )
                b.store(sums, b.buffers[1 + number], row, b.index("mul", index, 16))

            return written

        b.parts(at, counts, [body(number) for number in range(len(counts))])
        yield Case(b.finish(), [x, *[blank(tokens, width * total, "f32") for _ in counts]], tokens)


BLOCK_TABLE: Table = {
    **ELEMENTWISE_TABLE,
    **{
        name: cases
        for name, cases in MEMORY_TABLE.items()
        if "pack" not in name and "panel" not in name and name != "columns"
    },
    **{name: cases for name, cases in DOT_TABLE.items() if "pack" not in name and "panel" not in name},
    "blocks": blocks,
    "dots of blocks": dots,
    "iota repeated": repeated,
    "narrow floats": narrow_floats,
    "parts": parts,
    "transposes": transposes,
    "unpacked": unpacked,
}
