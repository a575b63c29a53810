"""The source of the project as these tests see it: files, modules, imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("tessera", "tessera_compiler", "tessera_pack", "tessera_runtime")


@dataclass(frozen=True)
class Import:
    """One imported module; `lazy` inside a function, `typing` where only a type checker comes by."""

    module: str
    line: int
    lazy: bool
    typing: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


@cache
def source_files() -> tuple[Path, ...]:
    """All Python files of the four packages."""
    return tuple(sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")))


@cache
def all_python_files() -> tuple[Path, ...]:
    """All Python files of the project, those of tests, tools, benchmarks and examples included."""
    rooms = (*PACKAGES, "tests", "tools", "benchmarks", "examples")
    return tuple(sorted(path for room in rooms for path in (ROOT / room).rglob("*.py")))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    return tuple(_walk(tree(path), path, lazy=False, typing=False))


def _walk(node: ast.AST, path: Path, *, lazy: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, lazy, typing)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, path)
            for alias in child.names:
                yield Import(f"{base}.{alias.name}", child.lineno, lazy, typing)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _walk(child, path, lazy=True, typing=typing)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _walk(child, path, lazy=lazy, typing=True)
        else:
            yield from _walk(child, path, lazy=lazy, typing=typing)


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, node.module] if node.module else package)


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"
