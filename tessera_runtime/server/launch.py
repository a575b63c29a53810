"""The first half of a start: the port is bound and the engines begin to load, before the rest is even imported."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tessera_runtime.engine.settings import EngineSettings
from tessera_runtime.errors import PackageNotFound
from tessera_runtime.executor.cpu.processor import usable_cores
from tessera_runtime.package.manifest import Manifest, read_manifest
from tessera_runtime.package.paths import MANIFEST
from tessera_runtime.server.engine_process import ENGINE_MODULE, EngineProcess
from tessera_runtime.server.errors import AddressUnavailable, ConfigurationInvalid
from tessera_runtime.server.settings import ModelSettings, Settings

BACKLOG = 2048


class Report(Protocol):
    """Who wants to know how the start goes."""

    def phase(self, name: str, seconds: float) -> None: ...

    def ready(self, url: str, models: list[ReadyModel]) -> None: ...


@dataclass(frozen=True)
class ReadyModel:
    """What was planned for one model."""

    name: str
    version: str
    instances: int
    executor: str
    max_model_len: int
    max_sequences: int
    max_batch_tokens: int
    cache_tokens: int
    cache_bytes: int
    cache_dtype: str | None
    """None: the package does not tell."""
    weights_bytes: int


@dataclass
class LaunchedPackage:
    """A package whose engines have been started."""

    name: str
    path: Path
    manifest: Manifest
    engine_settings: EngineSettings
    processes: list[EngineProcess] = field(default_factory=list)


@dataclass
class Launch:
    """What runs already. `abandon` undoes it."""

    settings: Settings
    listener: socket.socket
    url: str
    packages: list[LaunchedPackage]
    module: str = ENGINE_MODULE

    def abandon(self) -> None:
        """Ends every engine and frees the port."""
        for package in self.packages:
            for process in package.processes:
                process.kill()
        self.listener.close()


def launch(settings: Settings, *, module: str = ENGINE_MODULE) -> Launch:
    """Checks what can be checked at once, binds, and starts the engines. Raises a `TesseraError` and leaves nothing."""
    if not settings.models:
        raise ConfigurationInvalid(
            "There is no package to serve.", hint="Name one after `tessera run`, or under models: in tis.yaml."
        )
    packages = [_read(model) for model in settings.models]
    names = [package.name for package in packages]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigurationInvalid(
            f"Two packages would both be served as {twice!r}.", hint="Give one of them another name in tis.yaml."
        )
    engines = sum(model.instances for model in settings.models)
    listener, url = bind(settings.host, settings.port)
    started = Launch(settings, listener, url, packages, module)
    try:
        for package, model in zip(packages, settings.models, strict=True):
            package.engine_settings = _engine_settings(settings, model, package.manifest, engines)
            package.processes += [EngineProcess(package.engine_settings, module) for _ in range(model.instances)]
    except BaseException:
        started.abandon()
        raise
    return started


def bind(host: str, port: int) -> tuple[socket.socket, str]:
    """A listening socket and the URL under which it is reached; port 0 takes a free one."""
    where = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        raise AddressUnavailable(f"The host {host!r} is not known.", hint="Give another --host.") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressUnavailable(
                f"Port {port} on {host} is in use by another program.",
                hint="Stop that program, or give another --port (0 takes a free one).",
            ) from None
        raise AddressUnavailable(
            f"The server cannot listen on {where}: {error.strerror}.", hint="Give another --host or --port."
        ) from None
    bound = listener.getsockname()[1]
    return listener, f"http://{f'[{host}]' if ':' in host else host}:{bound}"


def _read(model: ModelSettings) -> LaunchedPackage:
    path = model.package
    try:
        # The manifest alone, which has a checksum of its own; the engine checks every byte of the package.
        manifest = read_manifest((path / MANIFEST).read_bytes())
    except OSError:
        what = "it does not exist" if not path.exists() else f"it has no {MANIFEST}"
        raise PackageNotFound(f"There is no package at {str(path)!r}: {what}.") from None
    return LaunchedPackage(model.name or manifest.name, path, manifest, EngineSettings())


def _engine_settings(settings: Settings, model: ModelSettings, manifest: Manifest, engines: int) -> EngineSettings:
    """Where nothing is said, several engines share the machine evenly; one alone plans for itself."""
    threads, kv_memory = settings.threads, settings.kv_memory
    max_sequences = settings.max_sequences or EngineSettings().max_sequences
    if engines > 1:
        threads = threads or max(1, len(usable_cores()) // engines)
        if kv_memory is None:
            most = max_sequences * manifest.memory.max_model_len * manifest.memory.kv.bytes_per_token
            kv_memory = max(min(_available_memory() // 2 // engines, most), manifest.memory.kv.bytes_per_block)
    return EngineSettings(
        package=str(model.package.absolute()),
        target=settings.target,
        threads=threads,
        max_batch_tokens=settings.max_batch_tokens,
        max_sequences=max_sequences,
        max_model_len=model.max_model_len or settings.max_model_len,
        kv_memory=kv_memory,
    )


def _available_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 30
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 1 << 30)
