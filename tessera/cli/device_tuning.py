"""`tessera autotune --target cuda-…`: finds the fastest schedules for the GPU of this machine.

It runs from the source tree on a host that has no more than the GPU's driver, Triton and transformers: nothing here
imports what compiles for processors, and nothing is printed with more than `print`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tessera.cli.output import print_json
from tessera.cli.tuning_report import print_counts

if TYPE_CHECKING:
    from tessera_compiler.autotune.device_tuner import DeviceMeasurement, DeviceTuningResult
    from tessera_compiler.schedule.device_blocking import DeviceBlocking
    from tessera_compiler.schedule.device_tuned_cache import DeviceTunedEntry
    from tessera_runtime.executor.gpu.driver import Driver


def tune_device(
    source: Path,
    target: str,
    budget: float,
    cache: Path | None,
    dtypes: tuple[str, ...],
    workers: int | None,
    *,
    explain: bool,
    as_json: bool,
) -> None:
    """What the command does for a target that is no processor's."""
    from tessera.tuning.device_bench import device_runner
    from tessera_compiler.autotune.budget import require_budget
    from tessera_compiler.autotune.cache_file import device_cache_file
    from tessera_compiler.autotune.device_subjects import device_subjects_of
    from tessera_compiler.autotune.device_tuner import DeviceTuner, making_with
    from tessera_compiler.schedule.device_tuned_cache import load_device_tuned
    from tessera_compiler.schedule.tuned_cache import shipped_cache
    from tessera_compiler.targets.triton.toolchain import require_triton

    require_budget(budget)
    require_triton("Candidates are compiled by Triton", "pack without tuning: what came with Tessera is used")
    with _device(target) as driver:
        folder = shipped_cache() if cache is None else cache
        file = device_cache_file(folder, target, driver.device.name)
        subjects = device_subjects_of(_programs(source, target, dtypes), target)
        known = load_device_tuned(folder, (target,))
        waiting = sum(subject.key not in known for subject in subjects)
        done = 0

        def keep(measurement: DeviceMeasurement) -> None:
            nonlocal done
            done += 1
            file.put(measurement.subject.key, measurement.entry())
            if not as_json:
                print(f"[{done}/{waiting}] {_lines(measurement, explain=explain)}", flush=True)

        tuner = DeviceTuner(making_with(workers), device_runner(driver), budget)
        result = tuner.tune(subjects, tuple(known), keep)
    if as_json:
        print_json(_result_dict(result, file.path, file.entries, explain=explain))
    else:
        _print_result(result, file.path)


@contextmanager
def _device(target: str) -> Iterator[Driver]:
    """The device of this machine, if it is what the target is named after."""
    from tessera_compiler.autotune.errors import TuningDeviceMissing
    from tessera_runtime.errors import DriverUnavailable
    from tessera_runtime.executor.gpu.opening import open_driver

    family, _, architecture = target.partition("-")
    try:
        driver = open_driver(family)
    except DriverUnavailable as error:
        raise TuningDeviceMissing(
            f"What is fast on {target} can only be measured on one: {error.message} "
            "Run this on a host with such a device, and copy the file it writes to the cache here."
        ) from error
    try:
        device = driver.device
        if device.architecture != architecture:
            own = f"{family}-{device.architecture}"
            raise TuningDeviceMissing(
                f"This machine has {device.name}, which is {own} and cannot tell what is fast on {target}. "
                f"Tune with --target {own}, or on another host."
            )
        yield driver
    finally:
        driver.close()


