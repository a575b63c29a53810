"""The requests of `gpu_measure.time_serving` through transformers, in processes that end when their time is up."""

from __future__ import annotations

import importlib.util
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_transformers import OWN, SETTINGS, Setting, Work

ROOT = Path(__file__).resolve().parent.parent
MODULE = "benchmarks.gpu_transformers"
SAY_SECONDS = 5.0
START_SECONDS = 90.0
"""For imports, the model and the first request; a setting that takes longer is given up."""
LATE_SECONDS = 10.0
TRIAL_SECONDS = 12.0
SETTLED_SECONDS = 5.0
"""A setting is given up after its trial if, since it settled, it was slower than the best so far in the same time."""


@dataclass
class Tried:
    """What became of one setting."""

    setting: str
    seconds: float = 0.0
    done: int = 0
    tokens: int = 0
    """Generated until then."""
    complete: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    """What transformers made of the setting."""
    note: str = ""
    """Why it did not go on to the end."""
    trial: float | None = None
    """Tokens a second between `SETTLED_SECONDS` and `TRIAL_SECONDS`."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class Rival(Exception):
    """A process of transformers could not serve."""


def settings_here() -> tuple[Setting, ...]:
    """`SETTINGS`, the most promising first: with a flash-attention package, those that transformers chooses itself."""
    flash = any(importlib.util.find_spec(name) for name in ("flash_attn", "flash_attn_interface", "kernels"))
    return tuple(sorted(SETTINGS, key=lambda each: each != OWN)) if flash else SETTINGS


def time_transformers(
    config: dict[str, Any],
    lengths: list[tuple[int, int]],
    seed: int,
    seconds: float,
    total: float,
    settings: Sequence[Setting] = (),
    device: str = "cuda",
    command: Sequence[str] = (sys.executable, "-m", MODULE),
) -> list[Tried]:
    """Every setting that was tried, in order. Each serves for `seconds` at most, and none is begun that could not
    be tried within `total`."""
    began = time.perf_counter()
    found: list[Tried] = []
    for setting in settings or settings_here():
        left = total - (time.perf_counter() - began)
        if found and left < START_SECONDS / 3 + TRIAL_SECONDS:
            break
        best = max((each.trial for each in found if each.trial is not None), default=None)
        work = Work(config, lengths, seed, asdict(setting), min(seconds, left), device)
        tried = Tried(setting.label)
        found.append(tried)
        try:
            _follow(tried, [*command, json.dumps(asdict(work))], work.seconds, left, best, len(lengths))
        except Rival as error:
            tried.note = str(error)
        print(f"transformers, {_said(tried, len(lengths))}", flush=True)
    return found


def best_of(found: Sequence[Tried]) -> Tried:
    """The fastest of those that ran as far as they could; raises `Rival` if none generated anything."""
    able = [each for each in found if each.tokens]
    if not able:
        raise Rival("; ".join(f"{each.setting}: {each.note}" for each in found) or "nothing was tried")
    # A trial says less than a whole run: what was given up as slower does not win by its first seconds.
    whole = [each for each in able if not each.note] or able
    return max(whole, key=lambda each: each.tokens_per_second)


def _follow(
    tried: Tried, command: Sequence[str], seconds: float, left: float, best: float | None, requests: int
) -> None:
    """Listens to a process until it has ended or must end."""
    began = heard = said = time.perf_counter()
    end_by = began + min(START_SECONDS, left)
    settled: tuple[float, int] | None = None
    with _listening(command) as (events, errors):
        while True:
            event = _next(events)
            now = time.perf_counter()
            if event is None:
                raise Rival(_last_line(errors) or "the process ended without a word")
            kind = event.get("event")
            if kind == "failed":
                raise Rival(event["message"])
            if kind == "settings":
                tried.facts = {name: value for name, value in event.items() if name != "event"}
            elif kind == "begin":
                # A little longer than it allows itself: it ends once a step is over.
                end_by = now + min(seconds, left) + LATE_SECONDS
            elif kind in ("progress", "end"):
                heard = now
                for name in ("seconds", "done", "tokens", "complete"):
                    setattr(tried, name, event[name])
                if event["failed"] is not None:
                    raise Rival(event["failed"])
                if kind == "end":
                    return
                if settled is None and tried.seconds >= SETTLED_SECONDS:
                    settled = (tried.seconds, tried.tokens)
                elif settled is not None and tried.trial is None and tried.seconds >= TRIAL_SECONDS:
                    tried.trial = (tried.tokens - settled[1]) / (tried.seconds - settled[0])
                    if best is not None and tried.trial < best:
                        tried.note = f"slower than another: given up after {tried.seconds:.0f} s"
                        return
            if now > end_by:
                if not tried.seconds:
                    raise Rival(f"not ready within {now - began:.0f} s")
                # What it said last counts, in all the time that it had.
                tried.seconds += now - heard
                tried.note = "did not end by itself"
                return
            if now - said >= SAY_SECONDS:
                said = now
                print(f"  transformers, {_said(tried, requests)}", flush=True)


def _next(events: queue.Queue[dict[str, Any] | None]) -> dict[str, Any] | None:
    """What a process said; nothing if it is silent, None once it is gone."""
    try:
        return events.get(timeout=0.2)
    except queue.Empty:
        return {}


@contextmanager
def _listening(command: Sequence[str]) -> Iterator[tuple[queue.Queue[dict[str, Any] | None], Path]]:
    """What a process says, and the file of its other output. It is killed at the end, whatever it is doing: none of
    its threads, and nothing that it holds on the device, is left."""
    events: queue.Queue[dict[str, Any] | None] = queue.Queue()
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors"
        with (
            errors.open("wb") as file,
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True) as process,
        ):
            listener = threading.Thread(target=_listen, args=(process.stdout, events.put), daemon=True)
            listener.start()
            try:
                yield events, errors
            finally:
                process.kill()
                process.wait()
                listener.join()


def _listen(lines: Iterable[str], put: Callable[[dict[str, Any] | None], None]) -> None:
    for line in lines:
        put(json.loads(line))
    put(None)


def _last_line(errors: Path) -> str:
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _said(tried: Tried, requests: int) -> str:
    if not tried.seconds:
        return f"{tried.setting}: {tried.note or 'starting'}"
    text = f"{tried.setting}: {tried.done} of {requests} requests, {tried.tokens:,} tokens in {tried.seconds:.0f} s"
    return f"{text}; {tried.note}" if tried.note else text
