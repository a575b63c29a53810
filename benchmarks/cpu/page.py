"""Writes docs/benchmarks/cpu.md from the results of a run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cpu import scaling, targets
from benchmarks.cpu.results import ModelResults, Results
from benchmarks.cpu.shapes import bytes_per_second, multiply_adds_per_second
from benchmarks.cpu.tables import megabytes, percent, perplexity, rate, ratio, table
from benchmarks.cpu.targets import Outcome, judge, verdict
from benchmarks.cpu.work import ALL, DECODE_1, PREFILL, Work, figure, spread

SMALL, LARGE = "small", "large"

_METHOD = Path(__file__).with_name("method.md")


def page(results: Results, image: str, limit: float) -> str:
    """The whole page; `image` is the plot's name beside it."""
    parts = [
        "# Tessera and other engines on one CPU",
        "Written by `python -m benchmarks.cpu`; [benchmarks/README.md](../../benchmarks/README.md) says how to run it.",
        _circumstances(results),
    ]
    small = results.models.get(SMALL)
    if small:
        parts += ["## Targets", _targets(results, small), f"![Tokens per second by engine]({image})"]
        parts += [f"## {small.title}", _medians(small), _left_out(small)]
        parts += ["## Quality", _quality(small)]
        parts += ["## Settings", _settings(small)]
    if results.steps:
        parts += ["## Time per step", *_steps(results)]
    if results.neighbour and small:
        parts += ["## Beside a busy process", _neighbour(results, small)]
    large = results.models.get(LARGE)
    if large and small:
        parts += [f"## {large.title}", _large(small, large), _medians(large), _left_out(large)]
    parts += [
        _METHOD.read_text(encoding="utf-8").strip().replace("LIMIT", f"{limit:.0%}"),
        "## Raw numbers",
        *_raw(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _circumstances(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    disturbed = max(results.disturbance, default=0.0)
    return (
        f"{results.when}. {results.machine}; every engine with {results.threads} threads. {versions}. "
        f"At most {disturbed:.1%} of the processor time went to anything else during a counted measurement; "
        f"{results.repeated} disturbed ones were taken again."
    )


def _targets(results: Results, small: ModelResults) -> str:
    rows = [_outcome_row(outcome, small) for outcome in judge(small.samples)]
    rows += _bounds(results, small)
    side = ["tokens/s", "perplexity"]
    heads = ["work", "Tessera", *side, "against", *side, "ratio", "in single rounds", "must", "aim", ""]
    return table(heads, rows)


def _outcome_row(outcome: Outcome, model: ModelResults) -> list[str]:
    target = outcome.target
    return [
        target.title,
        *_side(outcome.ours, target.work, model),
        *_side(outcome.theirs, target.work, model),
        ratio(outcome.ratio),
        f"{outcome.between[0]:.2f}–{outcome.between[1]:.2f}" if outcome.between else "–",
        ratio(target.must),
        ratio(target.aim),
        verdict(outcome.ratio, target.must, target.aim),
    ]


def _side(found: tuple[str, float] | None, work: Work, model: ModelResults) -> list[str]:
    """A contender with the settings it used, its rate, and the perplexity it has with these."""
    if found is None:
        return ["–"] * 3
    name, value = found
    label = model.choices.get(name, {}).get(work.name, "")
    return [_with_settings(model, name, work), rate(value), perplexity(_perplexity(model, name, label))]


def _with_settings(model: ModelResults, contender: str, work: Work) -> str:
    label = model.choices.get(contender, {}).get(work.name)
    return f"{contender}: {label}" if label else contender


def _perplexity(model: ModelResults, contender: str, label: str) -> float | None:
    """Of a contender with these settings."""
    return model.perplexity.get(model.qualities.get(contender, {}).get(label, ""))


def _bounds(results: Results, small: ModelResults) -> Iterator[list[str]]:
    for dtype in ("int4", "int8", "bf16"):
        name = f"Tessera {dtype}"
        speed, memory = figure(small.samples, name, DECODE_1.name), small.bandwidths.get(name)
        share = None
        if memory and name in small.bytes and name in small.context_bytes:
            context = DECODE_1.prompt + DECODE_1.new / 2
            needed = bytes_per_second(1.0, small.bytes[name], small.context_bytes[name], context)
            samples = small.samples[name][DECODE_1.name]
            share = statistics.median(needed * rate / read for rate, read in zip(samples, memory, strict=False))
        bound = f"{statistics.median(memory) / 1e9:,.0f} GB/s" if memory else "–"
        yield _bound_row(
            "bytes read, 1 user", _with_settings(small, name, DECODE_1), speed, bound, share, targets.READ_SHARE
        )
    peak = statistics.median(results.peaks["int8"]) if results.peaks.get("int8") else None
    name = "Tessera int8"
    speed = figure(small.samples, name, PREFILL.name)
    share = None
    if peak and speed and small.shape:
        share = multiply_adds_per_second(speed, PREFILL.prompt, small.shape) / peak
    bound = f"{peak / 1e9:,.0f} GMAC/s" if peak else "–"
    shown = _with_settings(small, name, PREFILL)
    yield _bound_row("int8 multiply-adds, prefill 512", shown, speed, bound, share, targets.INT8_SHARE)


def _bound_row(
    title: str, name: str, speed: float | None, bound: str, share: float | None, limits: tuple[float, float]
) -> list[str]:
    row = [title, name, rate(speed), "", "the machine", bound, "", percent(share), "", *map(percent, limits)]
    return [*row, verdict(share, *limits)]


def _works(model: ModelResults) -> list[Work]:
    return [work for work in ALL if any(work.name in samples for samples in model.samples.values())]


def _medians(model: ModelResults) -> str:
    works = _works(model)
    rows = [
        [name, *(rate(figure(model.samples, name, work.name)) for work in works)]
        for name, samples in model.samples.items()
        if samples
    ]
    return "Medians, tokens per second.\n\n" + table(["", *(work.title for work in works)], rows)


def _left_out(model: ModelResults) -> str:
    return "\n".join(f"- Left out: {name}: {reason}" for name, reason in model.left_out.items())


def _quality(model: ModelResults) -> str:
    if not model.perplexity:
        return "Not measured in this run: `--text` names the text."
    rows = [
        [
            name,
            perplexity(value),
            megabytes(model.bytes.get(name)),
            targets.quality_verdict(name, model.perplexity, model.bytes),
        ]
        for name, value in sorted(model.perplexity.items())
    ]
    return (
        "Perplexity of the same windows of the same text, and the size of the file, or of a package's weights. "
        f"int8 must be within {targets.INT8_PERPLEXITY - 1:.0%} of Tessera bf16, int4 no worse than llama.cpp Q4_0 at "
        "no more bytes; *kv8* keeps keys and values in int8.\n\n" + table(["", "perplexity", "MB", ""], rows)
    )


def _settings(model: ModelResults) -> str:
    if all(len(tried) < 2 for tried in model.tuning.values()):
        lines = [f"- {name}: {label}" for name, tried in model.tuning.items() for label in tried]
        return "Every engine's first ones; better ones were not looked for.\n\n" + "\n".join(lines)
    works = _works(model)
    rows = [
        [
            f"{name}: {label}",
            *(rate(figures.get(work.name)) for work in works),
            perplexity(_perplexity(model, name, label)),
        ]
        for name, tried in model.tuning.items()
        for label, figures in tried.items()
        if len(tried) > 1
    ]
    chosen = [
        f"- {name}: " + "; ".join(f"{work}: {label}" for work, label in labels.items())
        for name, labels in model.choices.items()
        if len(model.tuning.get(name, {})) > 1
    ]
    return "What was tried, one measurement each:\n\n" + "\n\n".join(
        [
            table(["", *(work.title for work in works), "perplexity"], rows),
            "What was used in the rounds:",
            "\n".join(chosen),
        ]
    )


def _steps(results: Results) -> Iterator[str]:
    points = sorted({tokens for seconds in results.steps.values() for tokens in seconds})
    yield "Milliseconds of a step with so many tokens of one prompt."
    rows = [
        [
            str(point),
            *(f"{1e3 * seconds[point]:.2f}" if point in seconds else "–" for seconds in results.steps.values()),
        ]
        for point in points
    ]
    yield table(["tokens", *results.steps], rows)
    for package, seconds in results.steps.items():
        point, above = scaling.worst(seconds)
        word = "no cliff" if above <= targets.CLIFF else "a cliff"
        yield (
            f"{package}: furthest above the line through its neighbours is the step of {point} tokens, {above:.2f}×; "
            f"allowed are {targets.CLIFF}×: {word}."
        )


def _neighbour(results: Results, small: ModelResults) -> str:
    rows = []
    for name, beside in results.neighbour.items():
        idle = figure(small.samples, name, DECODE_1.name)
        share = beside / idle if idle else None
        word = ""
        if name.startswith("Tessera") and share is not None:
            word = "met" if share >= targets.NEIGHBOUR_SHARE else "missed"
        rows.append([name, rate(idle), rate(beside), percent(share), word])
    return (
        "Decode of one user while a loop keeps the first core busy, tokens per second. "
        f"Tessera must keep {targets.NEIGHBOUR_SHARE:.0%}.\n\n" + table(["", "idle", "beside it", "kept", ""], rows)
    )


def _large(small: ModelResults, large: ModelResults) -> str:
    rows = []
    for before, after in zip(judge(small.samples), judge(large.samples), strict=True):
        if before.ratio is None or after.ratio is None:
            continue
        word = "held" if after.ratio >= targets.SAME_RATIO * before.ratio else "lower"
        rows.append([before.target.title, ratio(before.ratio), ratio(after.ratio), word])
    note = f"The ratios of both models; *held* is at least {targets.SAME_RATIO:.0%} of the small one's."
    return note + "\n\n" + table(["work", small.title, large.title, ""], rows)


def _raw(results: Results) -> Iterator[str]:
    if results.peaks:
        rows = [[kind, *(f"{value / 1e9:,.1f}" for value in values)] for kind, values in results.peaks.items()]
        yield "Bounds of the machine by round, GB or billions of multiply-adds a second.\n\n" + _rounds_table(rows)
    for model in results.models.values():
        if model.bandwidths:
            rows = [[name, *(f"{value / 1e9:,.1f}" for value in values)] for name, values in model.bandwidths.items()]
            yield f"{model.title}: reading beside each decode of one user, GB a second.\n\n" + _rounds_table(rows)
        rows = [
            [f"{name}, {work}", *(f"{value:,.1f}" for value in values), f"{spread(values):.0%}"]
            for name, samples in model.samples.items()
            for work, values in samples.items()
        ]
        yield (
            f"{model.title}: tokens per second by round; the last column is (max − min) / median.\n\n"
            + _rounds_table(rows, last=["spread"])
        )


def _rounds_table(rows: list[list[str]], last: list[str] | None = None) -> str:
    last = last or []
    rounds = max((len(row) for row in rows), default=1) - 1 - len(last)
    return table(["", *(str(number) for number in range(1, rounds + 1)), *last], rows)
