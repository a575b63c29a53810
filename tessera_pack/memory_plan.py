"""What a package takes in memory, as its manifest promises it: read off the programs, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tessera_runtime.package.gpu_program_check import is_gpu_target
from tessera_runtime.package.manifest import ArenaMemory, DeviceMemory, KvMemory, Memory
from tessera_runtime.package.memory_check import device_weights_bytes


def main_program(programs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of the CPU or, without it, of the first target: the one that the manifest's own figures are about."""
    return programs.get("cpu") or next(iter(programs.values()))


def memory_plan(programs: Mapping[str, Mapping[str, Any]], weights_bytes: int) -> Memory:
    """`programs` by target; `weights_bytes` of the shards."""
    program = main_program(programs)
    return Memory(
        weights_bytes=weights_bytes,
        arena=_arena(program),
        kv=_kv(program),
        max_tokens=program["limits"]["max_tokens"],
        max_model_len=program["limits"]["max_model_len"],
        devices={
            name: DeviceMemory(weights_bytes=device_weights_bytes(each), arena=_arena(each), kv=_kv(each))
            for name, each in programs.items()
            if is_gpu_target(name)
        },
    )


def _arena(program: Mapping[str, Any]) -> ArenaMemory:
    arena = program["arena"]
    return ArenaMemory(
        bytes=arena["bytes"],
        bytes_per_token=arena["bytes_per_token"],
        bytes_per_logit_row=arena["bytes_per_logit_row"],
    )


def _kv(program: Mapping[str, Any]) -> KvMemory:
    cache = program["cache"]
    return KvMemory(
        block_tokens=cache["block_tokens"],
        bytes_per_block=cache["bytes_per_block"],
        bytes_per_token=cache["bytes_per_block"] // cache["block_tokens"],
    )
