"""The engine's process: `python -m tessera_runtime.engine.process --socket PATH --settings JSON`.

docs/spec/engine-protocol.md says how it behaves. It lives as long as its socket: when the gateway is gone, so
is the engine.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tessera_runtime.engine.cache_plan import plan_for
from tessera_runtime.engine.connection import Connection, ProtocolBroken
from tessera_runtime.engine.core import EngineCore, EngineLimits, failure_of
from tessera_runtime.engine.pipeline import open_core
from tessera_runtime.engine.protocol import (
    Abort,
    EngineCapacity,
    Outputs,
    Ping,
    Pong,
    Ready,
    Refused,
    Shutdown,
    Submit,
    decode_to_engine,
    encode,
)
from tessera_runtime.engine.settings import EngineSettings
from tessera_runtime.errors import DeviceLost, ExecutionError, InvalidRequest, TesseraError
from tessera_runtime.executor.interface import Executor
from tessera_runtime.loading import load_executor
from tessera_runtime.package.reader import open_package

EXIT_REFUSED = 2
EXIT_DEVICE_LOST = 3
_log = logging.getLogger(__name__)


class EngineDraining(ExecutionError):
    """The engine was told to finish what it has, and takes nothing new."""

    code = "engine-draining"


class Loop:
    """Messages in, a step, outputs out; until there is nobody to talk to or nothing left to do."""

    def __init__(self, core: EngineCore, connection: Connection, *, check_when_idle: bool = False) -> None:
        self._core = core
        self._connection = connection
        self._check_when_idle = check_when_idle
        self.draining = False

    def run(self) -> None:
        """Returns when the other side is gone, or all is done and said after `drain`."""
        connection = self._connection
        while not connection.closed:
            for body in connection.receive():
                self._handle(body)
            connection.flush()
            if connection.full:
                connection.wait()
            elif self._core.has_work:
                if outputs := self._core.step():
                    connection.send(encode(Outputs(outputs)))
            elif self.draining and connection.empty:
                return
            else:
                if self._check_when_idle:
                    self._core.check_integrity()
                connection.wait()

    def drain(self) -> None:
        """Finish what is there, then return from `run`. May be called from a signal handler."""
        self.draining = True
        self._connection.wake()

    def _handle(self, body: bytes) -> None:
        try:
            message = decode_to_engine(body)
        except (msgspec.DecodeError, TesseraError) as error:
            self._refuse(body, error)
            return
        if isinstance(message, Submit):
            if self.draining:
                refusal = EngineDraining("The engine is shutting down.", hint="Try again.")
                self._core.refuse(message.request_id, refusal)
            else:
                self._core.submit(message)
        elif isinstance(message, Abort):
            self._core.abort(message.request_id)
        elif isinstance(message, Ping):
            self._connection.send(encode(Pong(message.number, self._core.statistics())))
        elif isinstance(message, Shutdown):
            self.draining = True

    def _refuse(self, body: bytes, error: Exception) -> None:
        """Nobody waits in vain: what can be recognised as a request is answered."""
        identity = _request_id(body)
        _log.error("a message of %d bytes is none of the protocol: %s", len(body), error)
        if identity is not None:
            refusal = (
                error if isinstance(error, TesseraError) else InvalidRequest(f"The submission is invalid: {error}.")
            )
            self._core.refuse(identity, refusal)


def _request_id(body: bytes) -> str | None:
    with contextlib.suppress(msgspec.DecodeError):
        raw = msgspec.msgpack.decode(body)
        if isinstance(raw, dict) and raw.get("type") == "submit" and isinstance(raw.get("request_id"), str):
            return str(raw["request_id"])
    return None


class _Phases:
    """What loading took."""

    def __init__(self) -> None:
        self.seconds: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds.append((name, time.perf_counter() - started))


def serve(connection: Connection, settings: EngineSettings) -> int:
    """Loads the package and serves the connection until it ends; the exit code."""
    phases = _Phases()
    try:
        with phases.phase("check package"):
            package = open_package(Path(settings.package))
        with phases.phase("load program"):
            executor = load_executor(package, target=settings.target, threads=settings.threads, notice=_notice)
    except TesseraError as error:
        return _refuse_to_start(connection, error)
    with executor:
        try:
            with phases.phase("plan cache"):
                limits = plan_for(settings, executor)
                core = open_core(executor, limits)
        except TesseraError as error:
            return _refuse_to_start(connection, error)
        weights_bytes = package.manifest.memory.weights_bytes
        connection.send(encode(Ready(_capacity(executor, limits, weights_bytes), phases.seconds)))
        loop = Loop(core, connection, check_when_idle=settings.check_when_idle)
        previous = signal.signal(signal.SIGTERM, lambda *_: loop.drain())
        try:
            loop.run()
        except DeviceLost as error:
            # The gateway starts another engine, on what the machine still has, and resumes what was running.
            print(f"engine: {error}", file=sys.stderr)
            return EXIT_DEVICE_LOST
        finally:
            signal.signal(signal.SIGTERM, previous)
    return 0


def _notice(sentence: str) -> None:
    """Tells people, who find the gateway's log on the same stream."""
    print(f"engine: {sentence}", file=sys.stderr, flush=True)


def _capacity(executor: Executor, limits: EngineLimits, weights_bytes: int) -> EngineCapacity:
    return EngineCapacity(
        max_model_len=limits.max_model_len,
        vocab_size=executor.limits.vocab_size,
        max_batch_tokens=limits.max_batch_tokens,
        max_sequences=limits.max_sequences,
        block_tokens=executor.limits.block_tokens,
        cache_blocks=limits.cache_blocks,
        cache_bytes=limits.cache_blocks * executor.limits.bytes_per_block,
        weights_bytes=weights_bytes,
        executor=executor.description,
    )


def _refuse_to_start(connection: Connection, error: TesseraError) -> int:
    connection.send(encode(Refused(failure_of(error))))
    while not connection.empty and not connection.closed:
        connection.wait()
        connection.flush()
    return EXIT_REFUSED


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tessera_runtime.engine.process", description="A Tessera engine.")
    parser.add_argument("--socket", required=True, help="Unix socket that the gateway listens on")
    parser.add_argument("--settings", required=True, help="EngineSettings as JSON")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="engine: %(levelname)s: %(message)s")
    # Ctrl-C reaches the whole process group, and the gateway decides what becomes of running requests.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        endpoint.connect(options.socket)
    except OSError as error:
        print(f"engine: no gateway listens on {options.socket}: {error.strerror}.", file=sys.stderr)
        return 1
    connection = Connection(endpoint)
    try:
        try:
            settings = msgspec.json.decode(options.settings, type=EngineSettings)
        except (msgspec.DecodeError, TesseraError) as error:
            refusal = (
                error if isinstance(error, TesseraError) else InvalidRequest(f"The settings are invalid: {error}.")
            )
            return _refuse_to_start(connection, refusal)
        return serve(connection, settings)
    except ProtocolBroken as error:
        print(f"engine: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