def _programs(source: Path, target: str, dtypes: tuple[str, ...]) -> list[Any]:
    from tessera_compiler.device_driver import DEVICE_DTYPES

    for dtype in dtypes:
        if dtype not in DEVICE_DTYPES:
            raise click.UsageError(f"--dtype {dtype!r} should be one of {', '.join(DEVICE_DTYPES)}.")
    if (source / "config.json").is_file():
        from tessera_compiler.autotune.device_programs import planned_for_device

        return [planned_for_device(source, dtype, target) for dtype in dtypes or ("bf16",)]
    from tessera.packages import resolve
    from tessera_compiler.autotune.programs import planned_text
    from tessera_runtime.package.reader import open_package

    if dtypes:
        raise click.UsageError("--dtype is for a checkpoint; a package has its own.")
    package = open_package(resolve(source))
    package.program(target)
    return [planned_text(package.read_text(f"tile_kernels/{target}/schedule_ir.tssa"))]


def _lines(measurement: DeviceMeasurement, *, explain: bool) -> str:
    """What is known of one product, for people."""
    subject = measurement.subject
    lines = [f"{subject.key}: {subject.source}, {subject.launches} launches a step"]
    for point, times in sorted(measurement.times.items()):
        default, winner = measurement.default_at(point), measurement.winner_at(point)
        before = f"{1e6 * times[default]:9.2f}" if default in times else "   failed"
        gain = measurement.gain(point)
        lines.append(
            f"  {point:5} rows: default {before} µs, winner {1e6 * times[winner]:9.2f} µs "
            f"{'' if gain is None else f'({gain:.2f}×) '}{_shape(winner)}{'' if gain else ', the default'}"
        )
        if explain:
            for blocking, seconds in sorted(times.items(), key=lambda item: item[1]):
                early = ", given up early" if measurement.gave_up(point, blocking) else ""
                lines.append(f"              {1e6 * seconds:9.2f} µs  {_shape(blocking)}{early}")
    for number, (blocking, why) in enumerate(measurement.dropped.items()):
        if explain or number < 1:
            lines.append(f"  dropped {_shape(blocking)}: {why[:300]}")
    if len(measurement.dropped) > 1 and not explain:
        lines.append(f"  dropped {len(measurement.dropped) - 1} more; --explain lists them")
    return "\n".join(lines)


def _shape(blocking: DeviceBlocking) -> str:
    size = f"{blocking.rows}×{blocking.outputs}×{blocking.depth} w{blocking.warps} s{blocking.stages}"
    # What stands behind the stages is on or off.
    return " ".join([size, *(each.name for each in fields(blocking)[6:] if getattr(blocking, each.name))])


def _print_result(result: DeviceTuningResult, path: Path) -> None:
    for key, why in result.failed.items():
        print(f"{key} was not tuned: {why}")
    counts = (len(result.hits), len(result.measured), len(result.left))
    print_counts(*counts, path, found_in=path.parent, failed=len(result.failed))


def _result_dict(
    result: DeviceTuningResult, path: Path, entries: Mapping[str, DeviceTunedEntry], *, explain: bool
) -> dict[str, Any]:
    measured = {measurement.subject.key: measurement for measurement in result.measured}
    states = [("hit", subject) for subject in result.hits]
    states += [("measured", measurement.subject) for measurement in result.measured]
    states += [("left", subject) for subject in result.left]
    kernels = []
    for state, subject in states:
        found: dict[str, Any] = {"key": subject.key, "state": state, "launches": subject.launches}
        found["source"] = subject.source
        if subject.key in entries:
            entry = entries[subject.key]
            found["blockings"] = [blocking.listed() for blocking in entry.blockings]
            found["microseconds"] = {str(rows): value for rows, value in entry.microseconds.items()}
        if explain and subject.key in measured:
            found["candidates"] = {
                str(point): [
                    {"blocking": blocking.listed(), "microseconds": 1e6 * seconds}
                    for blocking, seconds in sorted(times.items(), key=lambda item: item[1])
                ]
                for point, times in sorted(measured[subject.key].times.items())
            }
            found["dropped"] = [
                {"blocking": blocking.listed(), "why": why} for blocking, why in measured[subject.key].dropped.items()
            ]
        kernels.append(found)
    return {"cache": str(path), "kernels": kernels, "failed": result.failed}
