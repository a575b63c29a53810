"""Which paths a package may hold. One narrow rule, so that no file system can read a name differently than another."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tessera_runtime.errors import UnsafePath

MANIFEST = "manifest.yaml"
GRAPH_IR = "graph_ir.tssa"
FOLDERS = ("assets", "schedule_cache", "tile_kernels", "tokenizer", "weights")
PATH_PATTERN = r"^[A-Za-z0-9_+@=,-][A-Za-z0-9._+@=,-]*(/[A-Za-z0-9_+@=,-][A-Za-z0-9._+@=,-]*)*$"
MAX_PATH_LENGTH = 400
MAX_COMPONENT_LENGTH = 200

_PATH = re.compile(PATH_PATTERN.removeprefix("^").removesuffix("$"), re.ASCII)


def check_path(path: str) -> None:
    """Raises `UnsafePath` unless `path` is a plain relative path that stays inside the package."""
    if len(path) > MAX_PATH_LENGTH or any(len(part) > MAX_COMPONENT_LENGTH for part in path.split("/")):
        raise UnsafePath(
            f"A file name of {len(path)} characters in the package is too long: {path[:60]!r}….", hint=_HINT
        )
    if _PATH.fullmatch(path) is None:
        raise UnsafePath(f"The path {path!r} may not stand in a package: {_reason(path)}.", hint=_HINT)


def check_distinct(paths: Iterable[str]) -> None:
    """Raises `UnsafePath` when two paths differ in case alone, or one is both a file and a folder."""
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        key = path.lower()
        if key in seen:
            raise UnsafePath(f"The paths {seen[key]!r} and {path!r} clash where case does not count.", hint=_HINT)
        seen[key] = path
        parts = path.split("/")
        for end in range(1, len(parts)):
            folder = "/".join(parts[:end])
            known = folders.setdefault(folder.lower(), folder)
            if known != folder:
                raise UnsafePath(f"The folders {known!r} and {folder!r} clash where case does not count.", hint=_HINT)
    for key, path in seen.items():
        if key in folders:
            raise UnsafePath(f"The path {path!r} is both a file and a folder.", hint=_HINT)


def shard_path(tensor_rank: int, pipeline_rank: int) -> str:
    """Where the weights of one place in the mesh lie."""
    return f"weights/shard_tp{tensor_rank}_pp{pipeline_rank}.safetensors"


def program_path(target: str) -> str:
    """Where the program of a target lies."""
    return f"tile_kernels/{target}/program.json"


_HINT = "The package was not written by Tessera or was altered; get it again from where it came from."


def _reason(path: str) -> str:
    if not path:
        return "it is empty"
    if path.startswith("/"):
        return "it is absolute"
    if "\\" in path:
        return "it holds a backslash"
    if any(part in {".", ".."} for part in path.split("/")):
        return "it climbs out of its folder"
    if any(part.startswith(".") for part in path.split("/")):
        return "it is hidden"
    if "//" in path or path.endswith("/"):
        return "a component is empty"
    return "only ASCII letters, digits and . _ + @ = , - are allowed"
