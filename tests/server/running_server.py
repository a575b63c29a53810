"""A real server in a process of its own, around a toy model, and what tests do to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai

HERE = Path(__file__).resolve().parent


class RunningServer:
    """A started server, its clients, and what can be done to its processes."""

    def __init__(self, *arguments: object, environment: dict[str, str] | None = None) -> None:
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "run_toy.py"), *map(str, arguments), "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            env={**clean_environment(), **(environment or {})},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"no ready line; it said:\n{self.errors()}"
        self.ready: dict[str, Any] = json.loads(line)
        self.url: str = self.ready["url"]
        self.port = int(self.url.rpartition(":")[2])
        self.http = httpx2.Client(base_url=self.url, timeout=30)

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    def post(self, path: str, **body: Any) -> httpx2.Response:
        return self.http.post(path, json=body)

    def complete(self, **body: Any) -> dict[str, Any]:
        """A text completion that must succeed."""
        response = self.post("/v1/completions", **{"prompt": [5, 6, 7], "max_tokens": 8, **body})
        assert response.status_code == 200, response.text
        return dict(response.json())

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of this name that have these labels."""
        total = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            head, _, value = line.rpartition(" ")
            if head.partition("{")[0] == name and all(f'{key}="{each}"' in head for key, each in labels.items()):
                total += float(value)
        return total

    def engines(self) -> list[int]:
        return [pid for pid in children(self.process.pid) if b"toy_engine" in command_line(pid)]

    def processor_seconds(self) -> float:
        """What all its processes have computed so far, the ended ones included: waiting for others does not count."""
        pids = [self.process.pid]
        for pid in pids:
            pids += children(pid)
        return sum(map(processor_seconds, pids))

    def readiness(self) -> int:
        return self.http.get("/health/ready").status_code

    def errors(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read()

    def events(self) -> list[dict[str, Any]]:
        """The log so far."""
        return [json.loads(line) for line in self.errors().splitlines() if line.startswith("{")]

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20) -> int:
        """Asks it to end and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.stderr.close()


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TESSERA_")}


def children(pid: int) -> list[int]:
    """Processes that this one has started and that have not been reaped."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def processor_seconds(pid: int) -> float:
    """Of a process and the children that it has reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Waits until the condition holds and returns its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
    return value


Start = Callable[..., RunningServer]
