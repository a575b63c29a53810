"""Writes the op tables of the IR specifications from the ops; with `--check`, only says if they are up to date."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdsl.irdl import IRDLOperation, OptAttributeDef, OptOperandDef, VarOperandDef, VarResultDef

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- begin: op table, made by tools/generate_op_tables.py -->", "<!-- end: op table -->"


@dataclass(frozen=True)
class Page:
    """A page of docs/spec and the ops that its table lists: the tuple `name` of a module."""

    path: str
    module: str
    name: str = "OPERATIONS"


PAGES = [
    Page("docs/spec/graph-ir.md", "tessera_compiler.graph.dialect"),
    Page("docs/spec/schedule-ir.md", "tessera_compiler.schedule.dialect", "SCHEDULE_OPERATIONS"),
    Page("docs/spec/tile-ir.md", "tessera_compiler.tile.dialect", "ALL_OPERATIONS"),
]


def table(operations: Sequence[type[IRDLOperation]]) -> str:
    """The table of ops, as Markdown."""
    rows = ["| op | operands | attributes | results | meaning |", "|---|---|---|---|---|"]
    for operation in operations:
        definition = operation.get_irdl_definition()
        operands = ", ".join(f"`{name}`{_mark(each)}" for name, each in definition.operands)
        results = ", ".join(f"`{name}`{_mark(each)}" for name, each in definition.results)
        attributes = ", ".join(
            f"`{name}`{_mark(each)}" for name, each in definition.attributes.items() if name != "module"
        )
        cells = (f"`{operation.name}`", operands, attributes, results, _meaning(operation))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _mark(definition: Any) -> str:
    """`?` for what may be absent, `…` for any number."""
    if isinstance(definition, (OptOperandDef, OptAttributeDef)):
        return "?"
    if isinstance(definition, (VarOperandDef, VarResultDef)):
        return "…"
    return ""


def _meaning(operation: type[IRDLOperation]) -> str:
    """The docstring, on one line."""
    return " ".join((operation.__doc__ or "").split())


def page_text(page: Page, text: str) -> str:
    """The page with its table made anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page.path} must have the lines {BEGIN!r} and {END!r}.")
    operations = getattr(importlib.import_module(page.module), page.name)
    return f"{before}{BEGIN}\n{table(operations)}\n{END}{after}"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is out of date")
    check = parser.parse_args(arguments).check
    sys.path.insert(0, str(ROOT))
    stale = []
    for page in PAGES:
        path = root / page.path
        text = path.read_text(encoding="utf-8")
        made = page_text(page, text)
        if made != text and check:
            stale.append(page.path)
        elif made != text:
            path.write_text(made, encoding="utf-8")
    if stale:
        print(f"{', '.join(stale)}: out of date; run python tools/generate_op_tables.py.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
