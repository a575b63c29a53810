"""The engine's end of the socket: frames in and out, never blocking on either."""

from __future__ import annotations

import select
import socket
from collections import deque

from tessera_runtime.engine.protocol import LENGTH, MAX_FRAME
from tessera_runtime.errors import ExecutionError

READ_BYTES = 1 << 18
FULL_BYTES = 32 << 20
"""So much may wait for a gateway that does not read, before the engine stops making more."""


class ProtocolBroken(ExecutionError):
    """The gateway sent something that cannot be a frame; what follows it has no beginning."""

    code = "protocol-broken"


class Connection:
    """Wraps a connected socket. `closed` becomes true when the other side is gone."""

    def __init__(self, endpoint: socket.socket) -> None:
        endpoint.setblocking(False)
        self._socket = endpoint
        self._received = bytearray()
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._signal_in, self._signal_out = socket.socketpair()
        self._signal_in.setblocking(False)
        self._signal_out.setblocking(False)
        self.closed = False

    @property
    def full(self) -> bool:
        """Whether too much waits to be read by the other side."""
        return self._waiting_bytes > FULL_BYTES

    @property
    def empty(self) -> bool:
        """Whether all that was sent is on its way."""
        return not self._waiting

    def wake(self) -> None:
        """Ends a `wait`, now or the next; for signal handlers."""
        try:
            self._signal_in.send(b"\0")
        except BlockingIOError:
            return  # it is awake already

    def wait(self) -> None:
        """Sleeps until something can be read or, if something waits to be sent, written; or until `wake`."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._waiting else 0))
        poll.register(self._signal_out, select.POLLIN)
        for descriptor, _ in poll.poll():
            if descriptor == self._signal_out.fileno():
                self._signal_out.recv(1 << 10)

    def receive(self) -> list[bytes]:
        """The bodies of all whole frames that have come. Raises `ProtocolBroken` on a length beyond `MAX_FRAME`."""
        while not self.closed:
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            if not data:
                self.closed = True
            self._received += data
            if len(self._received) > 2 * MAX_FRAME:
                break
        return self._cut_frames()

    def send(self, frame: bytes) -> None:
        """Sends what the socket takes now; the rest follows with the next `send` or `flush`."""
        self._waiting.append(memoryview(frame))
        self._waiting_bytes += len(frame)
        self.flush()

    def flush(self) -> None:
        while self._waiting and not self.closed:
            try:
                sent = self._socket.send(self._waiting[0])
            except BlockingIOError:
                return
            except ConnectionError:
                self.closed = True
                return
            self._waiting_bytes -= sent
            if sent == len(self._waiting[0]):
                self._waiting.popleft()
            else:
                self._waiting[0] = self._waiting[0][sent:]

    def close(self) -> None:
        self.closed = True
        for endpoint in (self._socket, self._signal_in, self._signal_out):
            endpoint.close()

    def _cut_frames(self) -> list[bytes]:
        frames = []
        received = self._received
        start = 0
        while len(received) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(received, start)
            if length > MAX_FRAME:
                raise ProtocolBroken(f"A frame of {length} bytes was announced; at most {MAX_FRAME} are allowed.")
            end = start + LENGTH.size + length
            if len(received) < end:
                break
            frames.append(bytes(received[start + LENGTH.size : end]))
            start = end
        if start:
            del received[:start]
        return frames
