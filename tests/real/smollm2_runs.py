"""SmolLM2 packed and run: in this process, and through the command line in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tessera_pack.packing import PackOptions, PackReport, pack
from tessera_runtime.engine.generation import GenerationResult, SequenceRunner, generate
from tessera_runtime.executor.interface import Executor
from tessera_runtime.loading import load_executor
from tessera_runtime.package.reader import open_package
from tessera_runtime.sampling.parameters import SamplingParameters

ROOT = Path(__file__).resolve().parent.parent.parent
NEW_TOKENS = 64

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Packed:
    """A package and how it came about."""

    path: Path
    report: PackReport
    seconds: float


Packages = Callable[[str], Packed]


def say(capfd: pytest.CaptureFixture[str], text: str) -> None:
    """A figure that belongs to the output of the tests, whether they pass or not."""
    with capfd.disabled():
        print(f"\n  {text}")


def pack_real(out: Path, **options: Any) -> Packed:
    started = time.perf_counter()
    report = pack(PackOptions(out=out, **options), progress=lambda phase, done, total: None)
    return Packed(out, report, time.perf_counter() - started)


@dataclass(frozen=True)
class ForcedText:
    """A prompt with the 64 tokens that the fp32 package goes on with."""

    name: str
    ids: list[int]
    start: int
    """Where the prompt ends."""
    reference: Floats


def open_executor(package: Path) -> Executor:
    return load_executor(open_package(package, verify="sizes"), target="cpu")


def greedy(executor: Executor, ids: list[int]) -> list[int]:
    """The next 64 tokens, whether or not one of them would end the answer."""
    events = list(generate(executor, ids, parameters=SamplingParameters(temperature=0.0), max_tokens=NEW_TOKENS))
    result = events[-1]
    assert isinstance(result, GenerationResult) and len(result.ids) == NEW_TOKENS
    return list(result.ids)


def forced_logits(executor: Executor, ids: list[int]) -> Floats:
    """The package's logits at all positions of a sequence."""
    runner = SequenceRunner(executor, len(ids))
    step = executor.limits.max_tokens
    pieces = [ids[start : start + step] for start in range(0, len(ids), step)]
    return np.concatenate([runner.step(piece, range(len(piece))) for piece in pieces])


def tessera(*arguments: object) -> tuple[dict[str, Any], float]:
    """What a command of its own process prints with --json, and the seconds from its start to its end."""
    command = [sys.executable, "-m", "tessera", *map(str, arguments), "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), seconds
