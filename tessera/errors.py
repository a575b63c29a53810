"""What the Python API refuses beyond the vocabulary of the runtime.

RequestError
├── MeshUnavailable       a mesh that this machine does not have
├── CaptureInvalid        buckets that the package's entry does not have
├── ApplicationInvalid    an `App` that could not be served as it is written
├── ModelNotServed        a session with a model that nobody serves here
├── ServerUnreachable     nobody answers at a URL, or not in HTTP
└── ServerRefused         a server answered with an error
"""

from __future__ import annotations

from tessera_runtime.errors import RequestError


class MeshUnavailable(RequestError):
    """The mesh asks for more devices than there are: on the CPU target, tp, pp and dp are 1."""

    code = "mesh-unavailable"


class CaptureInvalid(RequestError):
    """The entry does not belong to the package, or cannot be bucketed as asked."""

    code = "capture-invalid"


class ApplicationInvalid(RequestError):
    """An application registers what it cannot serve: no model, a route twice, a handler that does not fit its route."""

    code = "application-invalid"


class ModelNotServed(RequestError):
    """A session was asked for with a model that is not served where it was asked for."""

    code = "model-not-served"


class ServerUnreachable(RequestError):
    """Nobody answers at the URL, or the answer is no HTTP."""

    code = "server-unreachable"


class ServerRefused(RequestError):
    """The server answered with an error; the message is the server's."""

    code = "server-refused"
