"""The front door: the `tessera` command, `tessera.LLM`, and the modules `server`, `runtime`, `graph`, `op`, `dist`."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Loads a part of the API when it is first asked for: `import tessera` itself costs nothing."""
    import importlib

    if name in ("LLM", "Parameters", "Result"):
        return getattr(importlib.import_module("tessera.llm"), name)
    if name in ("server", "runtime", "graph", "op", "dist", "llm", "errors"):
        return importlib.import_module(f"tessera.{name}")
    raise AttributeError(f"module 'tessera' has no attribute {name!r}")
