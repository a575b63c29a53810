"""Scripts with an application in them, run as users run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx2
import openai

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

WITH_TOY = """
import functools, runpy, sys
sys.path[:0] = {paths!r}
from tessera_runtime.server import launch
vars(launch)["launch"] = functools.partial(launch.launch, module="toy_engine")
sys.argv = [{script!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


class RunningApplication:
    """A script that has said `ready`. Its folder holds the package as `model.tspkg`."""

    def __init__(self, script: Path, folder: Path, package: Path, *, toy: bool = False) -> None:
        (folder / "model.tspkg").mkdir()
        for path in sorted(package.rglob("*")):
            target = folder / "model.tspkg" / path.relative_to(package)
            if path.is_dir():
                target.mkdir()
            else:
                os.link(path, target)
        paths = [str(HERE.parent / "server"), str(HERE.parent / "text"), str(ROOT)]
        start = ["-c", WITH_TOY.format(paths=paths, script=str(script))] if toy else [str(script)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TESSERA_")}
        environment |= {"PYTHONPATH": str(ROOT), "TESSERA_PORT": "0"}
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, *start], cwd=folder, stdout=subprocess.PIPE, stderr=self.stderr, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        assert self.ready.startswith("ready: http://"), self.errors()
        self.url = self.ready.split()[1]
        self.http = httpx2.Client(base_url=self.url, timeout=30)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30)

    def errors(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read()

    def stop(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.stderr.close()
