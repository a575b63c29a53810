"""`tessera plan`: what a package needs in memory, known before it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tessera.cli.options import Size, json_option, package_argument

if TYPE_CHECKING:
    from tessera_runtime.package.manifest import DeviceMemory, Manifest, Memory

LENGTHS = (512, 2048, 8192)
PROCESS_BYTES = 160 << 20
"""What Python, NumPy, the tokenizer and the code of the program take; measured, rounded up."""


@click.command("plan")
@package_argument
@click.option("--target", metavar="NAME", help="Plan for this GPU target and the memory of its device.")
@click.option(
    "--memory", type=Size(), help="Memory to plan for, such as 8GiB. [default: what this machine or its device has]"
)
@json_option
def command(package: Path, target: str | None, memory: int | None, as_json: bool) -> None:
    """Say what a package needs in memory and how many users fit.

    A user of length n holds the cache of n tokens, prompt and answer together. Nothing of the package is run or hashed.
    """
    from tessera.cli.output import print_facts, print_json, print_table
    from tessera_runtime.package.reader import open_package
    from tessera_runtime.package.sizes import readable_size

    manifest = open_package(package, verify="sizes").manifest
    device = _device_of(manifest, target)
    total = memory if memory is not None else _memory_of(target if device is not None else None)
    plan = make_plan(manifest.memory, total, device)
    if as_json:
        print_json(plan)
        return
    facts = [
        ("weights", plan["weights_bytes"]),
        ("activations, at most", plan["activations_bytes"]),
        ("graphs and the driver" if device is not None else "interpreter and tokenizer", plan["process_bytes"]),
        ("cache per token", plan["kv_bytes_per_token"]),
        ("left for the cache", plan["cache_bytes"]),
    ]
    print_facts(
        f"{manifest.name} {manifest.version} in {readable_size(total)}",
        [(name, readable_size(size)) for name, size in facts],
    )
    print()
    rows = [(f"{row['tokens']:,}", f"{row['users']:,}", readable_size(row["bytes_per_user"])) for row in plan["users"]]
    print_table("Users that fit", ("tokens each", "users", "cache each"), rows)
    if not plan["fits"]:
        print("The package does not fit: not even one user of the shortest length would have room.")


def make_plan(needs: Memory, total: int, device: DeviceMemory | None = None) -> dict[str, Any]:
    """The plan for `total` bytes, of a device if one is planned for: every size in bytes, and for some lengths how many
    users fit."""
    from tessera_runtime.executor.gpu.memory import SPARE_SHARE

    own = device or needs
    activations = own.arena.bytes + needs.max_tokens * (own.arena.bytes_per_token + own.arena.bytes_per_logit_row)
    left = max(total - own.weights_bytes - activations, 0)
    process = PROCESS_BYTES if device is None else left - int(left * SPARE_SHARE)
    cache = max(left - process, 0)
    block = own.kv.bytes_per_block
    lengths = sorted({length for length in LENGTHS if length < needs.max_model_len} | {needs.max_model_len})
    users = []
    for length in lengths:
        per_user = -(-length // own.kv.block_tokens) * block
        users.append({"tokens": length, "users": cache // per_user if per_user else 0, "bytes_per_user": per_user})
    return {
        "memory_bytes": total,
        "weights_bytes": own.weights_bytes,
        "activations_bytes": activations,
        "process_bytes": process,
        "cache_bytes": cache,
        "kv_bytes_per_token": own.kv.bytes_per_token,
        "kv_bytes_per_block": block,
        "kv_block_tokens": own.kv.block_tokens,
        "max_tokens": needs.max_tokens,
        "max_model_len": needs.max_model_len,
        "users": users,
        "fits": bool(users[0]["users"]),
    }


def _device_of(manifest: Manifest, target: str | None) -> DeviceMemory | None:
    """What is to be planned for: a GPU target's device, or None for this machine's processor."""
    from tessera_runtime.errors import TargetUnavailable
    from tessera_runtime.package.gpu_program_check import is_gpu_target

    names = [each.name for each in manifest.targets]
    if target is not None and target not in names:
        raise TargetUnavailable(
            f"The package has no target {target!r}; it has {', '.join(names)}.", hint="Choose another --target."
        )
    if target is None or not is_gpu_target(target):
        return None
    if target not in manifest.memory.devices:
        raise TargetUnavailable(
            f"The package does not say what {target} takes on a device: an earlier version of Tessera made it.",
            hint="Pack the model again.",
        )
    return manifest.memory.devices[target]


def _memory_of(target: str | None) -> int:
    """Of the device that runs the target, or of this machine for None."""
    from tessera_runtime.errors import TargetUnavailable
    from tessera_runtime.executor.gpu.discovery import found_devices
    from tessera_runtime.executor.gpu.targets import fitting_targets

    if target is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for device in found_devices():
        if fitting_targets(device, [target]):
            return device.memory_bytes
    raise TargetUnavailable(
        f"This machine has no device that runs {target}.", hint="Say how much memory the device has: --memory 80GiB."
    )
