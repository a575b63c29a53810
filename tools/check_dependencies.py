"""Checks that pyproject.toml, constraints.txt and docs/dependencies.md agree about every dependency.

Each direct dependency must have a row in the document that states the same range, and a pinned version in the
constraints that lies inside the range. A row about something that is no dependency any more is an error too.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(r"^\| `(?P<name>[A-Za-z0-9_.-]+)` \| `(?P<range>[^`]*)` \|")


def problems() -> list[str]:
    declared = {canonicalize_name(each.name): each for each in map(Requirement, requires("tessera") or [])}
    rows = {
        canonicalize_name(found["name"]): found["range"]
        for line in (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").splitlines()
        if (found := ROW.match(line))
    }
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier).removeprefix("=="))
    found = [
        f"'{name}' is in docs/dependencies.md and is no dependency." for name in sorted(rows.keys() - declared.keys())
    ]
    for name, requirement in sorted(declared.items()):
        if name not in rows:
            found.append(f"'{name}' has no row in docs/dependencies.md.")
        elif Requirement(name + rows[name].replace("any", "")).specifier != requirement.specifier:
            found.append(f"docs/dependencies.md says '{name} {rows[name]}', pyproject.toml '{requirement.specifier}'.")
        if name not in pins:
            found.append(f"'{name}' is not pinned in constraints.txt.")
        found += [
            f"constraints.txt pins {name} {version}, outside of '{requirement.specifier}'."
            for version in pins.get(name, [])
            if version not in requirement.specifier
        ]
    return found


def main() -> int:
    try:
        found = problems()
    except PackageNotFoundError:
        found = ["'tessera' is not installed in this environment; run: make install"]
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
