"""Draws the plot: `plot DATA.json OUT.png`, in the environment that holds matplotlib.

DATA has `bars`: {title: {contender: tokens per second}}, and `steps`: {package: {tokens: seconds}}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {"Tessera": "#1b6ca8", "llama.cpp": "#9aa5b1", "OpenVINO": "#d1a054"}
COLUMNS = 3


def draw_bars(axes: Any, title: str, rates: dict[str, float]) -> None:
    names = list(rates)
    colors = [COLORS.get(name.split(" ")[0], "#777777") for name in names]
    bars = axes.barh(range(len(names)), list(rates.values()), color=colors)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10, loc="left")
    axes.bar_label(bars, fmt="{:,.0f}", fontsize=8, padding=2)
    axes.set_xlim(0, max(rates.values(), default=1) * 1.18)
    axes.set_xticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def draw_steps(axes: Any, steps: dict[str, dict[str, float]]) -> None:
    for package, seconds in steps.items():
        tokens = sorted(map(int, seconds))
        axes.plot(tokens, [1e3 * seconds[str(count)] for count in tokens], marker=".", markersize=3, label=package)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_title("milliseconds by tokens in the step", fontsize=10, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)


def main(source: Path, target: Path) -> None:
    data = json.loads(source.read_text(encoding="utf-8"))
    bars = {title: rates for title, rates in data["bars"].items() if rates}
    panels = len(bars) + bool(data["steps"])
    rows = -(-panels // COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(13, 2.9 * rows), squeeze=False)
    places = [axes for row in grid for axes in row]
    for axes, (title, rates) in zip(places, bars.items(), strict=False):
        draw_bars(axes, f"{title}, tokens/s", rates)
    if data["steps"]:
        draw_steps(places[len(bars)], data["steps"])
    for axes in places[panels:]:
        axes.set_visible(False)
    figure.suptitle(data["title"], fontsize=11, x=0.01, ha="left")
    figure.tight_layout()
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
