"""What commands print: one JSON object, or tables for people. rich is imported only when a table is drawn."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """The one object on stdout. Numbers JSON does not have (infinity, NaN) become null."""
    print(json.dumps(_finite(value), allow_nan=False))


def notice(sentence: str) -> None:
    """Something worth knowing that is no error, on stderr."""
    print(f"note: {sentence}", file=sys.stderr)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table whose number-like columns are set right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    texts = [[str(cell) for cell in row] for row in rows]
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(texts) and all(row[index][:1].isdigit() for row in texts)
        table.add_column(column, justify="right" if numeric and index else "left", overflow="fold")
    for row in texts:
        # Text, not markup: names come from packages, and a name must not style the terminal.
        table.add_row(*[Text(printable(cell)) for cell in row])

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit at once

    console = PlainConsole(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)


def print_facts(title: str, facts: Iterable[tuple[str, Any]]) -> None:
    """Names and values under a title."""
    rows = [(name, printable(str(value))) for name, value in facts if value is not None]
    width = max((len(name) for name, _ in rows), default=0)
    print(title)
    for name, value in rows:
        print(f"  {name.ljust(width)}  {value}")


def printable(text: str) -> str:
    """The text without control characters: a package must not be able to steer a terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def readable_count(value: float) -> str:
    """`1,234` or `135 M`."""
    for unit, size in (("G", 10**9), ("M", 10**6)):
        if value >= 10 * size:
            return f"{value / size:,.0f} {unit}"
    return f"{value:,.0f}"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
