"""Runs a driver beside a process that keeps the first core busy: `python -m benchmarks.cpu.neighbour COMMAND...`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

_LOOP = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True:\n    pass"


def beside(command: Sequence[str]) -> int:
    """Starts the loop, runs the command, ends the loop; returns the command's exit code."""
    loop = subprocess.Popen([sys.executable, "-c", _LOOP])
    try:
        time.sleep(0.3)
        return subprocess.run(command, check=False).returncode
    finally:
        loop.kill()
        loop.wait()


if __name__ == "__main__":
    sys.exit(beside(sys.argv[1:]))
