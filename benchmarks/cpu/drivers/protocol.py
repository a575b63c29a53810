"""What a driver reads and prints.

A driver is called with the path of a job, a JSON object:

- `model`: the file or folder to load, `threads`, and `settings`, whose keys are the driver's own,
- `work`: what to measure (`benchmarks.cpu.work.Work`), `prompts`: lists of token ids by their length,
- `windows`: lists of token ids whose perplexity is to be computed, or none,
- `peaks`: the program of `benchmarks.cpu.machine`, or null.

It prints one JSON object in a line per measurement, {"work": name, "tok_s": number}, or {"perplexity": number}, and
last of all {"others": share}: what everything else on the machine took of its processor time meanwhile.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cpu import idle

Job = dict[str, Any]
Logits = NDArray[np.float32]


def serve(measure: Callable[[Job], Iterable[dict[str, Any]]]) -> None:
    """Reads the job, prints what `measure` yields, and how undisturbed it was."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    before = idle.now()
    for row in measure(job):
        print(json.dumps(row), flush=True)
    print(json.dumps({"others": idle.others_share(before, idle.now(), idle.cores())}), flush=True)


def prompts(job: Job, length: int, count: int) -> list[list[int]]:
    """`count` prompts of `length` tokens, no two of which begin alike."""
    found: list[list[int]] = job["prompts"][str(length)][:count]
    if len(found) < count:
        raise SystemExit(f"{count} prompts of {length} tokens are needed, and the job has {len(found)}")
    return found


def speed(work: dict[str, Any], sample: Callable[[], float]) -> dict[str, Any]:
    """The row for one piece of work, `sample` being one measurement in tokens per second."""
    return {"work": work["name"], "tok_s": statistics.median(sample() for _ in range(work["repeats"]))}


def surprise(logits: Logits, following: int) -> float:
    """-log p of the token that follows, in nats."""
    wide = logits.astype(np.float64)
    top = wide.max()
    return float(top + math.log(np.exp(wide - top).sum()) - wide[following])
