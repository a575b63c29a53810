"""Tessera on an NVIDIA GPU, in one command, against bounds measured in the same run.

    python benchmarks/gpu.py prepare --target cuda-sm90 --out PROGRAMS     # anywhere, with the compiler; no GPU
    python benchmarks/gpu.py run --programs PROGRAMS --random-weights 1    # with the GPU; no compiler, no network
    python benchmarks/gpu.py page --results FILE --out PAGE                # anywhere
    python benchmarks/gpu.py configs --out CONFIGS                         # for `tessera autotune CONFIGS/<model>`

`prepare` writes compiled programs without weights, about a megabyte each. `run` needs this source tree, numpy, msgspec
and cuda-bindings, and makes the weights on the spot; torch and transformers, where they are, are measured beside it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Before everything that is installed: others call a package of theirs `benchmarks` too.
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_models import (  # noqa: E402
    BASE_DTYPE,
    CONFIGS,
    MEASURED,
    QUANTIZED_DTYPES,
    prepare,
    variant_of,
    write_config,
)
from benchmarks.gpu_page import page  # noqa: E402
from benchmarks.gpu_results import Results  # noqa: E402
from benchmarks.gpu_run import PARTS, SERVED, OtherDevice, Run, RunOptions  # noqa: E402
from tessera_runtime.errors import TesseraError  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.command == "prepare":
        _prepare(options)
    elif options.command == "configs":
        for name in options.models:
            print(write_config(name, options.out))
    elif options.command == "page":
        options.out.write_text(page(Results.read(options.results)), encoding="utf-8")
    else:
        return _run(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.py", description="Tessera on an NVIDIA GPU.")
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="compile the models; needs no GPU")
    preparing.add_argument("--target", default="cuda-sm90")
    preparing.add_argument("--models", nargs="+", choices=sorted(CONFIGS), default=list(MEASURED))
    preparing.add_argument("--dtype", default=BASE_DTYPE)
    preparing.add_argument(
        "--quantized",
        nargs="*",
        choices=QUANTIZED_DTYPES,
        default=list(QUANTIZED_DTYPES),
        help=f"what {' and '.join(SERVED)} are compiled with besides {BASE_DTYPE}; nothing leaves them out",
    )
    preparing.add_argument("--out", type=Path, required=True)
    describing = commands.add_parser("configs", help="write the models' configurations, all that tuning reads")
    describing.add_argument("--models", nargs="+", choices=sorted(CONFIGS), default=list(MEASURED))
    describing.add_argument("--out", type=Path, required=True)
    running = commands.add_parser("run", help="measure; needs the GPU")
    running.add_argument("--programs", type=Path, required=True, help="what `prepare` wrote")
    running.add_argument("--random-weights", type=int, required=True, metavar="SEED")
    running.add_argument("--models", nargs="+", choices=sorted(CONFIGS), default=list(MEASURED), help="small first")
    running.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    running.add_argument("--batch-tokens", type=int, default=2048, help="tokens of one step when serving")
    running.add_argument(
        "--peer-seconds", type=float, default=90, help="the most that transformers may serve, with each setting"
    )
    running.add_argument("--out", type=Path, default=Path("gpu-results.json"), help="written after every part")
    running.add_argument("--add", action="store_true", help="keep what --out holds of other parts")
    paging = commands.add_parser("page", help="write the page of a run")
    paging.add_argument("--results", type=Path, required=True, help="what `run` wrote")
    paging.add_argument("--out", type=Path, required=True)
    return parser


def _prepare(options: argparse.Namespace) -> None:
    from tessera_compiler.errors import UnsupportedModel

    for name in options.models:
        # Beside another dtype there would be nothing to compare them with.
        more = options.quantized if name in SERVED and options.dtype == BASE_DTYPE else []
        for dtype in (options.dtype, *more):
            called = name if dtype == options.dtype else variant_of(name, dtype)
            began = time.perf_counter()
            try:
                size = prepare(name, options.target, options.out, dtype, called)
            except UnsupportedModel as error:
                if dtype == options.dtype:
                    raise
                print(f"{called}: left out. {error}", flush=True)
                continue
            print(f"{called}: {size / 1e6:.2f} MB of code in {time.perf_counter() - began:.0f} s", flush=True)


def _run(options: argparse.Namespace) -> int:
    """Measures all that can be measured; the table and the file hold the rest as failures."""
    wanted = RunOptions(
        programs=options.programs,
        seed=options.random_weights,
        models=options.models,
        parts=options.parts,
        batch_tokens=options.batch_tokens,
        rival_seconds=options.peer_seconds,
        out=options.out,
        add=options.add,
    )
    try:
        results = Run(wanted).measure()
    except (TesseraError, OtherDevice) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(results.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
