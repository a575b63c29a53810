"""Prints what tuning found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.cli.output import print_table

if TYPE_CHECKING:
    from tessera_compiler.autotune.tuner import Measurement, TuningResult
    from tessera_compiler.schedule.passes.plan_tiles import Blocking
    from tessera_compiler.schedule.tuned_cache import TunedEntry


def print_result(result: TuningResult, path: Path, entries: Mapping[str, TunedEntry], *, explain: bool) -> None:
    """`entries` are those of the cache after tuning."""
    rows = []
    for subject in result.hits:
        rows.append(
            (subject.key, str(subject.launches), "in the cache", _blockings(entries[subject.key].blockings), "-")
        )
    for measurement in result.measured:
        subject = measurement.subject
        rows.append(
            (subject.key, str(subject.launches), "measured", _blockings(measurement.chosen), _gains(measurement))
        )
    for subject in result.left:
        rows.append((subject.key, str(subject.launches), "left: no time", "-", "-"))
    columns = ("kernel", "launches", "state", "rows × outputs, up to so many rows", "against default")
    print_table("Tuned", columns, rows)
    if explain:
        for measurement in result.measured:
            _explain(measurement)
    print_counts(len(result.hits), len(result.measured), len(result.left), path, found_in=path)


def print_counts(hits: int, measured: int, left: int, path: Path, *, found_in: Path, failed: int = 0) -> None:
    """How a tuning ended: kernels that were in the cache, at `found_in`, those now kept in `path`, those left."""
    if not measured and not left and not failed:
        print(f"All {hits} kernels are in {found_in}; nothing was measured.")
    else:
        print(f"{measured} kernels measured, {hits} found; kept in {path}.")
    if left:
        print(f"{left} kernels keep their defaults. Run again with a larger --budget: what is kept stays.")


def result_dict(
    result: TuningResult, path: Path, entries: Mapping[str, TunedEntry], *, explain: bool
) -> dict[str, Any]:
    from tessera_compiler.schedule.tuned_cache import listed

    kernels = []
    states = [("hit", subject) for subject in result.hits]
    states += [("measured", measurement.subject) for measurement in result.measured]
    states += [("left", subject) for subject in result.left]
    measured = {measurement.subject.key: measurement for measurement in result.measured}
    for state, subject in states:
        found: dict[str, Any] = {"key": subject.key, "state": state, "launches": subject.launches}
        found["source"] = subject.source
        if subject.key in entries and state != "left":
            entry = entries[subject.key]
            found["blockings"] = [listed(blocking) for blocking in entry.blockings]
            found["microseconds"] = {str(rows): value for rows, value in entry.microseconds.items()}
        if explain and subject.key in measured:
            found["candidates"] = {
                str(point): [
                    {"blocking": listed(blocking), "microseconds": 1e6 * seconds}
                    for blocking, seconds in sorted(times.items(), key=lambda item: item[1])
                ]
                for point, times in sorted(measured[subject.key].times.items())
            }
        kernels.append(found)
    return {"cache": str(path), "kernels": kernels}


def _explain(measurement: Measurement) -> None:
    """Every candidate at every point, the fastest first."""
    subject = measurement.subject
    rows = []
    for point, times in sorted(measurement.times.items()):
        best = min(times.values())
        chosen = measurement.winner_at(point)
        default = measurement.default_at(point)
        for blocking, seconds in sorted(times.items(), key=lambda item: item[1]):
            marks = []
            if blocking == chosen:
                why = "fastest here" if seconds == best else f"{seconds / best - 1:.1%} off the best, one kernel less"
                marks.append(f"chosen: {why}")
            if blocking == default:
                marks.append("default")
            if measurement.gave_up(point, blocking):
                marks.append("given up early")
            rows.append(
                (str(point), _shape(blocking), f"{1e6 * seconds:.1f}", f"{seconds / best:.2f}×", ", ".join(marks))
            )
    title = f"{subject.key}: {subject.source}, {subject.launches} launches a step"
    print_table(title, ("rows of the step", "rows × outputs", "µs", "of the best", ""), rows)


def _blockings(blockings: tuple[Blocking, ...]) -> str:
    return ", ".join(f"{_shape(each)} ({f'≤ {each.max_tokens}' if each.max_tokens else 'any'})" for each in blockings)


def _shape(blocking: Blocking) -> str:
    return f"{blocking.rows}×{16 * blocking.panels}" + (" ahead" if blocking.ahead else "")


def _gains(measurement: Measurement) -> str:
    """Where the winner is another than the default, and how much faster."""
    gains = {point: measurement.gain(point) for point in sorted(measurement.times)}
    return ", ".join(f"{point}: {gain:.2f}×" for point, gain in gains.items() if gain is not None) or "same"
