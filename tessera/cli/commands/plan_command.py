"""`tessera plan`: what a package needs in memory, known before it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tessera.cli.options import Size, json_option, package_argument

if TYPE_CHECKING:
    from tessera_runtime.package.manifest import Memory

LENGTHS = (512, 2048, 8192)
PROCESS_BYTES = 160 << 20
"""What Python, NumPy, the tokenizer and the code of the program take; measured, rounded up."""


@click.command("plan")
@package_argument
@click.option("--memory", type=Size(), help="Memory to plan for, such as 8GiB. [default: what this machine has]")
@json_option
def command(package: Path, memory: int | None, as_json: bool) -> None:
    """Say what a package needs in memory and how many users fit.

    A user of length n holds the cache of n tokens, prompt and answer together. Nothing of the package is run or hashed.
    """
    from tessera.cli.output import print_facts, print_json, print_table
    from tessera_runtime.package.reader import open_package
    from tessera_runtime.package.sizes import readable_size

    manifest = open_package(package, verify="sizes").manifest
    total = memory if memory is not None else _machine_memory()
    plan = make_plan(manifest.memory, total)
    if as_json:
        print_json(plan)
        return
    facts = [
        ("weights", plan["weights_bytes"]),
        ("activations, at most", plan["activations_bytes"]),
        ("interpreter and tokenizer", plan["process_bytes"]),
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


def make_plan(needs: Memory, total: int) -> dict[str, Any]:
    """The plan for `total` bytes: every size in bytes, and for some lengths how many users fit."""
    arena = needs.arena
    activations = arena.bytes + needs.max_tokens * (arena.bytes_per_token + arena.bytes_per_logit_row)
    cache = max(total - needs.weights_bytes - activations - PROCESS_BYTES, 0)
    block = needs.kv.bytes_per_block
    lengths = sorted({length for length in LENGTHS if length < needs.max_model_len} | {needs.max_model_len})
    users = []
    for length in lengths:
        per_user = -(-length // needs.kv.block_tokens) * block
        users.append({"tokens": length, "users": cache // per_user if per_user else 0, "bytes_per_user": per_user})
    return {
        "memory_bytes": total,
        "weights_bytes": needs.weights_bytes,
        "activations_bytes": activations,
        "process_bytes": PROCESS_BYTES,
        "cache_bytes": cache,
        "kv_bytes_per_token": needs.kv.bytes_per_token,
        "kv_bytes_per_block": block,
        "kv_block_tokens": needs.kv.block_tokens,
        "max_tokens": needs.max_tokens,
        "max_model_len": needs.max_model_len,
        "users": users,
        "fits": bool(users[0]["users"]),
    }


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
