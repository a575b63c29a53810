"""What a server is told: `tis.yaml`, then the environment, then flags; later wins over earlier.

`read_settings` knows every key of the file. A key that is known but that this version cannot honour is named in
`Settings.inactive`, which is printed at start, or refused with `NotYetActive` where going on would be unsafe: nothing
is silently ignored. docs/server.md describes the keys.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from tessera_runtime.configuration import Configuration, ServerEnvironment
from tessera_runtime.errors import ManifestInvalid
from tessera_runtime.package.sizes import parse_size
from tessera_runtime.package.strict_yaml import load_strict
from tessera_runtime.server.errors import ConfigurationInvalid, NotYetActive

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Threads = Annotated[int, msgspec.Meta(ge=1, le=64)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
Size = Annotated[str, msgspec.Meta(min_length=1, max_length=32, pattern=r"^[0-9]+(\.[0-9]+)? ?[A-Za-z]{0,3}$")]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A mapping of tis.yaml: every key is known, and all may be left out."""


class ServerPart(_Part, frozen=True, kw_only=True):
    host: Text | None = None
    port: Port | None = None
    backend: Literal["auto", "cpu", "reference", "ptx", "rocm", "level_zero"] = "auto"
    numerics: Literal["deterministic", "fast"] = "deterministic"
    threads: Threads | None = None
    cors_origins: tuple[Text, ...] = ("*",)
    max_body: Size | None = None
    drain_seconds: Positive | None = None


class MeshPart(_Part, frozen=True, kw_only=True):
    tp: Positive = 1
    pp: Positive = 1
    dp: Positive = 1


class ModelPart(_Part, frozen=True, kw_only=True):
    package: Text
    name: Text | None = None
    mesh: MeshPart = MeshPart()
    instances: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    max_model_len: Positive | None = None


class SpeculativePart(_Part, frozen=True, kw_only=True):
    enabled: bool = False
    draft_model: Text | None = None


class SchedulerPart(_Part, frozen=True, kw_only=True):
    target_p99_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    max_batch_tokens: Positive | None = None
    max_sequences: Positive | None = None
    max_queue: Positive | None = None
    speculative: SpeculativePart = SpeculativePart()


class KvCachePart(_Part, frozen=True, kw_only=True):
    pages: Positive | None = None
    page_size: Size | None = None
    spill: Literal["none", "host", "host_pinned"] = "none"


class PrometheusPart(_Part, frozen=True, kw_only=True):
    path: Annotated[str, msgspec.Meta(pattern=r"^/[A-Za-z0-9/_.-]{1,200}$")] = "/metrics"


class OtlpPart(_Part, frozen=True, kw_only=True):
    endpoint: Text | None = None


class ObservabilityPart(_Part, frozen=True, kw_only=True):
    prometheus: PrometheusPart = PrometheusPart()
    otlp: OtlpPart = OtlpPart()


class SecurityPart(_Part, frozen=True, kw_only=True):
    auth: Literal["none", "api_key", "oidc", "mtls"] = "none"
    api_key_file: Text | None = None


class TisFile(_Part, frozen=True, kw_only=True):
    """`tis.yaml`."""

    server: ServerPart = ServerPart()
    models: list[ModelPart] = []
    scheduler: SchedulerPart = SchedulerPart()
    kv_cache: KvCachePart = KvCachePart()
    observability: ObservabilityPart = ObservabilityPart()
    security: SecurityPart = SecurityPart()


@dataclass(frozen=True)
class ModelSettings:
    """One package and how many engines serve it."""

    package: Path
    name: str | None = None
    """What clients call it; the manifest's name if not given."""
    instances: int = 1
    max_model_len: int | None = None


