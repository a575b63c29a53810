"""`tessera autotune`: finds the fastest schedules for this machine, by measuring them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tessera.cli.options import json_option

if TYPE_CHECKING:
    from tessera_compiler.autotune.tuner import Measurement, TuningResult

CPU = "cpu"
UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """A time: `120s`, `2m`, `90`."""

    name = "duration"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]+)?) ?([a-z]*)", str(value).strip())
        if found is None or found[2] not in UNITS:
            self.fail(f"{value!r} should be a time such as 120s or 5m.", parameter, context)
        return float(found[1]) * UNITS[found[2]]


@click.command("autotune")
@click.argument("source", metavar="PACKAGE|HF_DIR", type=click.Path(path_type=Path))
@click.option("--target", default=CPU, show_default=True, help="Target to tune for: `cpu`, or the GPU's that is here.")
@click.option("--budget", type=Duration(), default="120s", show_default=True, help="Time for measuring.")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder to keep the winners in. [default: the one pack reads]"
)
@click.option(
    "--dtype", "dtypes", multiple=True, help="Of the weights, for a checkpoint; may be repeated. [default: bf16]"
)
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    help="Threads that compute; for a GPU, processes that compile. [default: all usable cores]",
)
@click.option("--explain", is_flag=True, help="Print every candidate with its time, and why the winner won.")
@json_option
def command(
    source: Path,
    target: str,
    budget: float,
    cache: Path | None,
    dtypes: tuple[str, ...],
    threads: int | None,
    explain: bool,
    as_json: bool,
) -> None:
    """Measure candidate schedules on this machine and keep the winners.

    The linear maps of the package or checkpoint are timed with weights that come from memory, on as many threads as a
    step has, and every candidate's results are compared with the default's, bit for bit. Winners are kept under keys
    of their shape alone, so they serve every model that has it. `tessera pack` uses them; what the cache has is not
    measured again. Let the machine be idle.

    With the target of a GPU, such as cuda-sm90, the machine must have one, and Triton, which compiles the candidates.
    The cache that this leaves serves later packs on any machine.
    """
    if target != CPU:
        _require_known(target)
        from tessera.cli.device_tuning import tune_device

        tune_device(source, target, budget, cache, dtypes, threads, explain=explain, as_json=as_json)
        return
    from tessera.cli.output import notice, print_json
    from tessera.cli.progress import progress_bars
    from tessera.cli.tuning_report import print_result, result_dict
    from tessera.tuning.native_bench import native_runner
    from tessera_compiler.autotune.budget import require_budget
    from tessera_compiler.autotune.cache_file import cpu_cache_file
    from tessera_compiler.autotune.subjects import subjects_of
    from tessera_compiler.autotune.tuner import Tuner
    from tessera_compiler.schedule.tuned_cache import shipped_cache
    from tessera_runtime.configuration import Configuration

    require_budget(budget)
    cpu_class, modules = _programs(source, target, dtypes)
    subjects = subjects_of(modules, cpu_class)
    file = cpu_cache_file(shipped_cache() if cache is None else cache, target, cpu_class)
    busy = _busy_note() if any(subject.key not in file.entries for subject in subjects) else None
    tuner = Tuner(cpu_class, native_runner(threads or Configuration.from_environment().threads), budget)

    def keep(measurement: Measurement) -> None:
        file.put(measurement.subject.key, measurement.entry())

    with progress_bars() as report:
        result: TuningResult = tuner.tune(subjects, tuple(file.entries), keep, report)
    if busy:
        notice(busy)
    if as_json:
        print_json(result_dict(result, file.path, file.entries, explain=explain))
    else:
        print_result(result, file.path, file.entries, explain=explain)


def _require_known(target: str) -> None:
    from tessera_compiler.autotune.errors import UnknownTuningTarget
    from tessera_compiler.targets.triton.architectures import ARCHITECTURES

    if target not in ARCHITECTURES:
        raise UnknownTuningTarget(
            f"The target {target!r} is not tuned; {', '.join((CPU, *ARCHITECTURES))} are. Name one of them."
        )


def _programs(source: Path, target: str, dtypes: tuple[str, ...]) -> tuple[str, list[Any]]:
    """The CPU class to tune for, and the programs whose kernels are tuned."""
    from tessera_compiler.autotune.programs import planned_checkpoint, planned_text
    from tessera_compiler.driver import DTYPES
    from tessera_compiler.targets.cpu.object_code import CPU_CLASSES
    from tessera_runtime.executor.cpu.processor import choose_class, read_processor

    if (source / "config.json").is_file():
        known = {name: {"features": entry.required_flags} for name, entry in CPU_CLASSES.items()}
        cpu_class = choose_class(known, read_processor())
        for dtype in dtypes:
            if dtype not in DTYPES:
                raise click.UsageError(f"--dtype {dtype!r} should be one of {', '.join(DTYPES)}.")
        return cpu_class, [planned_checkpoint(source, dtype, cpu_class) for dtype in dtypes or ("bf16",)]
    from tessera.packages import resolve
    from tessera_runtime.package.reader import open_package

    if dtypes:
        raise click.UsageError("--dtype is for a checkpoint; a package has its own.")
    package = open_package(resolve(source))
    cpu_class = choose_class(package.program(target)["classes"], read_processor())
    return cpu_class, [planned_text(package.read_text(f"tile_kernels/{target}/schedule_ir.tssa"))]


def _busy_note() -> str | None:
    from tessera.benchmarking.workload import busy_note

    return busy_note()
