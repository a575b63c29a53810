"""What the parts of the engine may know: the scheduler no device and no transport, the books of the cache nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

RUNTIME = Path(__file__).resolve().parent.parent.parent / "tessera_runtime"
MAY_IMPORT = {
    "kvcache": {"tessera_runtime.errors"},
    "scheduler": {"tessera_runtime.kvcache", "tessera_runtime.errors"},
    "sampling": {"tessera_runtime.errors", "numpy", "msgspec"},
}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_what_they_may(room: str) -> None:
    found = set()
    for path in (RUNTIME / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                found.add(str(node.module))
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
    own = f"tessera_runtime.{room}"
    ours = {name for name in found if name.startswith(("tessera_runtime", "numpy", "msgspec")) and own not in name}
    assert ours, "nothing was looked at"
    assert all(any(name.startswith(allowed) for allowed in MAY_IMPORT[room]) for name in ours), ours
