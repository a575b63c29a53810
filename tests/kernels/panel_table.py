"""The table of Tile IR: cases for panels that are spread over rows of a buffer, as a KV cache is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from cases import Array, Case, blank, generator, values_of
from dot_table import error_bound

from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.types import buffer_type

Table = dict[str, Callable[[], Iterator[Case]]]
PACKED = {"f32": 1, "bf16": 2, "u8": 4, "i8": 4}


def store_cases() -> Iterator[Case]:
    """Every element, both ways round, whole and ragged, in one piece and every other column."""
    tokens = 19
    for element, packed in PACKED.items():
        for along in ("n", "k"):
            for columns, first, step in ((16, 0, 1), (40, 0, 1), (5, 3, 1), (7, 1, 2), (1, 4, 1), (144, 0, 1)):
                extent = -(-(first + columns * step) // 16) * 16
                width = 32 + extent * 16
                b = KernelBuilder(
                    f"store_panel_{element}_{along}_{columns}_{step}",
                    ["T"],
                    [buffer_type([None, columns], element), buffer_type([None, width], element)],
                )
                token = b.program_id(0)
                tile = b.load(b.buffers[0], token, b.constant(0), (1, columns))
                row, at = b.index("div", token, 16), b.index("rem", token, 16)
                b.store_panel(
                    tile, b.buffers[1], [row], b.constant(32), [at], first=first, step=step, packed=packed, along=along
                )
                x = values_of(generator("panel", element, columns), (tokens, columns), element)
                yield Case(b.finish(), [x, blank(2, width, element)], tokens)


def store_many_cases() -> Iterator[Case]:
    """Tiles of several rows, each with a place of its own; the last tile is not full."""
    tokens, together = 19, 8
    for element, packed in PACKED.items():
        for along in ("n", "k"):
            for columns, step, limited in ((16, 1, False), (40, 1, True), (7, 2, True)):
                width = 32 + -(-columns * step // 16) * 256
                b = KernelBuilder(
                    f"store_panels_{element}_{along}_{columns}_{step}",
                    [f"T/{together}"] if limited else [tokens // together],
                    [buffer_type([None, columns], element), buffer_type([None, width], element)],
                )
                first = b.index("mul", b.program_id(0), together)
                limit = b.tokens if limited else None
                tile = b.load(b.buffers[0], first, b.constant(0), (together, columns), limit=limit, row_step=1)
                places = [b.index("add", first, row) for row in range(together)]
                b.store_panel(
                    tile,
                    b.buffers[1],
                    [b.index("div", place, 16) for place in places],
                    b.constant(32),
                    [b.index("rem", place, 16) for place in places],
                    step=step,
                    packed=packed,
                    along=along,
                    count=b.index("sub", b.tokens, first) if limited else None,
                )
                x = values_of(generator("panels", element, columns), (tokens, columns), element)
                yield Case(b.finish(), [x, blank(3, width, element)], tokens)


def dot_cases(left_element: str, right_element: str, along: str) -> Iterator[Case]:
    """Left operands that are loaded and computed; more rows than registers hold; a limit within the panels."""
    packed = PACKED[right_element]
    result = "i32" if right_element in ("u8", "i8") else "f32"
    for rows, depth, columns, limit in (
        (1, 16, 16, None),
        (3, 64, 64, 64),
        (5, 48, 32, 17),
        (16, 64, 40, 33),
        (7, 35, 64, None),
        (16, 80, 64, 5),
    ):
        ragged = depth % 16 if along == "k" else columns % 16
        if ragged or (along == "n" and depth == 35 and result == "i32"):
            continue
        count = (depth if along == "k" else columns) // 16
        random = generator("panels", left_element, along, rows, depth)
        size = -(-depth // packed) * packed * 16 if along == "n" else -(-columns // 16) * 256
        buffer = values_of(random, (count + 2, size + 64), right_element, special=False)
        x = values_of(random, (rows, depth), left_element, special=False)
        b = KernelBuilder(
            f"panels_{left_element}_{along}_{rows}x{depth}x{columns}",
            ["T"],
            [
                buffer_type([None, depth], left_element),
                buffer_type([None, buffer.shape[1]], right_element),
                buffer_type([None, rows * columns], result),
            ],
        )
        zero = b.constant(0)
        left = b.load(b.buffers[0], zero, zero, (rows, depth), row_step=1)
        if rows == 5 and result == "f32":
            left = b.cast(b.binary("mul", b.cast(left, "f32"), 2.0), left_element)
        order = random.permutation(count + 2)[:count].tolist()
        where = [b.constant(each) for each in order]
        end = None if limit is None or along == "n" else b.constant(limit)
        ahead = where[::-1] if rows == 3 else ()
        right = b.load_panels(b.buffers[1], where, b.constant(64), (depth, columns), packed, along, end, ahead)
        accumulator = b.full(-3, (rows, columns), result) if rows > 1 else None
        b.store(b.dot(left, right, accumulator), b.buffers[2], b.program_id(0), zero, column_step=columns)
        matrix = _unpacked(buffer[order, 64:].astype(np.float64), depth, columns, packed, along)
        if end is not None:
            matrix[limit:] = 0
        bound = {}
        if result == "f32":
            start = np.full((rows, columns), -3.0 if rows > 1 else 0.0)
            factor = 2 if rows == 5 else 1
            bound = {2: error_bound((left_element, right_element), x * factor, matrix, start).reshape(1, -1)}
        yield Case(b.finish(), [x, buffer, blank(1, rows * columns, result)], 1, bounds=bound)


def row_cases() -> Iterator[Case]:
    """Panels one deep that are an operand like any other tile."""
    random = generator("row of panels")
    for element, rows, columns in (("f32", 3, 64), ("f32", 1, 16), ("i32", 2, 32)):
        buffer = values_of(random, (6, 48), element)
        x = values_of(random, (rows, columns), element)
        width = buffer_type([None, columns], element)
        b = KernelBuilder(f"panels_{element}_{rows}x{columns}", [1], [width, buffer_type([None, 48], element), width])
        zero = b.constant(0)
        where = [b.constant(each) for each in random.permutation(6)[: columns // 16].tolist()]
        right = b.load_panels(b.buffers[1], where, b.constant(32), (1, columns), 1, "n")
        left = b.load(b.buffers[0], zero, zero, (rows, columns), row_step=1)
        b.store(b.binary("mul", left, right), b.buffers[2], zero, zero, row_step=1)
        yield Case(b.finish(), [x, buffer, blank(rows, columns, element)], 1)


def _unpacked(rows: Array, depth: int, columns: int, packed: int, along: str) -> Array:
    if along == "n":
        groups = -(-depth // packed)
        whole = rows[:, : groups * packed * 16].reshape(-1, groups, 16, packed).transpose(1, 3, 0, 2)
        return np.array(whole.reshape(groups * packed, -1)[:depth, :columns])
    panels = -(-columns // 16)
    whole = rows[:, : panels * 256].reshape(-1, panels, 16 // packed, 16, packed).transpose(0, 2, 4, 1, 3)
    return np.array(whole.reshape(-1, panels * 16)[:depth, :columns])


def carried_cases() -> Iterator[Case]:
    """Sums that a loop carries and scales on the way, over rows that it finds in a table; and what is carried beside
    them."""
    rows, columns, steps = 16, 48, 3
    random = generator("carried")
    buffer = values_of(random, (6, 16 * 48), "f32", special=False)
    x = values_of(random, (rows, 16 * steps), "f32", special=False)
    table = random.permutation(6)[:steps].astype(np.int32)
    b = KernelBuilder(
        "panels_carried",
        ["T"],
        [
            buffer_type([None, x.shape[1]], "f32"),
            buffer_type([None, buffer.shape[1]], "f32"),
            buffer_type([None], "i32"),
            buffer_type([None, rows * columns], "f32"),
            buffer_type([None, rows], "f32"),
        ],
    )
    zero = b.constant(0)

    def body(step, carried):  # type: ignore[no-untyped-def]
        sums, total, before = carried
        left = b.load(b.buffers[0], zero, b.index("mul", step, 16), (rows, 16), row_step=1)
        where = [b.load_index(b.buffers[2], step)]
        right = b.load_panels(b.buffers[1], where, zero, (16, columns), 1, "k")
        return [
            b.dot(left, right, b.binary("mul", sums, before)),
            b.binary("add", total, b.reduce("sum", left)),
            total,
        ]

    initial = [b.full(0.0, (rows, columns)), b.full(1.0, (rows, 1)), b.full(0.5, (rows, 1))]
    sums, _, before = b.loop(zero, b.constant(steps), 1, initial, body)
    b.store(sums, b.buffers[3], b.program_id(0), zero, column_step=columns)
    b.store(before, b.buffers[4], b.program_id(0), zero, column_step=1)
    yield Case(b.finish(), [x, buffer, table, blank(1, rows * columns), blank(1, rows)], 1, budget=1e5)


def tile_cases() -> Iterator[Case]:
    """A grid over the tiles of a step, whose number only the one who launches knows."""
    tiles = np.array([[2, 3], [0, 2], [5, 1]], np.int32)
    b = KernelBuilder(
        "over_tiles",
        [2, "Q"],
        [buffer_type([None], "i32"), buffer_type([None, 32], "f32"), buffer_type([None, 32], "f32")],
    )
    entry = b.index("mul", b.program_id(1), 2)
    first, column = b.load_index(b.buffers[0], entry), b.index("mul", b.program_id(0), 16)
    end = b.index("add", first, b.load_index(b.buffers[0], b.index("add", entry, 1)))

    def copy(token, carried):  # type: ignore[no-untyped-def]
        b.store(b.load(b.buffers[1], token, column, (1, 16)), b.buffers[2], token, column)
        return carried

    b.loop(first, end, 1, [], copy)
    x = values_of(generator("tiles"), (6, 32), "f32")
    yield Case(b.finish(), [tiles.reshape(-1), x, blank(6, 32)], 6, tiles=3)


PANEL_TABLE: Table = {
    "store_panel": store_cases,
    "store_panel_rows": store_many_cases,
    **{
        f"dot panels {left} {right}": lambda left=left, right=right: (  # type: ignore[misc]
            case for along in ("n", "k") for case in dot_cases(left, right, along)
        )
        for left, right in (("f32", "f32"), ("bf16", "bf16"), ("i8", "u8"), ("u8", "i8"))
    },
    "row of panels": row_cases,
    "dot panels carried": carried_cases,
    "grid of tiles": tile_cases,
}
