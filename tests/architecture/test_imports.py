"""The arrows between the packages, and what each may ask for from outside.

tessera -> all, lazily
tessera_pack -> tessera_compiler, tessera_runtime.package, tessera_runtime.errors
tessera_compiler, tessera_runtime -> nobody
"""

from __future__ import annotations

import sys
from pathlib import Path

from source import PACKAGES, ROOT, Import, imports, module_name, place, source_files

MAY_IMPORT = {
    "tessera": set(PACKAGES),
    "tessera_compiler": {"tessera_compiler"},
    "tessera_pack": {"tessera_pack", "tessera_compiler", "tessera_runtime"},
    "tessera_runtime": {"tessera_runtime"},
}

OF_THE_RUNTIME_FOR_PACK = ("tessera_runtime.package", "tessera_runtime.errors")

# Evidence is gathered by running the package, so these may reach the executors, from inside functions.
PACK_RUNS_PACKAGES_IN = {"tessera_pack.evidence", "tessera_pack.verification", "tessera_pack.packing"}

THIRD_PARTY = {
    "tessera": {"click", "msgspec", "numpy", "rich"},
    "tessera_compiler": {"llvmlite", "numpy", "torch", "transformers", "triton", "xdsl"},
    "tessera_pack": {"gguf", "huggingface_hub", "msgspec", "numpy", "tokenizers", "torch", "transformers"},
    "tessera_runtime": {
        *("jinja2", "msgspec", "numpy", "tokenizers", "yaml"),
        *("httptools", "prometheus_client", "starlette", "uvicorn"),
        *("cuda", "hip"),
    },
}


def modules_of(path: Path) -> tuple[Import, ...]:
    return tuple(found for found in imports(path) if found.top not in sys.stdlib_module_names)


def test_the_packages_are_where_these_tests_look() -> None:
    assert {module_name(path).partition(".")[0] for path in source_files()} == set(PACKAGES)
    assert sum(len(imports(path)) for path in source_files()) > 50


def test_packages_import_along_the_arrows_only() -> None:
    wrong = [
        f"{place(path, found.line)} imports {found.module}"
        for path in source_files()
        for found in modules_of(path)
        if found.top in PACKAGES and found.top not in MAY_IMPORT[module_name(path).partition(".")[0]]
    ]
    assert not wrong, "\n".join(wrong)


def test_pack_sees_the_package_format_and_nothing_else_of_the_runtime() -> None:
    wrong = [
        f"{place(path, found.line)} imports {found.module}"
        for path in source_files()
        for found in modules_of(path)
        if module_name(path).startswith("tessera_pack")
        and found.top == "tessera_runtime"
        and not found.module.startswith(OF_THE_RUNTIME_FOR_PACK)
        and not ((found.lazy or found.typing) and module_name(path) in PACK_RUNS_PACKAGES_IN)
    ]
    assert not wrong, "\n".join(wrong)


def test_third_party_modules_come_from_a_list() -> None:
    wrong = [
        f"{place(path, found.line)} imports {found.module}; if it is wanted, it goes into docs/dependencies.md too"
        for path in source_files()
        for found in modules_of(path)
        if found.top not in PACKAGES and found.top not in THIRD_PARTY[module_name(path).partition(".")[0]]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_third_party_module_of_the_lists_is_used() -> None:
    for package, allowed in THIRD_PARTY.items():
        used = {
            found.top
            for path in source_files()
            if module_name(path).partition(".")[0] == package
            for found in modules_of(path)
        }
        assert allowed <= used, f"{package} no longer imports {sorted(allowed - used)}"


def test_no_module_imports_itself_in_a_circle() -> None:
    names = {module_name(path): path for path in source_files()}
    graph: dict[str, list[str]] = {}
    for name, path in names.items():
        graph[name] = []
        for found in modules_of(path):
            if found.lazy or found.typing or found.top not in PACKAGES:
                continue
            target = found.module if found.module in names else found.module.rpartition(".")[0]
            if target in names and target != name:
                graph[name].append(target)
    assert sum(map(len, graph.values())) > 20
    circle = _circle(graph)
    assert circle is None, " -> ".join(circle or [])


def _circle(graph: dict[str, list[str]]) -> list[str] | None:
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for target in graph[name]:
            if found := visit(target, [*path, name]):
                return found
        done.add(name)
        return None

    for name in graph:
        if found := visit(name, []):
            return found
    return None


def test_the_circle_finder_finds_circles() -> None:
    assert _circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
    assert _circle({"a": ["b", "c"], "b": ["c"], "c": []}) is None


def test_nothing_imports_relatively_out_of_its_package() -> None:
    assert ROOT.joinpath("pyproject.toml").is_file()
    for path in source_files():
        for found in imports(path):
            assert found.top, f"{place(path, found.line)} leaves its package"
