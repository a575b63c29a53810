"""The contenders: which engine runs which file, and the settings among which the best are looked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.cpu.work import Work

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
class Packing:
    """One package of a contender: how the page calls the setting, and what `tessera pack` is told."""

    dtype: str
    label: str
    options: tuple[str, ...] = ()


PACKAGES: Mapping[str, Packing] = {
    "int4": Packing("int4", "bf16 KV"),
    "int4-kv8": Packing("int4", "int8 KV", ("--kv-dtype", "int8")),
    "int8": Packing("int8", "bf16 KV"),
    "int8-kv8": Packing("int8", "int8 KV", ("--kv-dtype", "int8")),
    "bf16": Packing("bf16", "bf16 KV"),
}
"""By name; those of one dtype are settings of one contender, its first being what `tessera pack` does by itself."""


@dataclass(frozen=True)
class Candidate:
    """One way to run a contender."""

    label: str
    model: Path
    settings: dict[str, Any] = field(default_factory=dict)
    quality: str = ""
    """Under which name the page has the perplexity of this; empty where nothing can measure it."""


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
    """By the names of `PACKAGES`."""


NOT_FAR_BEHIND = 0.85
"""A setting that reaches less of the best one's rate is not tried on the next model."""


def worth_trying(contender: Contender, tried: Mapping[str, Mapping[str, float]], works: Sequence[Work]) -> Contender:
    """The contender with the candidates that, where they were tried, were near the best at one of the works; with all
    of them where none was."""
    best = {work.name: max((figures.get(work.name, 0.0) for figures in tried.values()), default=0.0) for work in works}
    near = {
        label
        for label, figures in tried.items()
        if any(figures.get(name, 0.0) >= NOT_FAR_BEHIND * rate > 0.0 for name, rate in best.items())
    }
    kept = tuple(candidate for candidate in contender.candidates if candidate.label in near)
    return replace(contender, candidates=kept or contender.candidates)


def contenders(files: Files) -> list[Contender]:
    """Tessera first, then the peers."""
    found = []
    for dtype in dict.fromkeys(PACKAGES[name].dtype for name in files.packages):
        candidates = tuple(
            Candidate(PACKAGES[name].label, path, quality=f"Tessera {name}")
            for name, path in files.packages.items()
            if PACKAGES[name].dtype == dtype
        )
        found.append(Contender(f"Tessera {dtype}", TESSERA, candidates))
    for kind, path in files.gguf.items():
        name = f"llama.cpp {kind}"
        candidates = tuple(Candidate(label, path, settings, name) for label, settings in FLASH)
        found.append(Contender(name, LLAMA, candidates))
    for precision, kind in (("int4", "Q4_0"), ("int8", "Q8_0")):
        converted = {name: path for name, path in files.openvino.items() if name.startswith(precision)}
        sources = [(name, path, f"OpenVINO {name}") for name, path in converted.items()]
        if kind in files.gguf:
            # What its own reader makes of a GGUF file does not leave the pipeline, which tells no probabilities.
            sources.append((f"{kind} GGUF", files.gguf[kind], ""))
        candidates = tuple(
            Candidate(f"{name}, {label}", path, settings, quality)
            for name, path, quality in sources
            for label, settings in PIPELINES
        )
        if candidates:
            found.append(Contender(f"OpenVINO {precision}", OPENVINO, candidates))
    return found
