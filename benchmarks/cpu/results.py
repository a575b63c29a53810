"""Everything one run measured, as one JSON file from which the page and the plot are written."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Shape(msgspec.Struct, frozen=True):
    """Sizes that turn tokens per second into bytes and multiply-adds per second."""

    layer_multiply_adds: int
    """Of the matrices of all layers, for one token."""
    head_multiply_adds: int


class ModelResults(msgspec.Struct):
    """One model, all contenders."""

    title: str
    samples: dict[str, dict[str, list[float]]] = {}
    """Tokens per second: contender, work, one of each round."""
    choices: dict[str, dict[str, str]] = {}
    """The settings that were best: contender, work."""
    tuning: dict[str, dict[str, dict[str, float]]] = {}
    """Contender, settings, work: what looking for them measured."""
    qualities: dict[str, dict[str, str]] = {}
    """Contender, settings: under which name their perplexity stands, where it can be measured."""
    bandwidths: dict[str, list[float]] = {}
    """Of Tessera's packages: bytes a second that the memory gave just before and after the decode of one user, one of
    each round. It may change within seconds on a machine whose memory others share."""
    perplexity: dict[str, float] = {}
    bytes: dict[str, int] = {}
    """Of the files, and for a package of its weights."""
    context_bytes: dict[str, int] = {}
    """Of keys and values, for one token that is attended to by the package that decodes for one user."""
    shape: Shape | None = None
    left_out: dict[str, str] = {}
    """What could not be prepared or run, and why."""


class Results(msgspec.Struct):
    """A run."""

    when: str
    machine: str
    threads: int
    versions: dict[str, str] = {}
    peaks: dict[str, list[float]] = {}
    """Bytes (`read`, `read_small`) and multiply-adds (`int8`, `bf16`, `fp32`) a second, one of each round."""
    disturbance: list[float] = []
    """The share that others took during each counted measurement."""
    repeated: int = 0
    """Measurements that were thrown away because they were disturbed, and taken again."""
    models: dict[str, ModelResults] = {}
    steps: dict[str, dict[int, float]] = {}
    """Seconds by tokens in the step, of each package."""
    neighbour: dict[str, float] = {}
    """Tokens per second of one user's decode beside a busy process."""


def save(results: Results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))


def load(path: Path) -> Results:
    return msgspec.json.decode(path.read_bytes(), type=Results)