@dataclass(frozen=True)
class Settings:
    """Everything a server is told, resolved."""

    models: tuple[ModelSettings, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    threads: int | None = None
    target: str | None = None
    max_batch_tokens: int | None = None
    max_sequences: int | None = None
    max_model_len: int | None = None
    max_queue: int = 1024
    """Answers that may wait beyond those that the engines can run at once."""
    kv_memory: int | None = None
    """Bytes of cache per engine."""
    max_body: int = 8 << 20
    """Bytes of one request."""
    drain_seconds: float | None = None
    """How long running answers may take to finish once the server was told to stop; None: as long as they need."""
    cors_origins: tuple[str, ...] = ("*",)
    metrics_path: str = "/metrics"
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    log_level: str = "warning"
    inactive: tuple[str, ...] = ()
    """Settings that are valid but not yet active, as `key: value` and why."""


def override(settings: Settings, **values: Any) -> Settings:
    """`settings` with those values that are not None."""
    known = {each.name for each in fields(Settings)}
    return replace(settings, **{name: value for name, value in values.items() if value is not None and name in known})


def read_settings(path: Path) -> tuple[Settings, str]:
    """The settings of a file, and its `security.auth`, which `check_security` judges once all keys are known."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationInvalid(
            f"The configuration {str(path)!r} cannot be read: {error.strerror}.", hint="Check the path after --config."
        ) from None
    try:
        value = load_strict(data)
    except ManifestInvalid as error:
        message = error.message.replace("manifest.yaml", path.name)
        raise ConfigurationInvalid(message, hint="docs/server.md shows a complete file.") from None
    if not isinstance(value, dict):
        raise ConfigurationInvalid(f"{path.name} should be a mapping of keys to values.")
    _check_keys(value, TisFile, path.name, "")
    try:
        file = msgspec.convert(value, TisFile, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigurationInvalid(f"{path.name}: {_sentence(str(error))}.") from None
    return _resolve(file, path), file.security.auth


def check_security(auth: str, api_keys: tuple[str, ...]) -> tuple[str, ...]:
    """Raises if the file asks for a protection that would be missing; returns what is not yet active all the same."""
    if auth in ("oidc", "mtls") and not api_keys:
        raise NotYetActive(
            f"security.auth is {auth!r}, which this version does not have yet, and there is no API key either:"
            " the server would be open.",
            hint="Give --api-key-file to protect it with keys until then, or set security.auth to none.",
        )
    if auth == "api_key" and not api_keys:
        raise ConfigurationInvalid(
            "security.auth is 'api_key', but there is no key.", hint="Give --api-key-file or security.api_key_file."
        )
    return (f"security.auth: {auth} (API keys protect the server instead)",) if auth in ("oidc", "mtls") else ()


def gather_settings(
    config: Path | None, environment: ServerEnvironment, process: Configuration, **given: Any
) -> Settings:
    """All that a server is told: `given` by flags or arguments goes before the environment, that before the file.

    Raises ConfigurationInvalid or NotYetActive, also for a protection that would be missing.
    """
    settings, auth = Settings(), "none"
    path = config or environment.config
    if path is not None:
        settings, auth = read_settings(path)
    settings = override(
        settings,
        host=environment.host,
        port=environment.port,
        threads=process.threads,
        target=process.target,
        max_batch_tokens=environment.max_batch_tokens,
        max_model_len=environment.max_model_len,
        max_queue=environment.max_queue,
        kv_memory=environment.kv_memory,
        log_level=process.log_level,
    )
    if given.get("api_keys") is None:
        given["api_keys"] = api_keys_of(environment.api_key, environment.api_key_file)
    settings = override(settings, **given)
    return replace(settings, inactive=(*settings.inactive, *check_security(auth, settings.api_keys)))


def api_keys_of(key: str | None, file: Path | None) -> tuple[str, ...] | None:
    """A key and those of a file; None if there is neither."""
    if key is None and file is None:
        return None
    return (*((key,) if key else ()), *(read_api_keys(file) if file else ()))


def read_api_keys(path: Path) -> tuple[str, ...]:
    """One key a line; empty lines and lines that start with `#` do not count."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationInvalid(f"The file of API keys {str(path)!r} cannot be read: {reason}.") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise ConfigurationInvalid(f"The file of API keys {str(path)!r} holds no key.", hint="Write one key a line.")
    return keys


def _resolve(file: TisFile, path: Path) -> Settings:
    server, scheduler, cache = file.server, file.scheduler, file.kv_cache
    inactive = [*_inactive(file)]
    models = []
    for model in file.models:
        scheme = model.package.partition("://")[0] if "://" in model.package else ""
        if scheme:
            raise NotYetActive(
                f"{path.name} serves {model.package!r}, but packages are not yet loaded from {scheme}://.",
                hint="Copy the package to this machine and name its folder.",
            )
        package = Path(model.package).expanduser()
        models.append(
            ModelSettings(
                package if package.is_absolute() else path.parent / package,
                model.name,
                model.instances,
                model.max_model_len,
            )
        )
    if (cache.pages is None) != (cache.page_size is None):
        raise ConfigurationInvalid(f"{path.name}: kv_cache needs both pages and page_size, or neither.")
    kv_memory = None
    if cache.pages is not None and cache.page_size is not None:
        kv_memory = cache.pages * _size(cache.page_size, f"{path.name}: kv_cache.page_size")
    keys: tuple[str, ...] = ()
    if file.security.api_key_file is not None:
        named = Path(file.security.api_key_file).expanduser()
        keys = read_api_keys(named if named.is_absolute() else path.parent / named)
    return override(
        Settings(models=tuple(models), inactive=tuple(inactive), cors_origins=tuple(server.cors_origins)),
        host=server.host,
        port=server.port,
        threads=server.threads,
        target=server.backend if server.backend in ("cpu", "reference") else None,
        max_batch_tokens=scheduler.max_batch_tokens,
        max_sequences=scheduler.max_sequences,
        max_queue=scheduler.max_queue,
        kv_memory=kv_memory,
        max_body=None if server.max_body is None else _size(server.max_body, f"{path.name}: server.max_body"),
        drain_seconds=server.drain_seconds,
        metrics_path=file.observability.prometheus.path,
        api_keys=keys or None,
    )


def _inactive(file: TisFile) -> list[str]:
    server, scheduler = file.server, file.scheduler
    found = []
    if server.backend in ("ptx", "rocm", "level_zero"):
        found.append(f"server.backend: {server.backend} (the CPU serves)")
    if server.numerics == "fast":
        found.append("server.numerics: fast (numerics are always deterministic)")
    for index, model in enumerate(file.models):
        mesh = model.mesh
        if (mesh.tp, mesh.pp, mesh.dp) != (1, 1, 1):
            found.append(f"models[{index}].mesh: tp={mesh.tp}, pp={mesh.pp}, dp={mesh.dp} (one device per engine)")
    if scheduler.target_p99_ms is not None:
        found.append(f"scheduler.target_p99_ms: {scheduler.target_p99_ms:g} (the batch is as large as it can be)")
    if scheduler.speculative.enabled:
        found.append(f"scheduler.speculative: {scheduler.speculative.draft_model or 'enabled'} (no draft model runs)")
    if file.kv_cache.spill != "none":
        found.append(f"kv_cache.spill: {file.kv_cache.spill} (a full cache preempts and computes again)")
    if file.observability.otlp.endpoint is not None:
        found.append(f"observability.otlp: {file.observability.otlp.endpoint} (no traces are sent)")
    return found


def _size(text: str, where: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise ConfigurationInvalid(f"{where}: {error}") from None


def _check_keys(value: Any, kind: Any, name: str, path: str) -> None:
    """Names an unknown key together with the one that was probably meant; msgspec would only name the key."""
    known = {each.name: each.type for each in msgspec.structs.fields(kind)}
    for key, inner in value.items():
        where = f"{path}.{key}" if path else key
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            hint = f"The keys {f'of {path}' if path else 'at the top'} are {', '.join(known)}."
            raise ConfigurationInvalid(f"{name} has an unknown key {where!r}.{meant}", hint=hint)
        if isinstance(inner, dict) and _is_part(known[key]):
            _check_keys(inner, known[key], name, where)
        elif isinstance(inner, list) and key == "models":
            for index, item in enumerate(inner):
                if isinstance(item, dict):
                    _check_keys(item, ModelPart, name, f"{where}[{index}]")


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, _Part)


def _sentence(text: str) -> str:
    """msgspec's message with the path first: `server.port: Expected `int` <= 65535`."""
    message, separator, path = text.partition(" - at `")
    return f"{path.rstrip('`').removeprefix('$').removeprefix('.')}: {message}" if separator else message
