"""How much an engine can hold: from what was asked for, what the program allows and what the machine has free."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tessera_runtime.engine.core import EngineLimits
from tessera_runtime.engine.settings import EngineSettings
from tessera_runtime.errors import DeviceMemoryTooSmall, InvalidRequest
from tessera_runtime.executor.drawing import DrawingExecutor
from tessera_runtime.executor.interface import Executor, ExecutorLimits

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_UNKNOWN_MEMORY = 4 << 30
"""Taken to be free where the system does not say."""


def plan_for(settings: EngineSettings, executor: Executor) -> EngineLimits:
    """The plan for an executor on this machine; raises as `plan_engine` does, and `DeviceMemoryTooSmall`."""
    if isinstance(executor, DrawingExecutor):
        # A device is there for the model alone, and the executor has already put its own needs aside.
        free, block = executor.free_memory(), executor.limits.bytes_per_block
        if settings.pages is None and settings.kv_memory is None and free < block:
            raise DeviceMemoryTooSmall(
                f"The weights and the largest step leave {free} bytes of the device's memory to the KV cache, and one "
                f"block of it takes {block}.",
                hint="Free memory of the device, or serve with --target cpu.",
            )
        return plan_engine(settings, executor.limits, 2 * free)
    return plan_engine(settings, executor.limits, free_memory())


def plan_engine(settings: EngineSettings, program: ExecutorLimits, free_bytes: int) -> EngineLimits:
    """Raises `InvalidRequest` for settings beyond what the program allows, or a cache that holds nothing.

    Unless the settings say how large the cache is, it takes at most half of `free_bytes`.
    """
    batch_tokens = _within("max_batch_tokens", settings.max_batch_tokens, program.max_tokens)
    model_len = _within("max_model_len", settings.max_model_len, program.max_model_len)
    # A step must have a token for each sequence, or some would wait for ever.
    sequences = min(settings.max_sequences, batch_tokens)
    useful = sequences * -(-model_len // program.block_tokens)
    if settings.pages is not None:
        blocks = min(settings.pages, useful)
    else:
        room = free_bytes // 2 if settings.kv_memory is None else settings.kv_memory
        blocks = min(room // program.bytes_per_block, useful)
    if blocks < 1:
        raise InvalidRequest(
            f"The KV cache may take less than one block of {program.bytes_per_block} bytes.",
            hint="Give the engine more --kv-memory.",
        )
    return EngineLimits(
        max_batch_tokens=batch_tokens,
        max_sequences=sequences,
        max_model_len=min(model_len, blocks * program.block_tokens),
        cache_blocks=blocks,
        lane_seats=tuple(max(1, int(share * sequences)) for share in settings.lane_shares),
        prefix_reuse=settings.prefix_reuse,
    )


def free_memory() -> int:
    """Bytes that this process could still take: what the system has available, or its control group leaves."""
    free = _UNKNOWN_MEMORY
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) << 10
    for limit, usage in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max" means no limit
            free = min(free, max(int(Path(limit).read_text()) - int(Path(usage).read_text()), 0))
    return free


def _within(name: str, wanted: int | None, most: int) -> int:
    if wanted is not None and wanted > most:
        raise InvalidRequest(
            f"{name} is {wanted}, and the package allows {most}.", hint="Ask for less, or pack the model with more."
        )
    return most if wanted is None else wanted
