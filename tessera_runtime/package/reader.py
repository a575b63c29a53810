"""Opens a package and refuses one that is not, byte for byte, what its manifest says.

Nothing in a package is used before it is checked: the folder must hold exactly the files of the manifest, as plain
files, in their sizes, and with their digests. Links are refused wherever they point. Hard links are not told from
files: the digest already says whose bytes they are.
"""

from __future__ import annotations

import json
import os
import platform
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tessera_runtime.abi import GPU_ABIS, SUPPORTED_ABIS
from tessera_runtime.errors import (
    AbiMismatch,
    DigestMismatch,
    FileMissing,
    FileTruncated,
    ManifestInvalid,
    PackageNotFound,
    ProgramInvalid,
    TargetUnavailable,
    UnexpectedFile,
    UnsafePath,
)
from tessera_runtime.package.digests import sha256_files
from tessera_runtime.package.manifest import Manifest, read_manifest
from tessera_runtime.package.paths import MANIFEST, MAX_PATH_LENGTH, check_path, program_path, shard_path
from tessera_runtime.package.safetensors_reader import SafetensorsFile
from tessera_runtime.package.strict_yaml import MAX_BYTES

WEIGHT_ALIGNMENT = 64
"""Every tensor of a package starts at a multiple of this, so that kernels may load whole vectors."""

_GET_AGAIN = "Get the package again, or pack the model again."

_PROGRAM_KEYS: dict[str, type] = {
    "abi": int,
    "target": str,
    "limits": dict,
    "weights": list,
    "buffers": list,
    "arena": dict,
    "cache": dict,
    "launches": list,
    "layers": list,
    "output": int,
    "groups": dict,
}


