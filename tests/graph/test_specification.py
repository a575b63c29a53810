"""The specification's op table is the one that the definitions give, and the tool notices when it is not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tessera_compiler.graph.dialect import OPERATIONS

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_op_tables", ROOT / "tools" / "generate_op_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_pages_are_up_to_date(tool: ModuleType) -> None:
    assert tool.main(["--check"]) == 0


def test_the_tool_notices_and_mends_a_stale_page(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for page in tool.PAGES:
        text = (ROOT / page.path).read_text(encoding="utf-8")
        (tmp_path / page.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page.path).write_text(text.replace("| `graph.linear`", "| `graph.matmul`"), encoding="utf-8")
    assert tool.main(["--check"], tmp_path) == 1
    assert "docs/spec/graph-ir.md: out of date" in capsys.readouterr().err
    assert tool.main([], tmp_path) == 0
    assert tool.main(["--check"], tmp_path) == 0


def test_every_op_says_what_it_means(tool: ModuleType) -> None:
    text = (ROOT / "docs" / "spec" / "graph-ir.md").read_text(encoding="utf-8")
    for operation in OPERATIONS:
        assert (operation.__doc__ or "").strip().endswith("."), operation.name
        assert f"| `{operation.name}` |" in text
