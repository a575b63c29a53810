"""Runs drivers one after another, in turn, and refuses samples that somebody disturbed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cpu.idle import LIMIT, MachineBusy
from benchmarks.cpu.prepare import ROOT
from benchmarks.cpu.settings import TESSERA, Candidate, Contender
from benchmarks.cpu.work import Work

ATTEMPTS = 3

Row = dict[str, Any]
Say = Callable[[str], None]
Choice = dict[str, dict[str, Candidate]]
"""By contender, by name of work."""


class DriverFailed(Exception):
    """An engine did not do its work; the message is the last thing it said."""


@dataclass
class Runner:
    """Starts drivers; one at a time, each a process that ends, so that no engine holds a core while another runs."""

    peers: Path
    """The Python of the other engines."""
    prompts: dict[int, list[list[int]]]
    threads: int
    scratch: Path
    under: Sequence[str] = ()
    """A command that is put before every driver."""
    peaks: Path | None = None
    """The program that measures what the machine can do (`machine.build_peaks`)."""
    disturbance: list[float] = field(default_factory=list)
    repeated: int = 0
    bandwidths: dict[str, float] = field(default_factory=dict)
    """By contender: what the memory gave beside its last decode of one user, bytes a second."""
    pause: float = 5.0
    """Seconds to wait after a disturbed measurement, so that a short disturbance can pass."""

    def run(
        self,
        driver: str,
        candidate: Candidate,
        work: Sequence[Work] = (),
        *,
        windows: Sequence[Sequence[int]] = (),
        before: Sequence[str] = (),
        must_be_idle: bool = True,
    ) -> list[Row]:
        """The driver's rows without the last. Raises `DriverFailed`, or `MachineBusy` after the last attempt."""
        job = self.scratch / "job.json"
        job.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "model": str(candidate.model),
            "settings": candidate.settings,
            "threads": self.threads,
            "work": [each.as_job() for each in work],
            "prompts": self.prompts,
            "windows": windows,
            "peaks": str(self.peaks) if self.peaks else None,
        }
        job.write_text(json.dumps(content), encoding="utf-8")
        python = sys.executable if driver == TESSERA else str(self.peers)
        command = [*self.under, *before, python, "-m", f"benchmarks.cpu.drivers.{driver}", str(job)]
        share = 0.0
        for _ in range(ATTEMPTS):
            rows = _rows(command)
            share = rows.pop()["others"]
            if not must_be_idle:
                return rows
            if share <= LIMIT:
                self.disturbance.append(share)
                return rows
            self.repeated += 1
            time.sleep(self.pause)
        raise MachineBusy(share, f"while {candidate.model.name} was measured, {ATTEMPTS} times in a row")

    def look_for_best(
        self, contender: Contender, works: Sequence[Work], say: Say
    ) -> tuple[dict[str, Candidate], dict[str, dict[str, float]]]:
        """For each piece of work the fastest candidate, by one measurement of each; and all figures.

        Where there is no choice, only one piece is measured, to see that it runs.
        """
        works_tried = works if len(contender.candidates) > 1 else works[:1]
        figures: dict[str, dict[str, float]] = {}
        chosen: dict[str, tuple[float, Candidate]] = {}
        for candidate in contender.candidates:
            say(f"trying {contender.name}: {candidate.label}")
            try:
                rows = self.run(contender.driver, candidate, works_tried)
            except DriverFailed as error:
                say(f"  it failed: {error}")
                continue
            figures[candidate.label] = {row["work"]: row["tok_s"] for row in rows}
            for name, rate in figures[candidate.label].items():
                if name not in chosen or rate > chosen[name][0]:
                    chosen[name] = (rate, candidate)
        if chosen and len(contender.candidates) == 1:
            return {work.name: contender.candidates[0] for work in works}, figures
        return {name: candidate for name, (_, candidate) in chosen.items()}, figures

    def round(
        self, contenders: Sequence[Contender], choice: Choice, works: Sequence[Work]
    ) -> dict[str, dict[str, float]]:
        """One sample of everything."""
        samples: dict[str, dict[str, float]] = {}
        for contender in contenders:
            samples[contender.name] = {}
            groups: dict[str, tuple[Candidate, list[Work]]] = {}
            for work in works:
                if candidate := choice[contender.name].get(work.name):
                    groups.setdefault(candidate.label, (candidate, []))[1].append(work)
            for candidate, together in groups.values():
                for row in self.run(contender.driver, candidate, together):
                    samples[contender.name][row["work"]] = row["tok_s"]
                    if "read" in row:
                        self.bandwidths[contender.name] = row["read"]
        return samples


def _rows(command: Sequence[str]) -> list[Row]:
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode or not rows or "others" not in rows[-1]:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit code {result.returncode}"
        raise DriverFailed(f"'{' '.join(command[-3:])}' failed: {reason}")
    return rows
