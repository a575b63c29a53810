"""SHA-256 of files, several at a time: hashlib lets go of the interpreter lock while it works."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

_CHUNK = 2**20


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def sha256_files(paths: Sequence[Path], sizes: Sequence[int]) -> list[str]:
    """The SHA-256 of every file, in order. The largest are begun first, each on a thread of its own."""
    results: list[str | BaseException] = [""] * len(paths)
    order = iter(sorted(range(len(paths)), key=lambda index: -sizes[index]))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                index = next(order, None)
            if index is None:
                return
            try:
                results[index] = sha256_file(paths[index])
            except BaseException as error:  # handed to the caller's thread below
                results[index] = error

    helpers = [threading.Thread(target=work, daemon=True) for _ in range(min(len(paths), os.cpu_count() or 1, 16) - 1)]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    digests: list[str] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        digests.append(result)
    return digests
