"""Runs pytest, with the arguments given, where Triton can be imported.

Triton lies in a folder of its own inside the environment, so whatever else runs there proves that it needs none. Where
the package index has no Triton for this platform or this Python, that is said in one line and nothing is run; any other
reason for not having it is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
NAME = "triton"
SUPPORTED = ("manylinux_2_28_x86_64", "3.12")
"""A platform and a Python that Triton is known to be built for."""
NOT_THERE = f"No matching distribution found for {NAME}"


class TritonNotInstalled(Exception):
    """Triton should be there and could not be had; the message says why and what to do."""


def install(folder: Path, supported: tuple[str, str]) -> bool:
    """Whether Triton, as `constraints.txt` pins it, is in `folder` now. False: the index has one for the
    platform and the Python `supported`, and none for this machine.

    Raises `TritonNotInstalled` if pip fails for any other reason.
    """
    wanted = pinned()
    stamp = folder / ".installed"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    found = _pip(["--target", str(folder), wanted])
    if found is None:
        stamp.write_text(wanted, encoding="utf-8")
        return True
    if NOT_THERE in found:
        # pip says the same when no index answers, so one question more tells the two apart.
        platform, python = supported
        elsewhere = ["--platform", platform, "--python-version", python, "--only-binary", ":all:"]
        found = _pip(["--dry-run", "--no-deps", "--target", str(folder), *elsewhere, wanted])
        if found is None:
            return False
    raise TritonNotInstalled(
        f"'{wanted}' could not be installed ({_last_error(found)}). Connect to a Python package index that has it, and "
        "try again."
    )


def pinned() -> str:
    """The requirement with the version that the tests are run with."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#") and canonicalize_name(Requirement(line).name) == NAME:
            return line.strip()
    raise TritonNotInstalled(f"constraints.txt pins no version of {NAME}. Add one that lies in pyproject.toml's range.")


def _pip(arguments: Sequence[str]) -> str | None:
    """What pip says if it fails."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stderr if result.returncode else None


def _last_error(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("ERROR")]
    return lines[-1] if lines else said.strip() or "pip said nothing"


def main() -> int:
    folder = Path(sys.prefix) / NAME
    try:
        if not install(folder, SUPPORTED):
            print(f"The package index has no {pinned()} for this platform and this Python: its tests are passed over.")
            return 0
    except TritonNotInstalled as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
