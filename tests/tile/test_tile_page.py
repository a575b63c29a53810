"""The specification's table of functions says what the functions say."""

from __future__ import annotations

import re
from pathlib import Path

from tessera_compiler.tile import functions
from tessera_compiler.tile.arithmetic import CASTS

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "spec" / "tile-ir.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (`[a-z0-9_`, ]+`)(?: \(of `tile.reduce`\))? \| ([a-z0-9`, ]+) \| (\d+) \|", re.MULTILINE)


def table() -> dict[str, tuple[tuple[str, ...], float]]:
    """Elements and budget of each function on the page."""
    rows = {}
    for names, elements, budget in ROW.findall(PAGE):
        for name in re.findall(r"\w+", names):
            rows[name] = (tuple(re.findall(r"\w+", elements)), float(budget))
    return rows


def test_every_function_is_on_the_page_with_its_budget() -> None:
    expected: dict[str, tuple[tuple[str, ...], float]] = {
        name: (functions.UNARY_ELEMENTS[name], function.budget) for name, function in functions.UNARY.items()
    }
    for name in functions.BINARY:
        expected[name] = (functions.BINARY_ELEMENTS[name], 16.0 if name == "pow" else 0.0)
    for name in functions.REDUCE:
        expected[name] = (functions.REDUCE_ELEMENTS[name], 0.0)
    for name in functions.COMPARE:
        expected[name] = (functions.NUMBERS, 0.0)
    assert table() == expected


def test_every_cast_is_on_the_page() -> None:
    sentence = next(line for line in PAGE.splitlines() if line.startswith("Casts:"))
    for source, target in CASTS:
        for element in (source, target):
            assert f"`{'ui8' if element == 'u8' else element}`" in sentence