@dataclass(frozen=True)
class Package:
    """A package that was checked when it was opened. Its files must not change afterwards."""

    path: Path
    manifest: Manifest

    def file(self, path: str) -> Path:
        """The file at `path` in the package; raises `FileMissing` for one that the manifest does not list."""
        if path != MANIFEST and all(entry.path != path for entry in self.manifest.files):
            raise FileMissing(f"The package {self.path.name!r} has no {path!r}.")
        return self.path / path

    def has(self, path: str) -> bool:
        """Whether the manifest lists `path`."""
        return any(entry.path == path for entry in self.manifest.files)

    def read_bytes(self, path: str) -> bytes:
        """The bytes of a file of the package."""
        return self.file(path).read_bytes()

    def read_text(self, path: str) -> str:
        """The text of a file of the package, which must be UTF-8."""
        try:
            return self.read_bytes(path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ManifestInvalid(f"{path!r} should be UTF-8 text, but byte {error.start} is not.") from None

    def program(self, target: str) -> dict[str, Any]:
        """The program of a target, with its ABI and its top-level keys checked."""
        entry = self.manifest.target(target)
        if entry is None:
            names = ", ".join(repr(known.name) for known in self.manifest.targets)
            raise TargetUnavailable(
                f"The package {self.manifest.name!r} was built for {names}, not for {target!r}; this machine is"
                f" {platform.machine()}.",
                hint=f"Build it with `tessera pack … --target {target}`.",
            )
        path = program_path(target)
        try:
            program = json.loads(self.read_text(path))
        except (ValueError, RecursionError):
            raise ProgramInvalid(f"{path!r} is not JSON.", hint=_GET_AGAIN) from None
        if not isinstance(program, dict):
            raise ProgramInvalid(f"{path!r} should hold one JSON object.", hint=_GET_AGAIN)
        abi, abis = program.get("abi"), _abis(target)
        if type(abi) is not int or abi not in abis:
            raise AbiMismatch(
                f"The program {path!r} has ABI {abi!r}; this runtime runs {_listed(abis)}.",
                hint="Pack the model again with this Tessera, or install the one that packed it.",
            )
        if entry.abi != abi:
            raise AbiMismatch(f"The manifest says ABI {entry.abi} for the target {target!r}, its program says {abi}.")
        for key, kind in _PROGRAM_KEYS.items():
            if type(program.get(key)) is not kind:
                raise ProgramInvalid(f"{path!r} should have a {kind.__name__} under {key!r}.", hint=_GET_AGAIN)
        if program["target"] != target:
            raise ProgramInvalid(f"{path!r} is a program for {program['target']!r}.", hint=_GET_AGAIN)
        return program

    def weights(self, *, tensor_rank: int = 0, pipeline_rank: int = 0) -> SafetensorsFile:
        """The weights of one place in the mesh, mapped and not copied: names to read-only arrays."""
        return SafetensorsFile(self.file(shard_path(tensor_rank, pipeline_rank)), alignment=WEIGHT_ALIGNMENT)


def open_package(path: Path | str, *, verify: Literal["sizes", "digests"] = "digests") -> Package:
    """The package at `path`, after checking it.

    With `verify="digests"` every byte is hashed, so a flipped bit anywhere is refused. `"sizes"` leaves the contents
    unread and is for looking at a package (`inspect`, `plan`), never for running it. Raises a `PackageError`.
    """
    root = Path(path)
    try:
        return _open(root, verify)
    except OSError as error:
        raise FileMissing(
            f"{error.filename or root!s} cannot be read: {error.strerror or error}.", hint="Check the permissions."
        ) from None


def _open(root: Path, verify: str) -> Package:
    manifest = read_manifest(_read_manifest_bytes(root))
    sizes = {name: size for name, size in _walk(root) if name != MANIFEST}
    listed = {entry.path: entry for entry in manifest.files}
    for name in sorted(sizes.keys() - listed.keys()):
        raise UnexpectedFile(
            f"The package {root.name!r} holds {name!r}, which its manifest does not list.",
            hint="Remove it or get the package again.",
        )
    for name in sorted(listed.keys() - sizes.keys()):
        raise FileMissing(f"The package {root.name!r} lacks {name!r}, which its manifest lists.", hint=_GET_AGAIN)
    for name, entry in listed.items():
        if sizes[name] != entry.size:
            raise FileTruncated(
                f"The file {name!r} in the package {root.name!r} has {sizes[name]} bytes;"
                f" the manifest says {entry.size}.",
                hint=_GET_AGAIN,
            )
    if verify == "digests":
        entries = list(listed.values())
        found = sha256_files([root / entry.path for entry in entries], [entry.size for entry in entries])
        for entry, digest in zip(entries, found, strict=True):
            if digest != entry.sha256:
                raise DigestMismatch(
                    f"The file {entry.path!r} in the package {root.name!r} was altered: its SHA-256 is {digest},"
                    f" the manifest says {entry.sha256}.",
                    hint=_GET_AGAIN,
                )
    return Package(root, manifest)


def _read_manifest_bytes(root: Path) -> bytes:
    if not root.is_dir():
        kind = "is not a folder" if root.exists() else "does not exist"
        raise PackageNotFound(f"There is no package at {str(root)!r}: it {kind}.")
    path = root / MANIFEST
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise PackageNotFound(
            f"There is no package at {str(root)!r}: it has no {MANIFEST}.", hint="Make one with `tessera pack`."
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise UnsafePath(f"{MANIFEST} of the package {root.name!r} is not a plain file.")
    if status.st_size > MAX_BYTES:
        raise ManifestInvalid(f"{MANIFEST} has {status.st_size} bytes; the limit is {MAX_BYTES}.")
    return path.read_bytes()


def _walk(root: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every plain file below `root` with its size; raises `UnsafePath` for anything else but folders."""
    with os.scandir(root / prefix) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = prefix + entry.name
            if entry.is_symlink():
                raise UnsafePath(
                    f"{name!r} in the package {root.name!r} is a link; a package holds files only.",
                    hint="Copy the package with its links resolved.",
                )
            if entry.is_dir(follow_symlinks=False):
                if len(name) > MAX_PATH_LENGTH:
                    check_path(name)
                yield from _walk(root, name + "/")
                continue
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                raise UnsafePath(f"{name!r} in the package {root.name!r} is neither a file nor a folder.")
            yield name, status.st_size


def _abis(target: str) -> tuple[int, ...]:
    from tessera_runtime.package.gpu_program_check import is_gpu_target

    return GPU_ABIS if is_gpu_target(target) else SUPPORTED_ABIS


def _listed(values: tuple[int, ...]) -> str:
    return "ABI " + ", ".join(str(value) for value in values)
