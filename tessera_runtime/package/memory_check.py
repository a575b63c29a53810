"""Checks that what a manifest promises to need in memory is what the programs need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tessera_runtime.errors import ProgramInvalid
from tessera_runtime.package.manifest import ArenaMemory, DeviceMemory, KvMemory, Memory

_WEIGHT_ALIGNMENT = 256


def check_memory(memory: Memory, program: Mapping[str, Any]) -> str:
    """Of a target that runs on the processor. Raises `ProgramInvalid`; returns a sentence on what was seen."""
    limits = program["limits"]
    _check(
        {
            **_promises(memory.arena, memory.kv, program),
            "max_tokens": (memory.max_tokens, limits["max_tokens"]),
            "max_model_len": (memory.max_model_len, limits["max_model_len"]),
        }
    )
    return "as the manifest says"


def check_device_memory(memory: DeviceMemory | None, program: Mapping[str, Any]) -> str:
    """Of a GPU target; `memory` is None if the manifest says nothing of it."""
    if memory is None:
        raise ProgramInvalid(
            "The manifest does not say what the target takes on a device.", hint="Pack the model again."
        )
    _check(
        {
            "weights_bytes": (memory.weights_bytes, device_weights_bytes(program)),
            **_promises(memory.arena, memory.kv, program),
        }
    )
    return "as the manifest says"


def device_weights_bytes(program: Mapping[str, Any]) -> int:
    """What the weights of a GPU target take on its device (docs/spec/program-gpu.md, `weights`)."""
    return sum(-(-weight["bytes"] // _WEIGHT_ALIGNMENT) * _WEIGHT_ALIGNMENT for weight in program["weights"])


def _promises(arena: ArenaMemory, kv: KvMemory, program: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """What the manifest says, and what the program needs."""
    return {
        "arena.bytes": (arena.bytes, program["arena"]["bytes"]),
        "arena.bytes_per_token": (arena.bytes_per_token, program["arena"]["bytes_per_token"]),
        "arena.bytes_per_logit_row": (arena.bytes_per_logit_row, program["arena"]["bytes_per_logit_row"]),
        "kv.bytes_per_block": (kv.bytes_per_block, program["cache"]["bytes_per_block"]),
        "kv.block_tokens": (kv.block_tokens, program["cache"]["block_tokens"]),
    }


def _check(promised: dict[str, tuple[int, int]]) -> None:
    for name, (manifest, actual) in promised.items():
        if actual > manifest or (actual != manifest and not name.startswith("arena")):
            raise ProgramInvalid(f"The manifest says {name} is {manifest}, but the program needs {actual}.")
