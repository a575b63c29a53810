"""Is anybody else using this machine? Counted in CPU seconds, not guessed from a load average.

While something is measured, the processor time of everything that is not the measured process, the hypervisor's theft
included, is what disturbed it. As a program (`python -m benchmarks.cpu.idle`), it watches for a second while doing
nothing itself and prints the share as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LIMIT = 0.03
"""Above this share of all cores' time a measurement does not count."""

_STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6, 7)
"""user, nice, system, irq, softirq, steal; the others are idle time, or counted in these already."""


class MachineBusy(Exception):
    """Others used the machine while it was measured, so nothing is written."""

    def __init__(self, share: float, when: str) -> None:
        super().__init__(
            f"The machine is not idle: {share:.1%} of its processor time went to others {when}, and at most "
            f"{LIMIT:.0%} may. Stop other work and start again."
        )


def busy_seconds(stat: str, ticks: int) -> float:
    """CPU seconds that all cores have spent working since the start of the machine, from the text of /proc/stat."""
    fields = stat.split("\n", 1)[0].split()[1:]
    return sum(int(fields[index]) for index in _BUSY) / ticks


@dataclass(frozen=True)
class Moment:
    """Clocks at one instant."""

    wall: float
    machine: float
    own: float


def now() -> Moment:
    """The clocks of this process, with the children it has waited for, and of the machine."""
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return Moment(time.monotonic(), busy_seconds(_STAT.read_text(), os.sysconf("SC_CLK_TCK")), own)


def others_share(before: Moment, after: Moment, cores: int) -> float:
    """The part of the processor time between two moments that went to anything else; 0 to 1."""
    wall = after.wall - before.wall
    if wall <= 0:
        return 0.0
    others = (after.machine - before.machine) - (after.own - before.own)
    return max(0.0, others) / (wall * cores)


def watch(seconds: float, sleep: Callable[[float], None] = time.sleep) -> float:
    """The share that others take while this process sleeps."""
    before = now()
    sleep(seconds)
    return others_share(before, now(), cores())


def cores() -> int:
    return os.cpu_count() or 1


if __name__ == "__main__":
    print(json.dumps({"others": watch(1.0), "load": os.getloadavg()[0]}))
    sys.exit(0)
