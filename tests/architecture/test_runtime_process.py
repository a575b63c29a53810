"""What a process that uses the runtime really loads: every module of it, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

from source import ROOT, module_name, source_files

# markupsafe belongs to jinja2, _yaml to yaml, typing_extensions to msgspec. The hub client that tokenizers installs is
# never imported. Anything else is a decision to be made in docs/dependencies.md.
MAY_LOAD = {"numpy", "tokenizers", "jinja2", "markupsafe", "msgspec", "yaml", "_yaml", "typing_extensions"}

# What only the gateway process loads, and no engine and no `generate` ever does; click, anyio and sniffio belong to
# uvicorn and starlette.
GATEWAY_MAY_LOAD = {
    "anyio",
    "click",
    "httptools",
    "prometheus_client",
    "sniffio",
    "starlette",
    "uvicorn",
    "uvloop",
    "h11",
}
GATEWAY = ("tessera_runtime.server", "tessera_runtime.observe")

NEVER = {"torch", "transformers", "triton", "xdsl", "llvmlite", "jax", "jaxlib", "tessera_compiler", "tessera_pack"}

IMPORT_ALL = """
import importlib, json, sys
before = set(sys.modules)
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
tops = {}
for name in set(sys.modules) - before:
    module = sys.modules[name]
    top = name.partition(".")[0]
    if top not in sys.stdlib_module_names:
        tops[top] = getattr(sys.modules.get(top), "__file__", None)
print(json.dumps(tops))
"""


def loaded_with(names: list[str]) -> frozenset[str]:
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, json.dumps(names)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
    return frozenset(json.loads(result.stdout))


@cache
def loaded(package: str, without: tuple[str, ...] = ()) -> frozenset[str]:
    names = [module_name(path) for path in source_files() if module_name(path).partition(".")[0] == package]
    return loaded_with([name for name in names if not name.endswith("__main__") and not name.startswith(without)])


def test_the_runtime_loads_listed_modules_only() -> None:
    found = loaded("tessera_runtime", GATEWAY) - MAY_LOAD - {"tessera_runtime", "__mp_main__"}
    extra = {name for name in found if not _is_ours(name)}
    assert not extra, f"tessera_runtime loads {sorted(extra)}"


def test_the_gateway_loads_listed_modules_only() -> None:
    found = loaded("tessera_runtime") - MAY_LOAD - GATEWAY_MAY_LOAD - {"tessera_runtime", "__mp_main__"}
    extra = {name for name in found if not _is_ours(name)}
    assert not extra, f"the gateway loads {sorted(extra)}"
    assert "starlette" in loaded("tessera_runtime")


def test_the_runtime_loads_no_compiler() -> None:
    assert not loaded("tessera_runtime") & NEVER
    assert {"numpy", "tokenizers", "tessera_runtime"} <= loaded("tessera_runtime")


def test_the_compiler_does_not_load_the_runtime() -> None:
    names = [name for name in loaded("tessera_compiler") if name.startswith("tessera")]
    assert names == ["tessera_compiler"]


def test_the_command_starts_with_click_alone() -> None:
    assert loaded_with(["tessera.cli.main"]) - {"tessera", "tessera_runtime"} == {"click"}


def test_no_module_of_the_command_loads_a_compiler_at_its_top() -> None:
    assert not loaded("tessera") & NEVER


def _is_ours(name: str) -> bool:
    # Extension modules written in Cython register helpers under names of their own.
    return name.startswith(("_cython", "cython_runtime"))
