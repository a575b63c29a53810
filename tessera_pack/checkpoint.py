"""Reads a Hugging Face checkpoint's tensors from its safetensors shards, some rows at a time.

Nothing is mapped: mapped pages would count as this process's memory, and a checkpoint may be larger than the machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_pack.errors import CheckpointInvalid, CheckpointNotFound, PickleRefused, ShapeMismatch
from tessera_pack.layouts import from_bf16
from tessera_runtime.errors import WeightsInvalid
from tessera_runtime.package.safetensors_reader import VIEW_DTYPES, TensorEntry, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_READABLE = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class CheckpointTensor:
    """One tensor of a checkpoint."""

    name: str
    shard: Path
    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it."""


class Checkpoint:
    """The weights of a checkpoint folder: `model.safetensors`, or the shards of `model.safetensors.index.json`.

    Opening reads and checks the headers of all shards. Raises a `CheckpointError` for whatever is wrong.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        if not self.directory.is_dir():
            kind = "is a file" if self.directory.exists() else "does not exist"
            raise CheckpointNotFound(
                f"There is no checkpoint at {str(directory)!r}: it {kind}.",
                hint="Give the folder that holds config.json and the safetensors files.",
            )
        self._shards: dict[str, Path] = {}
        self._entries: dict[str, TensorEntry] = {}
        if (self.directory / INDEX).is_file():
            self._open_index()
        elif (self.directory / SINGLE).is_file():
            self._open_shard(self.directory / SINGLE)
        else:
            self._open_unnamed()

    @property
    def tensors(self) -> Mapping[str, CheckpointTensor]:
        """Every tensor by name, in the order of the shards."""
        return {
            name: CheckpointTensor(name, self._shards[name], entry.shape, entry.dtype)
            for name, entry in self._entries.items()
        }

    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._entry(name).shape

    def bytes(self) -> int:
        """The size of all tensors in the checkpoint."""
        return sum(entry.size for entry in self._entries.values())

    def parameters(self) -> int:
        """The number of elements of all tensors."""
        return sum(int(np.prod(entry.shape, dtype=np.int64)) for entry in self._entries.values())

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises unless the checkpoint has the tensor in this shape and a floating-point dtype."""
        entry = self._entry(name)
        if entry.shape != tuple(shape):
            raise ShapeMismatch(
                f"The tensor {name!r} in {self._shards[name].name!r} has shape {_shape(entry.shape)};"
                f" config.json calls for {_shape(shape)}.",
                hint="The weights and config.json belong to different models.",
            )
        self._require_readable(name, entry)

    def read(self, name: str) -> NDArray[np.float32]:
        """The whole tensor as float32."""
        entry = self._entry(name)
        return self._load(name, entry, 0, _elements(entry)).reshape(entry.shape)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start..stop` of a tensor (along its first axis) as float32; nothing else of it is read.

        A single number is one row.
        """
        entry = self._entry(name)
        shape = entry.shape or (1,)
        row = _elements(entry) // max(shape[0], 1)
        return self._load(name, entry, start * row, stop * row).reshape(stop - start, *shape[1:])

    def read_stored(self, name: str) -> NDArray[Any]:
        """The whole tensor as it is stored (bf16 as its 16 bits); `as_float32` makes numbers of it."""
        entry = self._entry(name)
        self._require_readable(name, entry)
        return self._read(name, entry, 0, _elements(entry)).reshape(entry.shape)

    def _load(self, name: str, entry: TensorEntry, start: int, stop: int) -> NDArray[np.float32]:
        self._require_readable(name, entry)
        return as_float32(self._read(name, entry, start, stop))

    def _read(self, name: str, entry: TensorEntry, start: int, stop: int) -> NDArray[Any]:
        stored = np.empty(stop - start, np.dtype(VIEW_DTYPES[entry.dtype]))
        view = memoryview(stored.view(np.uint8).data)
        shard = self._shards[name]
        with open(shard, "rb", buffering=0) as stream:
            stream.seek(entry.offset + start * stored.itemsize)
            filled = 0
            while filled < len(view):
                count = stream.readinto(view[filled:])
                if not count:
                    raise CheckpointInvalid(f"The shard {shard.name!r} ended while the tensor {name!r} was being read.")
                filled += count
        return stored

    def _entry(self, name: str) -> TensorEntry:
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointInvalid(
                f"The checkpoint {self.directory.name!r} has no tensor {name!r}, which the model needs.",
                hint="Check that the download is complete.",
            )
        return entry

    def _require_readable(self, name: str, entry: TensorEntry) -> None:
        if entry.dtype not in _READABLE:
            raise CheckpointInvalid(
                f"The tensor {name!r} in {self._shards[name].name!r} is stored as {entry.dtype}; weights may be"
                f" {', '.join(_READABLE)}.",
                hint="Get the checkpoint in bf16 or fp32; one that is quantized already cannot be packed.",
            )

    def _open_index(self) -> None:
        weight_map = _weight_map(self.directory / INDEX)
        for shard in sorted(set(weight_map.values())):
            if not _plain_name(shard):
                raise CheckpointInvalid(f"{INDEX} names the shard {shard!r}, which is not a plain file name.")
            if not (self.directory / shard).is_file():
                raise CheckpointInvalid(
                    f"The shard {shard!r}, which {INDEX} names, is missing.", hint="Download the checkpoint again."
                )
            self._open_shard(self.directory / shard)
        for name, shard in weight_map.items():
            if name not in self._entries or self._shards[name].name != shard:
                raise CheckpointInvalid(
                    f"{INDEX} says that {shard!r} holds the tensor {name!r}, but it does not.",
                    hint="Download the checkpoint again.",
                )

    def _open_unnamed(self) -> None:
        shards = sorted(self.directory.glob("*.safetensors"))
        if len(shards) == 1:
            self._open_shard(shards[0])
            return
        if shards:
            raise CheckpointNotFound(
                f"The folder {self.directory.name!r} has {len(shards)} safetensors files"
                f" but no {INDEX} that says which to use."
            )
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in self.directory.glob(pattern))
        if pickled:
            raise PickleRefused(
                f"The weights in {self.directory.name!r} are pickled ({pickled[0]!r}); reading a pickle can run code.",
                hint="Save the model again as safetensors (save_pretrained does), or get a revision that has them.",
            )
        raise CheckpointNotFound(
            f"The folder {self.directory.name!r} has no weights: neither {SINGLE!r} nor {INDEX!r}.",
            hint="Give the folder that holds config.json and the safetensors files.",
        )

    def _open_shard(self, shard: Path) -> None:
        try:
            descriptor = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointInvalid(f"The shard {shard.name!r} cannot be opened: {error.strerror}.") from None
        try:
            header = read_header(descriptor, shard.name)
        except WeightsInvalid as error:
            raise CheckpointInvalid(error.message, hint="Download the checkpoint again.") from None
        finally:
            os.close(descriptor)
        for name, entry in header.entries.items():
            if name in self._entries:
                raise CheckpointInvalid(
                    f"The tensor {name!r} stands in both {self._shards[name].name!r} and {shard.name!r}."
                )
            self._entries[name] = entry
            self._shards[name] = shard


def as_float32(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Stored values (f32, f16, f64, or the bits of bf16 as uint16) as float32."""
    if stored.dtype == np.uint16:
        return from_bf16(stored)
    with np.errstate(over="ignore"):
        return stored.astype(np.float32, copy=False)


def _weight_map(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        raise CheckpointInvalid(
            f"{path.name!r} is not an index: it should be JSON with a weight_map.",
            hint="Download the checkpoint again.",
        ) from None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointInvalid(f"The weight_map of {path.name!r} should map tensor names to file names.")
    return weight_map


def _plain_name(name: str) -> bool:
    return bool(name) and "\0" not in name and name not in {".", ".."} and Path(name).name == name


def _elements(entry: TensorEntry) -> int:
    return entry.size // np.dtype(VIEW_DTYPES[entry.dtype]).itemsize if entry.dtype in VIEW_DTYPES else entry.size


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(str(extent) for extent in shape) + "]"
