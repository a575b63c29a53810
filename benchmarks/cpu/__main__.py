"""`python -m benchmarks.cpu`: installs the other engines, measures everybody in turn, writes the page and the plot."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.cpu import large_model
from benchmarks.cpu.idle import LIMIT, MachineBusy
from benchmarks.cpu.page import LARGE, SMALL, page
from benchmarks.cpu.peers import PeersMissing, environment
from benchmarks.cpu.prepare import ROOT, Prepared, Source, prepare
from benchmarks.cpu.results import Results, load, save
from benchmarks.cpu.rounds import DriverFailed
from benchmarks.cpu.run import Options, measure, refuse_a_busy_machine
from benchmarks.cpu.settings import PACKAGES
from benchmarks.cpu.work import ALL, ROUNDS, THREADS, figure
from tessera_pack.gguf import convert_gguf
from tools.fetch_smollm2 import FetchFailed, fetch

TITLE = "SmolLM2-135M-Instruct"


def main() -> int:
    arguments = _arguments()
    folder: Path = arguments.folder.resolve()
    results_file = folder / "results.json"
    try:
        if not arguments.render:
            options, small, large = _prepare(arguments, folder)
            if arguments.prepare_only:
                return 0
            refuse_a_busy_machine(options)
            save(measure(options, small, large, _say), results_file)
        write(load(results_file), arguments.out, folder)
    except (FetchFailed, PeersMissing, MachineBusy, DriverFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out} and its plot are written.")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, default=ROOT / ".cache" / "benchmarks", help="environment, models, raw results")
    add("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "cpu.md", help="the page; the plot lies beside it")
    add("--rounds", type=int, help=f"default: {ROUNDS}, with --quick 1")
    add("--threads", type=int, default=THREADS, help="of every engine (default: %(default)s)")
    add("--text", type=Path, help="measure perplexity on this UTF-8 text, such as WikiText-2's test split")
    add("--large", action="store_true", help="also a model of Qwen2.5-1.5B's shape (25 GB of disk, 10 GB of memory)")
    add("--quick", action="store_true", help="everybody's first settings, without looking for better ones")
    add("--under", default="", metavar="COMMAND", help="put before every measurement, such as 'numactl -m 0'")
    add("--prepare-only", action="store_true", help="install, convert and pack, measure nothing")
    add("--keep-packages", action="store_true", help="measure the packages of the last preparation")
    add("--render", action="store_true", help="write the page of the last run again, measure nothing")
    return parser.parse_args()


def _prepare(
    arguments: argparse.Namespace, folder: Path
) -> tuple[Options, tuple[Source, Prepared], tuple[Source, Prepared] | None]:
    _say("getting the other engines")
    peers = environment(folder / "environment")
    source = smollm2(folder)
    models = folder / "models"

    def prepared(model: Source, packages: Iterable[str]) -> tuple[Source, Prepared]:
        kept = arguments.keep_packages
        return model, prepare(model, models, peers, _say, keep_packages=kept, packages=packages)

    small = prepared(source, PACKAGES)
    large = prepared(large_model.make(models, source), large_model.PACKAGES) if arguments.large else None
    under = shlex.split(arguments.under)
    options = Options(
        folder,
        peers,
        arguments.rounds or (1 if arguments.quick else ROUNDS),
        arguments.threads,
        under,
        arguments.text,
        arguments.quick,
    )
    return options, small, large


def smollm2(folder: Path) -> Source:
    """The model as it comes, and as a checkpoint."""
    file = fetch()
    checkpoint = folder / "models" / "smollm2"
    if not (checkpoint / "config.json").exists():
        convert_gguf(file, checkpoint)
    return Source("smollm2", TITLE, checkpoint, file)


def write(results: Results, out: Path, folder: Path) -> None:
    """The page and, beside it, the plot."""
    image = out.with_suffix(".png")
    data = folder / "plot.json"
    data.write_text(json.dumps(plot_data(results)), encoding="utf-8")
    python = folder / "environment" / "bin" / "python"
    subprocess.run([str(python), "-m", "benchmarks.cpu.plot", str(data), str(image)], check=True, cwd=ROOT)
    out.write_text(page(results, image.name, LIMIT), encoding="utf-8")


def plot_data(results: Results) -> dict[str, object]:
    """What `plot` draws: one panel per piece of work, and the time of steps."""
    bars = {}
    for key, prefix in ((SMALL, ""), (LARGE, "1.5B: ")):
        samples = results.models[key].samples if key in results.models else {}
        for work in ALL:
            rates = {name: value for name in samples if (value := figure(samples, name, work.name)) is not None}
            bars[prefix + work.title] = rates
    title = f"{TITLE}, {results.threads} threads. {results.machine}. {results.when}"
    return {"title": title, "bars": bars, "steps": results.steps}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
