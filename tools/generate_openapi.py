"""Writes docs/openapi.json from the types of the server; `--check` only says whether it is up to date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tessera_runtime.server.openapi import document_bytes  # noqa: E402

PAGE = ROOT / "docs" / "openapi.json"
API_VERSION = "v1"
"""The page describes the API; a running server says its own version in /openapi.json."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the page is out of date")
    arguments = parser.parse_args()
    page = document_bytes(API_VERSION)
    if arguments.check:
        if not PAGE.is_file() or PAGE.read_bytes() != page:
            print(f"{PAGE.relative_to(ROOT)} is out of date; run tools/generate_openapi.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_bytes(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
