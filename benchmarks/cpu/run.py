"""One run: what is measured, in which order."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from benchmarks.cpu import idle, scaling
from benchmarks.cpu.machine import build_peaks, describe, measure_peaks
from benchmarks.cpu.page import LARGE, SMALL
from benchmarks.cpu.peers import versions
from benchmarks.cpu.prepare import ROOT, Prepared, Say, Source
from benchmarks.cpu.results import ModelResults, Results
from benchmarks.cpu.rounds import DriverFailed, Runner
from benchmarks.cpu.settings import LLAMA, OPENVINO, TESSERA, Candidate, Contender, contenders, worth_trying
from benchmarks.cpu.shapes import shape_of
from benchmarks.cpu.work import ALL, DECODE_1, DECODE_8, PREFILL, Work
from tessera.benchmarking.workload import PASSAGE, Prompts
from tessera_runtime.package.reader import open_package
from tessera_runtime.text.tokenizer import Tokenizer

LARGE_WORKS = (replace(PREFILL, repeats=1), replace(DECODE_1, new=32), replace(DECODE_8, new=16))
"""Fewer steps: each takes ten times as long."""
WINDOW = 1024
WINDOWS = 8
NEIGHBOURED = ("Tessera int4", "Tessera int8", "llama.cpp Q4_0", "llama.cpp Q8_0")


@dataclass(frozen=True)
class Options:
    """Of the command."""

    folder: Path
    peers: Path
    rounds: int
    threads: int
    under: Sequence[str]
    text: Path | None
    quick: bool
    """Everybody's first settings, without looking for better ones."""


def refuse_a_busy_machine(options: Options) -> None:
    """Watches for a second. Raises `MachineBusy`."""
    command = [*options.under, sys.executable, "-m", "benchmarks.cpu.idle"]
    watched = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    if watched["others"] > idle.LIMIT:
        raise idle.MachineBusy(watched["others"], "while nothing was measured yet")


def measure(
    options: Options, small: tuple[Source, Prepared], large: tuple[Source, Prepared] | None, say: Say
) -> Results:
    """Everything. Raises `MachineBusy` if others disturb it for long."""
    tokenizer = Tokenizer(small[0].checkpoint)
    peaks = build_peaks(options.folder)
    runner = Runner(options.peers, prompts(tokenizer), options.threads, options.folder, options.under, peaks)
    results = Results(
        when=datetime.date.today().isoformat(),
        machine=describe(),
        threads=options.threads,
        versions={"Tessera": commit(), **versions(options.peers)},
    )
    results.models[SMALL] = measure_model(runner, *small, ALL, options.rounds, results, say, options)
    measure_quality(runner, results.models[SMALL], small[1], windows(tokenizer, options.text), say)
    measure_steps(runner, results, small[1], say)
    measure_neighbour(runner, results, small[1], say)
    if large:
        tried = results.models[SMALL].tuning
        results.models[LARGE] = measure_model(runner, *large, LARGE_WORKS, options.rounds, results, say, options, tried)
    results.disturbance = runner.disturbance
    results.repeated = runner.repeated
    return results


def prompts(tokenizer: Tokenizer) -> dict[int, list[list[int]]]:
    """By length, as many as the most users need, or a prompt that is computed several times, once to warm up: the text
    and the openings that `tessera bench` uses."""
    source = Prompts(tokenizer.encode(PASSAGE, add_special_tokens=False), seed=0)
    counts: dict[int, int] = {}
    for work in ALL:
        wanted = 1 + work.repeats if work.prefill else work.users
        counts[work.prompt] = max(counts.get(work.prompt, 0), wanted)
    return {length: [source.take(length) for _ in range(count)] for length, count in counts.items()}


def windows(tokenizer: Tokenizer, text: Path | None) -> list[list[int]]:
    """The windows that `tessera eval` scores, or none without a text."""
    if text is None:
        return []
    ids = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False)
    return [ids[start : start + WINDOW] for start in range(0, WINDOW * WINDOWS, WINDOW)]


