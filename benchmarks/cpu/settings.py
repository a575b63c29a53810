"""The contenders: which engine runs which file, and the settings among which the best are looked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESSERA, LLAMA, OPENVINO = "tessera", "llama_cpp", "openvino"

FLASH = (
    ("flash attention", {"flash_attention": True, "ubatch": 512}),
    ("no flash attention", {"flash_attention": False, "ubatch": 512}),
)
PIPELINES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("continuous batching", {"pipeline": "batching", "properties": {}}),
    ("continuous batching, pinned", {"pipeline": "batching", "properties": {"ENABLE_CPU_PINNING": True}}),
    ("plain pipeline", {"pipeline": "plain", "properties": {}}),
)


@dataclass(frozen=True)
class Candidate:
    """One way to run a contender."""

    label: str
    model: Path
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """An engine with weights of one precision; the best of its candidates counts, for each piece of work."""

    name: str
    driver: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Files:
    """What was prepared for one model, by the names below; what could not be had is missing."""

    gguf: dict[str, Path] = field(default_factory=dict)
    """By llama.cpp's name of the format: Q4_0, Q8_0, BF16."""
    openvino: dict[str, Path] = field(default_factory=dict)
    """By precision (int8, int4), then a dash and the variant."""
    packages: dict[str, Path] = field(default_factory=dict)
    """By dtype."""


def contenders(files: Files) -> list[Contender]:
    """Tessera first, then the peers."""
    found = [
        Contender(f"Tessera {dtype}", TESSERA, (Candidate("as packed", path),))
        for dtype, path in files.packages.items()
    ]
    for kind, path in files.gguf.items():
        candidates = tuple(Candidate(label, path, settings) for label, settings in FLASH)
        found.append(Contender(f"llama.cpp {kind}", LLAMA, candidates))
    for precision, kind in (("int4", "Q4_0"), ("int8", "Q8_0")):
        sources = {name: path for name, path in files.openvino.items() if name.startswith(precision)}
        if kind in files.gguf:
            sources[f"{kind} GGUF"] = files.gguf[kind]
        candidates = tuple(
            Candidate(f"{name}, {label}", path, settings)
            for name, path in sources.items()
            for label, settings in PIPELINES
        )
        if candidates:
            found.append(Contender(f"OpenVINO {precision}", OPENVINO, candidates))
    return found
