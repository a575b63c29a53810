"""Packages that `tessera run --from-hf` made, kept under a key of the checkpoint's content.

Packing runs in a process of its own, so that nothing of the compiler stays in the memory of the server.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from tessera.cli.commands.version_command import installed_version

KEY_LENGTH = 24


def packed_checkpoint(
    source: str, dtype: str, kv_dtype: str, cache: Path, report: Callable[[str, float], None]
) -> Path:
    """The package of a checkpoint, a folder or the name of one on the hub; packed now unless it was before.

    The key is made of the checkpoint's bytes, the dtypes and this version of Tessera; names and places do not matter.
    """
    began = time.perf_counter()
    folder = Path(source)
    if not folder.is_dir():
        from tessera_pack.sources import resolve_source

        with resolve_source(source, None) as resolved:
            folder = resolved.directory
    key = checkpoint_key(folder, dtype, kv_dtype)
    package = cache / "packages" / f"{key}.tspkg"
    report("look up checkpoint", time.perf_counter() - began)
    if package.is_dir():
        return package
    began = time.perf_counter()
    package.parent.mkdir(parents=True, exist_ok=True)
    name = _package_name(source)
    # The package appears under its name only when it is whole, so a second server that packs the same waits for nothing
    # and breaks nothing: whoever comes second finds it there.
    done = subprocess.run(
        [sys.executable, "-m", "tessera", "pack", "--from-hf", str(folder), "--out", str(package)]
        + ["--dtype", dtype, "--kv-dtype", kv_dtype, "--name", name],
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode and not package.is_dir():
        raise click.exceptions.Exit(done.returncode)
    report("pack", time.perf_counter() - began)
    return package


def checkpoint_key(folder: Path, dtype: str, kv_dtype: str) -> str:
    """Equal for folders with the same files, whatever they are called."""
    from tessera_runtime.package.digests import sha256_files

    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    digests = sha256_files(files, [path.stat().st_size for path in files])
    digest = hashlib.sha256(f"{installed_version()}\0{dtype}\0{kv_dtype}\0".encode())
    for path, each in zip(files, digests, strict=True):
        digest.update(f"{path.name}\0{each}\0".encode())
    return digest.hexdigest()[:KEY_LENGTH]


def _package_name(source: str) -> str:
    """The last part of the source's name, with what a package's name may not hold replaced."""
    last = source.rstrip("/").rpartition("/")[2] or "model"
    safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in last)
    return safe.lstrip("._-")[:100] or "model"
