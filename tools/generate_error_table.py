"""Writes docs/spec/errors.md from the error classes; with `--check`, only says whether it is up to date."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "spec" / "errors.md"
SECTIONS = [
    (
        "tessera_runtime.errors",
        "The runtime",
        "`tessera inspect`, `verify`, `plan`, `generate`, `eval`",
    ),
    ("tessera_pack.errors", "Packing", "`tessera pack`"),
    ("tessera_compiler.errors", "Compiling", "`tessera pack`, while the model is compiled"),
]
INTRODUCTION = """# Errors

<!-- Made by tools/generate_error_table.py from the classes; do not edit. -->

Each mistake has a class and a code. The message says what was expected and what was found; the hint, what to do next.
The code is for programs and does not change once it is released; with `--json` the command prints
`{"error": {"code": …, "message": …}}`. A code stands indented under the one whose class it belongs to: who handles that
class handles all below it.
"""


def classes(kind: Any, depth: int = 0) -> Iterator[tuple[Any, int]]:
    """`kind` and the classes below it, each with its depth; those that stand elsewhere in the package come last."""
    yield kind, depth
    for child in sorted(kind.__subclasses__(), key=lambda each: (each.__module__ != kind.__module__, each.__module__)):
        yield from classes(child, depth + 1)


def import_all(package: str) -> None:
    """Imports every module of a package, so that all its error classes exist."""
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)


def page() -> str:
    """The text of docs/spec/errors.md."""
    parts = [INTRODUCTION]
    for module, title, where in SECTIONS:
        import_all(module.partition(".")[0])
        rows = [
            f"| {'&emsp;' * depth}`{code(kind)}` | `{kind.__name__}` | {first_paragraph(kind)} |"
            for kind, depth in classes(base_class(module))
        ]
        parts.append(f"## {title}\n\n`{module}`, raised by {where}.\n\n| code | class | when |\n|---|---|---|\n")
        parts[-1] += "\n".join(rows) + "\n"
    return "\n".join(parts)


def base_class(module: str) -> Any:
    """The class of the module from which its others derive."""
    found = [value for value in vars(importlib.import_module(module)).values() if isinstance(value, type)]
    return next(kind for kind in found if kind.__module__ == module and Exception in kind.__bases__)


def code(kind: Any) -> str:
    """The class's code: its own, or its name in kebab-case, which is the rule for all of them."""
    return str(vars(kind).get("code") or re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower())


def first_paragraph(kind: Any) -> str:
    """What the class's docstring says first, on one line."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split()).replace("|", "\\|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is out of date")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    text = page()
    if not arguments.check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE.relative_to(ROOT)} is out of date; run python tools/generate_error_table.py.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
