"""`tessera run` with the toy engine in place of the real one; takes the same arguments."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "text"), str(HERE.parent.parent)]

from tessera.cli.main import main  # noqa: E402
from tessera_runtime.server import launch  # noqa: E402

vars(launch)["launch"] = functools.partial(launch.launch, module="toy_engine")

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
