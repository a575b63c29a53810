"""What needs Triton is collected where `tessera[triton]` is installed; elsewhere the report says that it was not."""

from __future__ import annotations

from tessera_compiler.targets.triton.toolchain import triton_is_installed

NEED_TRITON = [
    *("test_interpreted.py", "test_compiled.py", "test_drawing.py", "test_drawing_engine.py", "test_packed.py"),
    *("test_boxes.py", "test_device_rows.py", "test_turned_products.py"),
    "test_stacked_products.py",
]
collect_ignore = [] if triton_is_installed() else NEED_TRITON


def pytest_report_header() -> str:
    if not collect_ignore:
        return "triton: installed"
    return f"triton: not installed, so without {', '.join(collect_ignore)}; `make test-triton` installs and runs them"