def commit() -> str:
    """What git calls this tree, or the version where there is no git."""
    command = ["git", "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return result.stdout.strip() or "unknown commit"


def measure_model(
    runner: Runner,
    source: Source,
    prepared: Prepared,
    works: Sequence[Work],
    rounds: int,
    results: Results,
    say: Say,
    options: Options,
    tried_before: Mapping[str, Mapping[str, Mapping[str, float]]] = MappingProxyType({}),
) -> ModelResults:
    """Finds everybody's best settings, then measures in rounds. With what was tried on another model, only settings
    that were not far behind there are tried."""
    model = ModelResults(source.title, left_out=dict(prepared.left_out), shape=shape_of(source.checkpoint))
    field: list[Contender] = []
    choice: dict[str, dict[str, Candidate]] = {}
    for contender in contenders(prepared.files):
        if options.quick:
            contender = replace(contender, candidates=contender.candidates[:1])
        contender = worth_trying(contender, tried_before.get(contender.name, {}), works)
        best, tried = runner.look_for_best(contender, works, say)
        if not best:
            model.left_out[contender.name] = "none of its settings ran"
            continue
        field.append(contender)
        choice[contender.name] = best
        model.tuning[contender.name] = tried
        model.choices[contender.name] = {name: candidate.label for name, candidate in best.items()}
        model.qualities[contender.name] = {each.label: each.quality for each in contender.candidates if each.quality}
        model.samples[contender.name] = {}
        model.bytes[contender.name] = size(contender.driver, best)
        if contender.driver == TESSERA:
            kept = open_package(_for_one_user(best)).manifest.memory.kv
            model.context_bytes[contender.name] = kept.bytes_per_token
    for number in range(1, rounds + 1):
        say(f"{source.title}: round {number} of {rounds}")
        for kind, value in measure_peaks(runner.peaks, options.threads, options.under).items():
            results.peaks.setdefault(kind, []).append(value)
        for name, rates in runner.round(field, choice, works).items():
            for work, value in rates.items():
                model.samples[name].setdefault(work, []).append(value)
        for name, bandwidth in runner.bandwidths.items():
            model.bandwidths.setdefault(name, []).append(bandwidth)
    return model


def size(driver: str, best: Mapping[str, Candidate]) -> int:
    """Of the file that decodes for one user; of a package, its weights."""
    path = _for_one_user(best)
    if driver == TESSERA:
        return open_package(path).manifest.memory.weights_bytes
    if path.is_dir():
        return (path / "openvino_model.bin").stat().st_size
    return path.stat().st_size


def _for_one_user(best: Mapping[str, Candidate]) -> Path:
    return (best.get(DECODE_1.name) or next(iter(best.values()))).model


def measure_quality(runner: Runner, model: ModelResults, prepared: Prepared, texts: list[list[int]], say: Say) -> None:
    """Perplexity of every file."""
    if not texts:
        return
    files = prepared.files
    plain = {"pipeline": "plain", "properties": {}}
    flash = {"flash_attention": True, "ubatch": 512}
    everything = [
        *((f"Tessera {name}", TESSERA, Candidate("", path)) for name, path in files.packages.items()),
        *((f"llama.cpp {kind}", LLAMA, Candidate("", path, flash)) for kind, path in files.gguf.items()),
        *((f"OpenVINO {name}", OPENVINO, Candidate("", path, plain)) for name, path in files.openvino.items()),
    ]
    for name, driver, candidate in everything:
        say(f"perplexity of {name}")
        try:
            rows = runner.run(driver, candidate, windows=texts, must_be_idle=False)
        except DriverFailed as error:
            model.left_out[f"perplexity of {name}"] = str(error)
            continue
        model.perplexity[name] = rows[-1]["perplexity"]
        model.bytes[name] = size(driver, {DECODE_1.name: candidate})


def measure_steps(runner: Runner, results: Results, prepared: Prepared, say: Say) -> None:
    """Time per step of each package."""
    for name, path in prepared.files.packages.items():
        say(f"steps of 1 to {max(scaling.POINTS)} tokens, {name}")
        rows = runner.run(TESSERA, Candidate("steps", path, {"steps": list(scaling.POINTS)}))
        results.steps[f"Tessera {name}"] = {row["step"]: row["seconds"] for row in rows}


def measure_neighbour(runner: Runner, results: Results, prepared: Prepared, say: Say) -> None:
    """One user's decode beside a busy process, with the settings of the rounds; the median of three."""
    before = (sys.executable, "-m", "benchmarks.cpu.neighbour")
    choices = results.models[SMALL].choices
    for contender in contenders(prepared.files):
        label = choices.get(contender.name, {}).get(DECODE_1.name)
        if contender.name not in NEIGHBOURED or label is None:
            continue
        say(f"{contender.name} beside a busy process")
        work = replace(DECODE_1, repeats=3)
        candidate = next(each for each in contender.candidates if each.label == label)
        rows = runner.run(contender.driver, candidate, [work], before=before, must_be_idle=False)
        results.neighbour[contender.name] = rows[0]["tok_s"]
