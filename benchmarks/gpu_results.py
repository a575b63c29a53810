"""What a run on a GPU found, beside what it has to reach."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Goal:
    """The least that counts, and what would be excellent. `less` is better for times, more for shares."""

    must: float
    aim: float
    less: bool = False


GOALS: dict[str, Goal] = {
    "decode qwen3-0.6b": Goal(0.35, 0.52),
    "decode qwen2.5-1.5b": Goal(0.55, 0.74),
    "decode qwen3-8b": Goal(0.80, 0.92),
    "layer qwen3-0.6b": Goal(15e-6, 9e-6, less=True),
    "layer qwen2.5-1.5b": Goal(15e-6, 9e-6, less=True),
    "layer qwen3-8b": Goal(15e-6, 9e-6, less=True),
    "serving qwen3-0.6b": Goal(0.45, 0.72),
    "serving qwen3-8b": Goal(0.50, 0.75),
    "against transformers qwen3-0.6b": Goal(2, 3),
    "idle qwen3-0.6b": Goal(0.10, 0.01, less=True),
    "idle qwen3-8b": Goal(0.10, 0.01, less=True),
    "matmul": Goal(0.85, 1.0),
    "attention": Goal(0.70, 0.90),
    "start qwen2.5-1.5b": Goal(4, 2, less=True),
}


MEASURED_BY = {"layer": "decode", "idle": "serving", "matmul": "kernels", "attention": "kernels"}
"""The parts that measure figures of other names."""


@dataclass
class Results:
    """Figures by name, with the raw numbers they came from."""

    environment: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """What could not be measured, and why."""

    def note(self, name: str, value: float, **raw: Any) -> None:
        self.figures[name] = value
        if raw:
            self.raw[name] = raw
        print(f"{name}: {shown(name, value)}", flush=True)

    def write(self, path: Path) -> None:
        """As a whole or not at all: a run that is killed keeps what it had written before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(asdict(self), indent=1, default=str) + "\n", encoding="utf-8")
        new.replace(path)

    @classmethod
    def read(cls, path: Path) -> Results:
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def verdict(self, name: str) -> str:
        """How a figure stands to its goal."""
        goal, value = GOALS[name], self.figures.get(name)
        if value is None:
            return self._why(name)
        reached = (value <= goal.must) if goal.less else (value >= goal.must)
        best = (value <= goal.aim) if goal.less else (value >= goal.aim)
        return "aim met" if best else "must met" if reached else "missed"

    def _why(self, name: str) -> str:
        """Why there is no such figure."""
        kind, _, model = name.partition(" ")
        part = MEASURED_BY.get(kind, kind)
        for failed, reason in self.failures.items():
            # Figures of all models miss what any part could not measure.
            if failed in (name, f"{part} {model}", f"open {model}") or (not model and failed.startswith(f"{part} ")):
                return f"{failed}: {reason}"
        return "not measured"

    def table(self) -> str:
        """Every figure with a goal, as Markdown."""
        lines = ["| figure | measured | must | aim | |", "|---|---|---|---|---|"]
        for name, goal in GOALS.items():
            value = self.figures.get(name)
            measured = "" if value is None else shown(name, value)
            lines.append(
                f"| {name} | {measured} | {shown(name, goal.must)} | {shown(name, goal.aim)} | {self.verdict(name)} |"
            )
        return "\n".join(lines)


def shown(name: str, value: float) -> str:
    """A figure in the unit of its kind, which is the first word of its name."""
    kind = name.split(" ", 1)[0]
    if kind in ("layer", "sampling"):
        return f"{value * 1e6:.1f} µs"
    if kind == "start":
        return f"{value:.2f} s"
    if kind in ("against", "mixed"):
        return f"{value:.2f}×"
    if kind in ("copy", "cublas"):
        return f"{value / 1e12:.2f} T/s"
    return f"{value:.1%}"
