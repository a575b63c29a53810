"""Starts one engine process and speaks with it.

The process gets nothing of the environment but what is meant for drivers of GPUs, so no secret of the gateway is there
to be found, and it dies with the gateway however that ends: the kernel kills it (PR_SET_PDEATHSIG), and it ends by
itself when its socket does. The socket lies in a folder of its own that only this user may enter, and that is gone as
soon as the engine has connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec

from tessera_runtime.configuration import driver_environment
from tessera_runtime.engine.protocol import LENGTH, MAX_FRAME, FromEngine, ToEngine, decode_from_engine, encode
from tessera_runtime.engine.settings import EngineSettings
from tessera_runtime.server.errors import EngineStartFailed

ENGINE_MODULE = "tessera_runtime.engine.process"
SOCKET_PATH_LIMIT = 107
"""Bytes that the kernel gives to the path of a Unix socket."""

_BOOT = (
    "import ctypes, os, sys; sys.path[:] = {path!r}; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == {parent} or os._exit(1); from {module} import main; sys.exit(main(sys.argv[1:]))"
)


class EngineProcess:
    """A started engine that has not connected yet, or has. Made without an event loop, so that an engine can load while
    the rest of the gateway is still being imported.
    """

    def __init__(self, settings: EngineSettings, module: str = ENGINE_MODULE) -> None:
        self._folder = Path(_socket_folder())
        try:
            path = self._folder / "engine"
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            self._listener.bind(str(path))
            self._listener.listen(1)
            self._listener.setblocking(False)
            entries = [str(Path(entry).absolute()) if entry else os.getcwd() for entry in sys.path]
            boot = _BOOT.format(path=entries, parent=os.getpid(), module=module)
            arguments = ["--socket", str(path), "--settings", msgspec.json.encode(settings).decode()]
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", boot, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**driver_environment(), "LC_ALL": "C.UTF-8"},
                # A Ctrl-C in the terminal goes to the whole group; only the gateway decides what it means.
                start_new_session=True,
            )
        except OSError as error:
            self._forget_socket()
            raise EngineStartFailed(f"The engine process could not be started: {error.strerror}.") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._process.poll()

    async def connect(self, protocol: EngineProtocol) -> None:
        """Waits until the engine has connected, or raises `EngineStartFailed` when it ends before."""
        loop = asyncio.get_running_loop()
        accept = asyncio.ensure_future(loop.sock_accept(self._listener))
        try:
            while not (await asyncio.wait({accept}, timeout=0.05))[0]:
                self.raise_if_dead()
            connection, _ = accept.result()
            if _peer(connection) != self.pid:
                connection.close()
                raise EngineStartFailed("Another process than the engine connected to the engine's socket.")
            await loop.connect_accepted_socket(lambda: protocol, connection)
        finally:
            accept.cancel()
            self._forget_socket()

    def raise_if_dead(self) -> None:
        """Raises `EngineStartFailed` if the process has ended."""
        code = self.exit_code
        if code is not None:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise EngineStartFailed(
                f"The engine process ended with {how} before it was ready.", hint="Its last words are above."
            )

    def kill(self) -> None:
        """Ends it at once and waits until it is gone, which also works when it is stopped or hangs."""
        self._forget_socket()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    async def wait(self, seconds: float) -> bool:
        """Whether it ends within this time."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._process.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    def progress(self) -> tuple[int, int]:
        """Clock ticks of processor time and pages read from disk so far: what tells a long step from a hang."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return (0, 0)
        # The second field, the name, may hold spaces and parentheses; what follows the last one cannot.
        values = text.rpartition(")")[2].split()
        return (int(values[11]) + int(values[12]), int(values[9]))

    def resident_bytes(self) -> int:
        return resident_bytes(self.pid)

    def _forget_socket(self) -> None:
        listener = getattr(self, "_listener", None)
        if listener is not None:
            listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class EngineProtocol(asyncio.Protocol):
    """Frames in both directions. Anything that is not a message ends the connection, and with it the engine."""

    def __init__(self, on_message: Callable[[FromEngine], None], on_lost: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._buffer = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every event loop derives its transports from asyncio's classes, so this is not asked for.
        self._transport = cast(asyncio.WriteTransport, transport)

    def send(self, message: ToEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= LENGTH.size:
                (length,) = LENGTH.unpack_from(buffer, start)
                if length > MAX_FRAME:
                    raise msgspec.DecodeError(f"a frame of {length} bytes")
                end = start + LENGTH.size + length
                if len(buffer) < end:
                    break
                message = decode_from_engine(bytes(buffer[start + LENGTH.size : end]))
                start = end
                self._on_message(message)
        except msgspec.DecodeError:
            self.close()
            return
        del buffer[:start]

    def connection_lost(self, error: Exception | None) -> None:
        self._on_lost()


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM, shared pages included; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _socket_folder() -> str:
    """A new folder with mode 0700. Where the usual place has too long a name for a socket, one in /tmp."""
    folder = tempfile.mkdtemp(prefix="tessera-")
    if len(os.fsencode(folder)) + len("/engine") <= SOCKET_PATH_LIMIT:
        return folder
    os.rmdir(folder)
    try:
        return tempfile.mkdtemp(prefix="tessera-", dir="/tmp")
    except OSError as error:
        raise EngineStartFailed(
            f"The path of temporary files, {tempfile.gettempdir()!r}, is too long for a socket, and /tmp cannot be"
            f" used instead: {error.strerror}.",
            hint="Set TMPDIR to a folder with a short name.",
        ) from None


def _peer(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])
