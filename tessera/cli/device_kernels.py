"""What `tessera inspect` says about the kernels of a GPU target, each compiled for one shape of step."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

COLUMNS = ("kernel", "launches", "when", "schedule", "registers", "shared", "spilled", "code")


def device_kernels(program: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per kernel: how often its group is launched, for which steps, and what it takes of the device."""
    launched: dict[str, int] = {}
    drawing = program.get("drawing") or {}
    for launch in (*program["launches"], *(each for launches in drawing.values() for each in launches)):
        launched[launch["group"]] = launched.get(launch["group"], 0) + 1
    rows: dict[str, dict[str, Any]] = {}
    for name, group in sorted(program["groups"].items()):
        for variant in group["variants"]:
            kernel = program["kernels"].get(variant["kernel"])
            if kernel is None:
                continue
            limits = ", ".join(f"{symbol} ≤ {limit}" for symbol, limit in sorted(variant["limits"].items())) or "any"
            known = rows.setdefault(
                variant["kernel"],
                {
                    "kernel": variant["kernel"],
                    "group": name,
                    "kind": group.get("kind"),
                    "launches": launched.get(name, 0),
                    "limits": [],
                    "tuned": kernel.get("tuned"),
                    "registers": kernel.get("registers"),
                    "shared_bytes": kernel["shared_bytes"],
                    "spilled_bytes": kernel.get("spilled_bytes"),
                    "code_bytes": kernel.get("code_bytes"),
                    "warps": kernel["warps"],
                },
            )
            known["limits"].append(limits)
    return list(rows.values())


def schedule(tuned: object, classes: Collection[str] = ()) -> str:
    """Whether a schedule was measured, or for which of some classes of processors; `-` where there is nothing to
    choose."""
    if isinstance(tuned, list) and tuned and not set(classes) <= set(tuned):
        return f"tuned for {', '.join(map(str, tuned))}"
    return "-" if tuned is None else "tuned" if tuned else "default"


def device_rows(kernels: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """The rows of the table, in the order of `COLUMNS`."""
    return [
        (
            row["kernel"],
            row["launches"],
            " or ".join(row["limits"]),
            schedule(row["tuned"]),
            row["registers"],
            row["shared_bytes"],
            row["spilled_bytes"],
            row["code_bytes"],
        )
        for row in kernels
    ]
