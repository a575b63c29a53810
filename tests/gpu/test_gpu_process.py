"""The engine's process on a device: what it says, and how it ends, when the device cannot be used or is lost."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_driver import FakeDriver
from toy_program import toy_executor

from tessera_runtime.engine import process
from tessera_runtime.engine.connection import Connection
from tessera_runtime.engine.process import EXIT_DEVICE_LOST, EXIT_REFUSED
from tessera_runtime.engine.protocol import (
    LENGTH,
    FromEngine,
    Outputs,
    Ready,
    Refused,
    Shutdown,
    Submit,
    ToEngine,
    decode_from_engine,
    encode,
)
from tessera_runtime.engine.settings import EngineSettings
from tessera_runtime.errors import DeviceLost
from tessera_runtime.sampling.parameters import SamplingParameters

Served = tuple[int, list[FromEngine], FakeDriver]
PROMPT = Submit(request_id="a", prompt_ids=[1, 2, 3], max_tokens=6, sampling=SamplingParameters(temperature=0))


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Served]:
    """Runs the process's own loop here, over a package that is the toy, until it ends."""

    def run(*messages: ToEngine, steps: int = 1000) -> Served:
        """The device is lost after so many steps."""
        executor, driver = toy_executor(tmp_path)
        submit = executor.submit

        def counted(*rest: Any) -> int:
            nonlocal steps
            steps -= 1
            driver.lose_after = -1 if steps < 0 else None
            return submit(*rest)

        monkeypatch.setattr(executor, "submit", counted)
        driver.lose_after = -1 if steps < 0 else None

        def load(package: Any, *, notice: Callable[[str], None], **_: Any) -> Any:
            notice("Running on the CPU: the device is somebody else's.")
            return executor

        package = SimpleNamespace(manifest=SimpleNamespace(memory=SimpleNamespace(weights_bytes=0)))
        monkeypatch.setattr(process, "open_package", lambda path: package)
        monkeypatch.setattr(process, "load_executor", load)
        here, there = socket.socketpair()
        connection = Connection(there)
        here.sendall(b"".join(map(encode, (*messages, Shutdown()))))
        code = process.serve(connection, EngineSettings(pages=20, max_sequences=4))
        connection.close()
        received = bytearray()
        with contextlib.suppress(ConnectionResetError):  # it may leave what it was sent unread
            while data := here.recv(1 << 16):
                received += data
        here.close()
        said = []
        while received:
            (length,) = LENGTH.unpack_from(received)
            said.append(decode_from_engine(bytes(received[LENGTH.size : LENGTH.size + length])))
            del received[: LENGTH.size + length]
        return code, said, driver

    return run


def test_it_says_why_the_device_is_not_used(serve: Callable[..., Served], capfd: pytest.CaptureFixture[str]) -> None:
    code, said, _ = serve(PROMPT)
    assert code == 0 and isinstance(said[0], Ready)
    assert capfd.readouterr().err == "engine: Running on the CPU: the device is somebody else's.\n"


def test_a_device_that_is_lost_ends_it_with_a_code_of_its_own(
    serve: Callable[..., Served], capfd: pytest.CaptureFixture[str]
) -> None:
    code, said, driver = serve(PROMPT, steps=3)
    assert code == EXIT_DEVICE_LOST and isinstance(said[0], Ready)
    # Nobody is told that the request failed: whoever started this engine gives it to the next.
    outputs = [output for message in said[1:] if isinstance(message, Outputs) for output in message.outputs]
    assert outputs and all(output.error is None and output.finish_reason is None for output in outputs)
    assert "fell off the bus" in capfd.readouterr().err
    assert driver.closed


def test_a_device_that_is_lost_before_it_is_ready_is_a_refusal(serve: Callable[..., Served]) -> None:
    code, said, _ = serve(steps=-1)
    assert code == EXIT_REFUSED
    (refused,) = said
    assert isinstance(refused, Refused) and refused.error.code == DeviceLost.code
