"""A gateway small enough to see through: starts an engine process, speaks frames with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from driving import Answer

from tessera_runtime.engine.protocol import (
    LENGTH,
    FromEngine,
    Outputs,
    Ping,
    Pong,
    Ready,
    Submit,
    ToEngine,
    decode_from_engine,
    encode,
)

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_SECONDS = 60.0


class EngineClient:
    """One engine process and this side of its socket."""

    def __init__(self, package: Path | str, **settings: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="tsr-") as folder:
            path = os.path.join(folder, "s")
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen(1)
                listener.settimeout(PATIENCE_SECONDS)
                chosen = {"package": str(package), "threads": 1, "kv_memory": 1 << 20, **settings}
                text = msgspec.json.encode(chosen).decode()
                command = [sys.executable, "-m", "tessera_runtime.engine.process", "--socket", path, "--settings", text]
                self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
                self.socket, _ = listener.accept()
        self.socket.settimeout(PATIENCE_SECONDS)
        self.answers: dict[str, Answer] = {}
        self.others: list[FromEngine] = []

    def send(self, *messages: ToEngine) -> None:
        for message in messages:
            if isinstance(message, Submit):
                self.answers[message.request_id] = Answer()
        self.socket.sendall(b"".join(map(encode, messages)))

    def receive(self) -> FromEngine:
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        message = decode_from_engine(self._exactly(length))
        if isinstance(message, Outputs):
            for output in message.outputs:
                self.answers.setdefault(output.request_id, Answer()).hear(output)
        return message

    def ready(self) -> Ready:
        message = self.receive()
        assert isinstance(message, Ready), message
        return message

    def receive_until(self, done: Callable[[], bool]) -> None:
        while not done():
            message = self.receive()
            if not isinstance(message, Outputs):
                self.others.append(message)

    def finish(self) -> dict[str, Answer]:
        """Listens until everybody was answered."""
        self.receive_until(lambda: all(answer.over for answer in self.answers.values()))
        return self.answers

    def ping(self) -> Pong:
        self.send(Ping(7))
        self.receive_until(lambda: bool(self.others))
        pong = self.others.pop()
        assert isinstance(pong, Pong) and pong.number == 7
        return pong

    def exit_code(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError("the engine is gone")
            data += part
        return data

    def __enter__(self) -> EngineClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
