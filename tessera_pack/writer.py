"""Writes a package so that it is there whole or not at all.

Everything goes into a folder `.<name>.partial-<process id>-<number>` beside the place asked for; each file is hashed as
it is written.
`publish` flushes files and folders to the disk and renames the folder, which is the one moment the package comes into
being. Whatever ends the writing earlier (an exception, Ctrl-C, SIGTERM, SIGHUP) removes the folder. After `kill -9` it
stays behind, under its dot-name; the next pack to the same place finds that nobody holds its lock and removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import itertools
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import msgspec
from numpy.typing import NDArray

from tessera_pack.errors import DiskFull, OutputExists, OutputUnwritable
from tessera_pack.safetensors_writer import SafetensorsLayout
from tessera_runtime.package.manifest import FileEntry, Manifest, write_manifest
from tessera_runtime.package.paths import MANIFEST, check_distinct, check_path
from tessera_runtime.package.sizes import readable_size

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_COPY_CHUNK = 2**22


class PackageWriter:
    """A package being written; use it as a context manager, and call `publish` when all is well.

    with PackageWriter(out, needed_bytes=…) as writer:
        writer.write_text("graph_ir.tssa", text)
        writer.write_weights("weights/shard_tp0_pp0.safetensors", layout, arrays)
        writer.seal(manifest)        # now `writer.path` is a package that can be opened
        writer.publish()

    Leaving the block without `publish` removes everything. Raises an `OutputError`.
    """

    def __init__(self, out: Path | str, *, needed_bytes: int = 0) -> None:
        # abspath, not resolve: a link at `out` is something that exists there, and must not be followed.
        self.out = Path(os.path.abspath(out))
        self._needed = needed_bytes
        self._path: Path | None = None
        self._lock: int | None = None
        self._entries: dict[str, FileEntry] = {}
        self._sealed = False
        self._restore: dict[signal.Signals, Any] = {}

    @property
    def path(self) -> Path:
        """The folder that is being written."""
        if self._path is None:
            raise ValueError("the package is not open for writing")
        return self._path

    @property
    def entries(self) -> tuple[FileEntry, ...]:
        """What has been written so far, sorted by path."""
        return tuple(self._entries[path] for path in sorted(self._entries))

    def __enter__(self) -> PackageWriter:
        parent = self.out.parent
        if os.path.lexists(self.out):
            raise OutputExists(
                f"{str(self.out)!r} exists already; Tessera never overwrites.",
                hint="Remove it or choose another --out.",
            )
        if not parent.is_dir():
            raise OutputUnwritable(
                f"The folder {str(parent)!r} does not exist.", hint="Make it, or choose another --out."
            )
        self._remove_stale()
        self.require_space(self._needed)
        self._catch_signals()
        try:
            self._make_folder()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clean_up()

    def _clean_up(self) -> None:
        try:
            if self._path is not None:
                shutil.rmtree(self._path, ignore_errors=True)
        finally:
            self._path = None
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
            self._release_signals()

    def require_space(self, needed: int) -> None:
        """Raises `DiskFull` unless the file system has room for `needed` more bytes."""
        free = shutil.disk_usage(self.out.parent).free
        if free < needed:
            raise DiskFull(
                f"The package needs {readable_size(needed)}, but {str(self.out.parent)!r} has only"
                f" {readable_size(free)} free.",
                hint="Free some space or choose another --out.",
            )

    def write_bytes(self, path: str, data: bytes) -> None:
        """Adds a file with these bytes."""
        with self.stream(path) as sink:
            sink.write(data)

    def write_text(self, path: str, text: str) -> None:
        """Adds a UTF-8 file."""
        self.write_bytes(path, text.encode("utf-8"))

    def copy_file(self, path: str, source: Path) -> None:
        """Adds a copy of `source`; a link is followed."""
        with self.stream(path) as sink, open(source, "rb") as stream:
            while chunk := stream.read(_COPY_CHUNK):
                sink.write(chunk)

    def write_weights(self, path: str, layout: SafetensorsLayout, arrays: Iterable[NDArray[Any]]) -> None:
        """Adds a safetensors file; `arrays` are made one at a time, as they are written."""
        self.require_space(layout.file_size)
        with self.stream(path) as sink:
            layout.write(sink, arrays)

    @contextlib.contextmanager
    def stream(self, path: str) -> Iterator[HashingSink]:
        """Adds a file that is written piece by piece: `with writer.stream("assets/x") as sink: sink.write(…)`."""
        check_path(path)
        check_distinct([*self._entries, MANIFEST, path])
        target = self.path / path
        with self._disk_errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb", buffering=0) as file:
                sink = HashingSink(file.write)
                yield sink
                os.fsync(file.fileno())
        self._entries[path] = FileEntry(path=path, size=sink.size, sha256=sink.hexdigest())
        self._sealed = False

    def seal(self, manifest: Manifest) -> Manifest:
        """Writes `manifest.yaml` with the list of files; afterwards `path` can be opened as a package.

        May be called again, to add what was learnt from running the package. Returns the manifest as written.
        """
        complete = msgspec.structs.replace(manifest, files=self.entries)
        data = write_manifest(complete)
        with self._disk_errors():
            target = self.path / MANIFEST
            with open(target, "wb", buffering=0) as file:
                HashingSink(file.write).write(data)
                os.fsync(file.fileno())
        self._sealed = True
        return complete

    def publish(self) -> Path:
        """Makes the package appear at `out`, whole and on the disk. Nothing can be written afterwards."""
        if not self._sealed:
            raise ValueError("the package has files that its manifest does not list; call seal first")
        folder = self.path
        with self._disk_errors():
            for root, _, _ in os.walk(folder, topdown=False):
                _fsync_folder(Path(root))
        # rename replaces an empty folder silently, and a file was refused at the start: look once more.
        if os.path.lexists(self.out):
            raise OutputExists(f"{str(self.out)!r} came into being while the package was packed.")
        with self._disk_errors():
            os.rename(folder, self.out)
        self._path = None
        _fsync_folder(self.out.parent)
        return self.out

    def _prefix(self) -> str:
        return f".{self.out.name}.partial-"

    def _make_folder(self) -> None:
        # Whoever holds the lock is alive: the system lets go of it when the process ends, however it ends. Between
        # making and locking, another pack may take the folder for a stale one; then the next number is tried.
        for number in itertools.count():
            folder = self.out.parent / f"{self._prefix()}{os.getpid()}-{number}"
            with self._disk_errors():
                try:
                    folder.mkdir()
                except FileExistsError:
                    continue
                self._path = folder
                self._lock = _locked(folder)
            if self._lock is not None:
                return

    def _remove_stale(self) -> None:
        for folder in self.out.parent.glob(f"{glob.escape(self._prefix())}*"):
            if folder.is_symlink() or not folder.is_dir():
                continue
            with contextlib.suppress(OSError):
                lock = _locked(folder)
                if lock is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(lock)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise self._disk_full() from None
            if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise OutputUnwritable(
                    f"The folder {str(self.out.parent)!r} cannot be written to: {error.strerror}.",
                    hint="Choose another --out.",
                ) from None
            raise

    def _disk_full(self) -> DiskFull:
        written = sum(entry.size for entry in self._entries.values())
        free = shutil.disk_usage(self.out.parent).free
        needed = f"; the whole package needs {readable_size(self._needed)}" if self._needed else ""
        return DiskFull(
            f"The disk became full at {str(self.out.parent)!r} after {readable_size(written)} of finished files, with"
            f" {readable_size(free)} free{needed}. Nothing was left behind.",
            hint="Free some space or choose another --out.",
        )

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets only the main thread set handlers; whoever runs us in another has its own.
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                self._restore[number] = signal.signal(number, _leave)

    def _release_signals(self) -> None:
        for number, handler in self._restore.items():
            signal.signal(number, handler)
        self._restore.clear()


class HashingSink:
    """Takes bytes, hashes them, and hands them on to a raw `write`, which may take fewer than it is given."""

    def __init__(self, write: Callable[[memoryview], int | None]) -> None:
        self._write = write
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Writes all of `data`."""
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self.size += len(view)
        while len(view):
            view = view[self._write(view) or 0 :]

    def hexdigest(self) -> str:
        """The SHA-256 of everything written."""
        return self._digest.hexdigest()


def _leave(number: int, frame: FrameType | None) -> None:
    # Not an Exception: code that handles every Exception must not handle the end of the process.
    raise SystemExit(128 + number)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock, or None when another process holds it or has removed the folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
