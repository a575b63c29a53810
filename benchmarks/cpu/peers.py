"""The environment of the other engines: made once, kept, and made again when a pinned version changes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
SHOWN = ("llama-cpp-python", "openvino", "openvino-genai", "optimum-intel", "nncf")


class PeersMissing(Exception):
    """The other engines could not be installed."""


def environment(folder: Path) -> Path:
    """The Python of an environment that holds them, installed into `folder` unless that is there already.

    llama.cpp is compiled on this machine for its processor, which takes minutes and is llama.cpp's fastest form.
    """
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    python, stamp = folder / "bin" / "python", folder / "requirements.sha256"
    if python.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    command = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-r", str(REQUIREMENTS)]
    if subprocess.run(command, check=False).returncode:
        raise PeersMissing(
            f"The engines of {REQUIREMENTS} could not be installed; what pip said stands above.\n"
            "They need a Python package index, a C++ compiler, CMake's wheel and up to 7 GB of disk."
        )
    # It comes along, is not needed, and breaks transformers where torch was built for the CPU only and it was not.
    remove = [str(python), "-m", "pip", "uninstall", "-qq", "--yes", "--disable-pip-version-check", "torchvision"]
    subprocess.run(remove, check=True)
    stamp.write_text(wanted)
    return python


def versions(python: Path) -> dict[str, str]:
    """Of the engines, as installed."""
    command = [str(python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = {entry["name"].lower().replace("_", "-"): entry["version"] for entry in listed}
    return {name: found[name] for name in SHOWN if name in found}
