"""Reads safetensors files strictly and without a copy: a tensor is a view of the mapped file.

The format: eight bytes with the header's length N (little-endian), N bytes of JSON, the data. The JSON maps a tensor's
name to its `dtype`, `shape` and `data_offsets` within the data; `__metadata__` maps strings to strings. Tensors cover
the data without gap or overlap. A file that says otherwise anywhere is refused before a single tensor is handed out.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.errors import FileMissing, WeightsInvalid

MAX_HEADER = 100_000_000
FILLER_PREFIX = "__filler__."
"""Tensors whose names start so are bytes between others, there for alignment; `SafetensorsFile` does not show them."""

_MAX_SIZE = 2**63 - 1

ELEMENT_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Every dtype of the format and the size of an element."""

VIEW_DTYPES = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "BF16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "C64": "<c8",
    "F64": "<f8",
    "I64": "<i8",
    "U64": "<u8",
}
"""What NumPy sees. BF16 comes as its 16 bits; dtypes that are not here come as a flat array of bytes."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: where it lies and what it is."""

    name: str
    dtype: str
    """As the file spells it: `F32`, `BF16`, `U8`, …"""
    shape: tuple[int, ...]
    offset: int
    """From the start of the file, in bytes."""
    size: int

    @property
    def tag(self) -> str:
        """As programs and recipes spell the dtype: `f32`, `bf16`, `u8`, …"""
        return self.dtype.lower()


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a file says about itself, checked against its size."""

    entries: dict[str, TensorEntry]
    """In the order in which the tensors lie in the file."""
    metadata: dict[str, str]
    data_offset: int


class SafetensorsFile(Mapping[str, NDArray[Any]]):
    """An open file: names to read-only arrays that live in the mapping. The arrays stay valid after `close`.

    With `alignment`, a file in which a tensor does not start at a multiple of it is refused.
    The file must not be changed while it is open.
    """

    def __init__(self, path: Path, *, alignment: int = 1) -> None:
        self.path = path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise FileMissing(f"The weights {path.name!r} cannot be opened: {error.strerror}.") from None
        try:
            header = read_header(descriptor, path.name)
            # Mapping an empty range is an error, and there is always a header to map.
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        self.entries = {name: entry for name, entry in header.entries.items() if not name.startswith(FILLER_PREFIX)}
        self.metadata = header.metadata
        for entry in self.entries.values():
            if entry.size and entry.offset % alignment:
                raise WeightsInvalid(
                    f"The tensor {entry.name!r} in {path.name!r} starts at byte {entry.offset}, which is no multiple"
                    f" of {alignment}.",
                    hint="Pack the model again.",
                )

    def __getitem__(self, name: str) -> NDArray[Any]:
        entry = self.entries[name]
        view = VIEW_DTYPES.get(entry.dtype)
        shape = (entry.size,) if view is None else entry.shape
        array: NDArray[Any] = np.ndarray(shape, np.dtype(view or "|u1"), self._map, entry.offset)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def entry(self, name: str) -> TensorEntry:
        """The entry of a tensor; raises `WeightsInvalid` if the file has none of this name."""
        found = self.entries.get(name)
        if found is None:
            raise WeightsInvalid(
                f"The weights {self.path.name!r} lack the tensor {name!r}.", hint="Pack the model again."
            )
        return found

    def prefetch(self) -> None:
        """Asks the system to read the whole file ahead; returns at once."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_WILLNEED)


def read_header(descriptor: int, name: str) -> SafetensorsHeader:
    """The checked header of an open file; `name` is for messages. Raises `WeightsInvalid`."""
    file_size = os.fstat(descriptor).st_size
    if file_size < 8:
        raise _invalid(name, f"it has {file_size} bytes, and a header needs 8")
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if length > MAX_HEADER:
        raise _invalid(name, f"it claims a header of {length} bytes; the limit is {MAX_HEADER}")
    if length > file_size - 8:
        raise _invalid(name, f"it claims a header of {length} bytes but ends after {file_size - 8}")
    raw = os.pread(descriptor, length, 8)
    return parse_header(raw, file_size, name)


def parse_header(raw: bytes, file_size: int, name: str) -> SafetensorsHeader:
    """Checks the JSON of a header against the size of its file."""
    if not raw.startswith(b"{"):
        raise _invalid(name, "its header does not begin with '{'")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _invalid(name, f"its header is not JSON ({reason})") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _invalid(name, "its __metadata__ does not map strings to strings")
    data_offset = 8 + len(raw)
    entries = [_entry(name, tensor, value, data_offset) for tensor, value in header.items()]
    # Empty tensors share their offset with a neighbour; the shorter one stands first.
    entries.sort(key=lambda entry: (entry.offset, entry.size))
    position = data_offset
    for entry in entries:
        if entry.offset != position:
            kind = "leaves a gap before" if entry.offset > position else "overlaps what lies before"
            raise _invalid(name, f"the tensor {entry.name!r} {kind} it")
        position += entry.size
    if position != file_size:
        kind = "is truncated" if file_size < position else "has bytes that no tensor covers"
        raise _invalid(name, f"it {kind}: the header describes {position} bytes, the file has {file_size}")
    return SafetensorsHeader({entry.name: entry for entry in entries}, metadata, data_offset)


def _entry(file: str, name: str, value: Any, data_offset: int) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _invalid(file, f"the tensor {name!r} should have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ELEMENT_BITS:
        raise _invalid(file, f"the tensor {name!r} has the unknown dtype {dtype!r}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _invalid(file, f"the shape or the offsets of the tensor {name!r} are not plain sizes")
    elements = 1
    for extent in shape:
        elements *= extent
        if elements > _MAX_SIZE:
            raise _invalid(file, f"the shape {shape} of the tensor {name!r} is beyond any memory")
    bits = elements * ELEMENT_BITS[dtype]
    begin, end = offsets
    if bits % 8 or end - begin != bits // 8:
        raise _invalid(
            file, f"the tensor {name!r} is {dtype} {shape}, that is {bits // 8} bytes, but its extent is {end - begin}"
        )
    return TensorEntry(name, dtype, tuple(shape), data_offset + begin, end - begin)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _MAX_SIZE for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _invalid(name: str, reason: str) -> WeightsInvalid:
    return WeightsInvalid(f"{name!r} is not a safetensors file that can be trusted: {reason}.")
