"""The tour behind `make demo`: gets a real model, packs it, asks it a question.

Everything goes through the `tessera` command. It can be run again at any time: it replaces its own package and touches
nothing else.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fetch_smollm2 import FetchFailed, fetch

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / ".demo"
PACKAGE = DEMO / "smollm2.tspkg"
QUESTION = "What is the capital of France?"


class DemoFailed(Exception):
    """A command of the demo failed; what it said stands above."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dtype", default="int8", choices=["fp32", "bf16", "int8", "int4"], help="default: %(default)s"
    )
    parser.add_argument("--question", default=QUESTION)
    arguments = parser.parse_args()
    try:
        tour(arguments.dtype, arguments.question)
    except (FetchFailed, DemoFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def tour(dtype: str, question: str) -> None:
    seconds: dict[str, float] = {}
    step("1. Get SmolLM2-135M-Instruct (93 MB, Apache-2.0, kept in .cache/)")
    started = time.perf_counter()
    source = fetch()
    seconds["get the model"] = time.perf_counter() - started
    print(f"   {shown(source)}, {megabytes(source.stat().st_size)}")

    step("2. Compile it, and prove the result against transformers")
    if PACKAGE.exists():
        shutil.rmtree(PACKAGE)
    DEMO.mkdir(exist_ok=True)
    pack = ["pack", "--from-gguf", shown(source), "--out", shown(PACKAGE), "--name", "smollm2", "--dtype", dtype]
    seconds["compile and prove"], _ = tessera(pack)
    print(f"   {shown(PACKAGE)}, {megabytes(size_of(PACKAGE))}; its manifest says how far its logits are off")

    step("3. Ask it a question, in a process that has no compiler, no torch and no network")
    command = ["generate", shown(PACKAGE), "--chat", question, "--max-tokens", "64", "--json"]
    seconds["answer, process start included"], output = tessera(command, capture=True)
    answer = json.loads(output)
    print(f"\n   > {question}\n   {answer['text'].strip()}\n")
    print(f"   {timing(answer)}")

    step("What took how long")
    width = max(map(len, seconds))
    for name, taken in seconds.items():
        print(f"   {name:<{width}}  {taken:6.1f} s")

    step("What to try next")
    for arguments in (
        ["inspect", shown(PACKAGE)],
        ["inspect", shown(PACKAGE), "--ir", "graph"],
        ["plan", shown(PACKAGE), "--memory", "8GiB"],
        ["verify", shown(PACKAGE)],
        ["generate", shown(PACKAGE), "--chat", "Write a haiku about compilers.", "--temperature", "0.7", "--seed", "1"],
        ["pack", "--from-hf", "DIRECTORY_OR_HUB_ID", "--out", "mine.tspkg", "--dtype", "bf16"],
    ):
        print(f"   {command_line(arguments)}")


def tessera(arguments: Sequence[str], *, capture: bool = False) -> tuple[float, str]:
    """Shows a command and runs it as a user would; returns the seconds and, if captured, its output."""
    print(f"   $ {command_line(arguments)}", flush=True)
    executable = Path(sys.executable).parent / "tessera"
    started = time.perf_counter()
    result = subprocess.run(
        [str(executable), *arguments], cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE if capture else None
    )
    if result.returncode != 0:
        raise DemoFailed(f"'tessera {arguments[0]}' ended with exit code {result.returncode}.")
    return time.perf_counter() - started, result.stdout or ""


def command_line(arguments: Sequence[str]) -> str:
    return shlex.join([shown(Path(sys.executable).parent / "tessera"), *arguments])


def timing(answer: dict[str, Any]) -> str:
    found = answer["timing"]
    return (
        f"loaded in {found['load_s']:.2f} s, first token after {found['first_token_s']:.2f} s, "
        f"then {found['decode_tok_s']:.0f} tokens/s"
    )


def step(title: str) -> None:
    print(f"\n{title}", flush=True)


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
