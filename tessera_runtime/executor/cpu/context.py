"""The block of fields that a native object works on (docs/spec/program.md, "The native object")."""

from __future__ import annotations

import numpy as np

from tessera_runtime.executor.cpu.memory import address_of, zeroed_memory

CONTEXT_BYTES = 4608
OFFSETS = {
    "weights": 0,
    "arena": 8,
    "cache": 16,
    "token_ids": 24,
    "positions": 32,
    "sequences": 40,
    "block_tables": 48,
    "logit_rows": 56,
    "table_width": 64,
    "tokens": 72,
    "logit_count": 80,
    "launch_limit": 88,
    "counters": 96,
    "yield": 104,
    "threads": 112,
    "stop": 120,
    "timeline": 128,
    "tiles": 136,
    "tile_count": 144,
    "draws": 152,
    "draw_count": 160,
    "draw_scratch": 168,
    "draw_scratch_bytes": 176,
    "generation": 320,
    "finished": 520,
}
"""`finished` is the `seen` field of thread 0: the last generation whose step has returned."""

WORKERS, WORKER_BYTES = 512, 64
"""Where the fields of workers lie: `parked` and `seen`."""

MAX_THREADS = 64
EVERY_LAUNCH = 1 << 62


class Context:
    """The fields by name. The memory must outlive every thread that works on it."""

    def __init__(self) -> None:
        self._fields = zeroed_memory(CONTEXT_BYTES).view(np.int64)
        self.address = address_of(self._fields)

    def __setitem__(self, name: str, value: int) -> None:
        self._fields[OFFSETS[name] >> 3] = value

    def forget_worker(self, worker: int) -> None:
        """Has a worker that is not in native code wait for the step after the last, as one that served it does."""
        at = (WORKERS + WORKER_BYTES * worker) >> 3
        self._fields[at : at + 2] = 0, self["generation"]

    def __getitem__(self, name: str) -> int:
        return int(self._fields[OFFSETS[name] >> 3])
