"""Progress of long work, on stderr and only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is in all (0 if nobody knows)."""


@contextmanager
def progress_bars(*, enabled: bool | None = None) -> Iterator[Report]:
    """Gives a function to report with; one bar for each thing reported. Says nothing unless stderr is a terminal."""
    if not (sys.stderr.isatty() if enabled is None else enabled):
        yield lambda phase, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as bars:
        known: dict[str, object] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in known:
                known[phase] = bars.add_task(phase, total=total or None)
            bars.update(known[phase], completed=done, total=total or None)  # type: ignore[arg-type]

        yield report
