"""Installs the runtime, with its server, into a fresh environment, says what it weighs, and runs the command there.

So the promise that a server needs no compiler is tried on a machine that has none: no torch, no LLVM, no transformers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = ("torch", "transformers", "xdsl", "llvmlite", "triton", "gguf", "jaxlib")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=200, metavar="MB", help="fail above this (default: %(default)s)")
    limit = parser.parse_args().limit
    with tempfile.TemporaryDirectory(prefix="tessera-runtime-") as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run(
            [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq", "--disable-pip-version-check"]
            + ["--no-compile", "--constraint", str(ROOT / "constraints.txt"), f"{ROOT}[serve]"],
            check=True,
        )
        site = next(Path(folder).glob("lib/python*/site-packages"))
        sizes = {entry.name: size(entry) for entry in site.iterdir()}
        total = sum(sizes.values())
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
        told = ", ".join(f"{name} {amount / 1e6:.0f}" for name, amount in largest)
        print(f"The runtime and its server install {total / 1e6:.0f} MB (largest: {told}).")
        present = [name for name in FORBIDDEN if (site / name).exists()]
        if present:
            print(f"error: the runtime pulls in {', '.join(present)}.", file=sys.stderr)
            return 1
        if total > limit * 1e6:
            print(f"error: that is more than {limit} MB.", file=sys.stderr)
            return 1
        # In another folder, so that the source is not found in place of what was installed.
        subprocess.run([str(python.parent / "tessera"), "--help"], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        subprocess.run(
            [str(python), "-c", "import tessera_runtime.server.gateway, tessera_runtime.engine.process"],
            check=True,
            cwd=folder,
        )
    return 0


def size(path: Path) -> int:
    if path.is_symlink() or path.is_file():
        return path.lstat().st_size
    return sum(each.lstat().st_size for each in path.rglob("*") if each.is_file() and each.suffix != ".pyc")


if __name__ == "__main__":
    sys.exit(main())
