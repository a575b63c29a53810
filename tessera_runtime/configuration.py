"""The one module that reads environment variables. What they say is passed on explicitly; nothing else looks at
them.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tessera_runtime.errors import InvalidRequest

LOG_LEVELS = ("debug", "info", "warning", "error")
MAX_THREADS = 64
"""As many as the native object's context has places for (docs/spec/program.md)."""


@dataclass(frozen=True)
class Configuration:
    """Settings of a process that its command line may override."""

    threads: int | None = None
    """`TESSERA_THREADS`: threads that compute; all cores this process may use if not set."""
    target: str | None = None
    """`TESSERA_TARGET`: the target to run; the fastest that this machine has if not set."""
    log_level: str = "warning"
    """`TESSERA_LOG`: `debug`, `info`, `warning` or `error`. At `debug`, internal errors show a traceback."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Configuration:
        """Reads the variables; empty ones count as not set. A value that makes no sense is an `InvalidRequest`."""
        values = os.environ if environment is None else environment
        level = (values.get("TESSERA_LOG") or "warning").lower()
        if level not in LOG_LEVELS:
            raise InvalidRequest(f"TESSERA_LOG must be one of {', '.join(LOG_LEVELS)}, not {level!r}.")
        return cls(
            threads=_number(values, "TESSERA_THREADS", 1, MAX_THREADS),
            target=values.get("TESSERA_TARGET") or None,
            log_level=level,
        )


SERVER_VARIABLES = (
    *("TESSERA_CONFIG", "TESSERA_HOST", "TESSERA_PORT", "TESSERA_API_KEY", "TESSERA_API_KEY_FILE"),
    *("TESSERA_MAX_BATCH_TOKENS", "TESSERA_MAX_MODEL_LEN", "TESSERA_MAX_QUEUE", "TESSERA_KV_MEMORY", "TESSERA_CACHE"),
)
VARIABLES = ("TESSERA_THREADS", "TESSERA_TARGET", "TESSERA_LOG", *SERVER_VARIABLES)


@dataclass(frozen=True)
class ServerEnvironment:
    """What the environment says to `tessera run`; None where it says nothing."""

    config: Path | None = None
    host: str | None = None
    port: int | None = None
    max_batch_tokens: int | None = None
    max_model_len: int | None = None
    max_queue: int | None = None
    kv_memory: int | None = None
    api_key: str | None = field(default=None, repr=False)
    api_key_file: Path | None = None
    cache: Path = Path("~/.cache/tessera")
    """`TESSERA_CACHE`, or `tessera` in XDG_CACHE_HOME: where `run --from-hf` keeps what it has packed."""
    misspelt: tuple[str, ...] = ()
    """Sentences about variables that look like one of these and are none."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ServerEnvironment:
        """Reads the variables; empty ones count as not set. A value that makes no sense is an `InvalidRequest`."""
        from tessera_runtime.package.sizes import parse_size

        values = os.environ if environment is None else environment
        kv_memory = None
        if values.get("TESSERA_KV_MEMORY"):
            try:
                kv_memory = parse_size(values["TESSERA_KV_MEMORY"])
            except ValueError as error:
                raise InvalidRequest(f"TESSERA_KV_MEMORY: {error}") from None
        base = values.get("TESSERA_CACHE") or ""
        cache = Path(base) if base else Path(values.get("XDG_CACHE_HOME") or "~/.cache") / "tessera"
        # Kubernetes sets TESSERA_PORT=tcp://… in every pod beside a service that is named tessera; that is no port.
        port_is_link = values.get("TESSERA_PORT", "").startswith(("tcp://", "udp://"))
        return cls(
            config=_path(values, "TESSERA_CONFIG"),
            host=values.get("TESSERA_HOST") or None,
            port=None if port_is_link else _number(values, "TESSERA_PORT", 0, 65535),
            max_batch_tokens=_number(values, "TESSERA_MAX_BATCH_TOKENS", 1, 1 << 30),
            max_model_len=_number(values, "TESSERA_MAX_MODEL_LEN", 1, 1 << 30),
            max_queue=_number(values, "TESSERA_MAX_QUEUE", 1, 1 << 30),
            kv_memory=kv_memory,
            api_key=values.get("TESSERA_API_KEY") or None,
            api_key_file=_path(values, "TESSERA_API_KEY_FILE"),
            cache=cache.expanduser(),
            misspelt=tuple(_misspelt(values)),
        )


_OF_DRIVERS = re.compile(r"(CUDA|HIP|HSA|ROCR|ROCM)_[A-Z0-9_]+|LD_LIBRARY_PATH|HOME")


def driver_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the drivers of GPUs are told: which devices this process may see, where their libraries lie, where they may
    keep what they compile. An engine that is not told takes a device that is somebody else's."""
    values = os.environ if environment is None else environment
    return {name: value for name, value in values.items() if _OF_DRIVERS.fullmatch(name)}


def _path(values: Mapping[str, str], name: str) -> Path | None:
    return Path(values[name]) if values.get(name) else None


def _number(values: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    text = values.get(name) or ""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and low <= int(text[:12]) <= high):
        raise InvalidRequest(f"{name} must be a number from {low} to {high}, not {text!r}.")
    return int(text)


def _misspelt(values: Mapping[str, str]) -> list[str]:
    """Only near misses: a cluster may set variables with our prefix that are none of our business."""
    found = []
    for name in sorted(values):
        if name.startswith("TESSERA_") and name not in VARIABLES:
            near = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.85)
            if near:
                found.append(f"The variable {name} is not known and has no effect; did you mean {near[0]}?")
    return found
