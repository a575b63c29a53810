"""`tessera bench`: how fast an engine or a server is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tessera.cli.options import execution_options, json_option

if TYPE_CHECKING:
    from tessera.benchmarking.engine_bench import EngineFigures
    from tessera.benchmarking.profile import Profile
    from tessera.benchmarking.server_bench import ServerFigures

MAX_COUNT = 1 << 16


class Counts(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """Numbers with commas between them: `1,8,32`."""

    name = "counts"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isascii() and part.isdigit() and 0 < int(part[:9]) <= MAX_COUNT for part in parts):
            self.fail(
                f"{value!r} should be numbers from 1 to {MAX_COUNT} with commas between them.", parameter, context
            )
        return tuple(dict.fromkeys(int(part) for part in parts))


@click.command("bench")
@click.argument("subject", metavar="PACKAGE|URL")
@click.option("--batch", type=Counts(), default="1,8,32,64", show_default=True, help="Sequences at the same time.")
@click.option("--prompt", type=click.IntRange(1, MAX_COUNT), default=128, show_default=True, help="Tokens of a prompt.")
@click.option("--new", type=click.IntRange(2, MAX_COUNT), default=64, show_default=True, help="Tokens of an answer.")
@click.option("--prefill", type=Counts(), default="512", show_default=True, help="Lengths of lone prompts to time.")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Medians are over so many.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True, help="Of the sampling.")
@click.option("--profile", is_flag=True, help="Time every kernel of a step of a package, against its bound.")
@click.option("--tokens", type=click.IntRange(1, MAX_COUNT), help="With --profile: tokens in the step. [default: 1]")
@click.option(
    "--context", type=click.IntRange(0, MAX_COUNT), help="With --profile: tokens before the step's. [default: 0]"
)
@click.option(
    "--sequences", type=click.IntRange(1, MAX_COUNT), help="With --profile: sequences in the step. [default: 1]"
)
@click.option("--model", help="For a URL: which of its models. [default: the first]")
@click.option("--api-key", help="For a URL that asks for one. [default: TESSERA_API_KEY]")
@execution_options
@json_option
def command(
    subject: str,
    batch: tuple[int, ...],
    prompt: int,
    new: int,
    prefill: tuple[int, ...],
    rounds: int,
    temperature: float,
    profile: bool,
    tokens: int | None,
    context: int | None,
    sequences: int | None,
    model: str | None,
    api_key: str | None,
    threads: int | None,
    target: str | None,
    as_json: bool,
) -> None:
    """Measure a package in this process, or the server at a URL.

    A package is measured without HTTP: how fast prompts are computed, how fast batches of sequences draw tokens, how
    long loading takes. A URL is driven by so many users at once, each with a stream of its own; time to first token and
    time between tokens are added. Prompts are real text, no two alike. With --json, one object with `prefill_tok_s`,
    `decode_tok_s`, `first_token_s` and, for a package, `load_s` is printed; rates are tokens per second.

    With --profile, a step of a package is taken apart instead: the time of each kernel, what it moves and multiplies,
    and which share of what this machine can do that is. Without --tokens, --context and --sequences, three steps are:
    decode of one sequence, decode of 64, and a prompt of 512.
    """
    from tessera.benchmarking.workload import Workload
    from tessera.cli.output import notice, print_json
    from tessera.cli.profile_table import print_profile
    from tessera.cli.progress import progress_bars

    shape = (tokens, context, sequences)
    if shape != (None, None, None) and not profile:
        raise click.UsageError("--tokens, --context and --sequences are for --profile.")
    if profile and (is_url(subject) or model is not None or api_key is not None):
        raise click.UsageError("--profile is for a package, in this process.")
    if profile:
        measured_profile = _profile(subject, shape, threads, target)
        if as_json:
            print_json(measured_profile.as_dict())
        else:
            print_profile(measured_profile)
        return
    workload = Workload(batch, prompt, new, prefill, rounds)
    if is_url(subject):
        if threads is not None or target is not None:
            raise click.UsageError("--threads and --target are for a package; a server has its own.")
        from tessera.benchmarking.server_bench import bench_server
        from tessera_runtime.configuration import ServerEnvironment

        key = api_key or ServerEnvironment.from_environment().api_key
        with progress_bars() as report:
            served = bench_server(subject, workload, api_key=key, model=model, temperature=temperature, report=report)
        if as_json:
            print_json(served.as_dict())
        else:
            _print_server(served, workload.prompt, workload.new)
        return
    if model is not None or api_key is not None:
        raise click.UsageError("--model and --api-key are for a URL.")
    from tessera.benchmarking.engine_bench import bench_package
    from tessera.packages import resolve
    from tessera_runtime.configuration import Configuration

    configuration = Configuration.from_environment()
    with progress_bars() as report:
        measured = bench_package(
            resolve(Path(subject)),
            workload,
            threads=threads or configuration.threads,
            target=target or configuration.target,
            temperature=temperature,
            notice=notice,
            report=report,
        )
    if as_json:
        print_json(measured.as_dict())
    else:
        _print_engine(measured)


def _profile(
    subject: str, shape: tuple[int | None, int | None, int | None], threads: int | None, target: str | None
) -> Profile:
    from tessera.benchmarking.launch_costs import StepShape
    from tessera.benchmarking.profile import profile_package
    from tessera.cli.progress import progress_bars
    from tessera.packages import resolve
    from tessera_runtime.configuration import Configuration

    configuration = Configuration.from_environment()
    tokens, context, sequences = shape
    chosen = () if shape == (None, None, None) else (StepShape(tokens or sequences or 1, context or 0, sequences or 1),)
    with progress_bars() as report:
        return profile_package(
            resolve(Path(subject)),
            chosen,
            threads=threads or configuration.threads,
            target=target or configuration.target,
            report=report,
        )


def is_url(subject: str) -> bool:
    """Whether a server is meant, and not a package."""
    return subject.startswith(("http://", "https://"))


def _print_engine(figures: EngineFigures) -> None:
    from tessera.cli.output import notice, print_facts, print_table

    facts = [
        ("executor", figures.executor),
        ("load", f"{figures.load_s:.2f} s"),
        ("first token", f"{figures.first_token_s:.3f} s"),
        *((f"prefill of {length}", f"{rate:,.0f} tokens/s") for length, rate in figures.prefill_tok_s.items()),
    ]
    print_facts(figures.package, facts)
    print()
    rows = [
        (str(batch), f"{rate:,.1f}", f"{1000 * batch / rate:.1f}", f"{figures.overhead_share[batch]:.1%}")
        for batch, rate in figures.decode_tok_s.items()
    ]
    print_table("Decode", ("sequences", "tokens/s", "ms a step", "outside the executor"), rows)
    for note in figures.notes:
        notice(note)


def _print_server(figures: ServerFigures, prompt: int, new: int) -> None:
    from tessera.cli.output import notice, print_facts, print_table

    first = figures.first_token_s
    facts = [
        ("model", figures.model),
        ("first token, alone", None if first is None else f"{first:.3f} s"),
        *((f"prefill of {length}", f"{rate:,.0f} tokens/s") for length, rate in figures.prefill_tok_s.items()),
        ("this client took", f"{figures.client_core_share:.0%} of a core"),
    ]
    print_facts(figures.server, facts)
    print()
    rows = []
    for users, errors in figures.errors.items():
        ttft, gap = figures.ttft_s.get(users), figures.inter_token_s.get(users)
        rows.append(
            (
                str(users),
                _rate(figures.decode_tok_s.get(users)),
                _rate(figures.output_tok_s.get(users)),
                _rate(figures.requests_s.get(users), 2),
                "-" if ttft is None else f"{1000 * ttft.p50:.0f} / {1000 * ttft.p90:.0f} / {1000 * ttft.p99:.0f}",
                "-" if gap is None else f"{1000 * gap.p50:.1f} / {1000 * gap.p90:.1f} / {1000 * gap.p99:.1f}",
                str(errors),
            )
        )
    columns = ("users", "decode tok/s", "overall tok/s", "requests/s", "TTFT ms", "between tokens ms", "errors")
    print_table(f"{prompt} tokens in, {new} out; times are p50 / p90 / p99", columns, rows)
    for note in figures.notes:
        notice(note)


def _rate(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
