"""Writes a safetensors file tensor by tensor: the header is known before the first tensor is.

Every tensor starts at a multiple of 64 bytes. The format allows no gaps, so a tensor whose size is no multiple of 64 is
followed by one of filler bytes; the header itself is padded with spaces.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tessera_pack.layouts import STORAGE, round_up
from tessera_runtime.package.safetensors_reader import FILLER_PREFIX

ALIGNMENT = 64
_DTYPES = {"f32": "F32", "bf16": "BF16", "f16": "F16", "f8_e4m3": "F8_E4M3", "u8": "U8", "u4": "U8"}


class ByteSink(Protocol):
    """Where bytes go."""

    def write(self, data: Any, /) -> Any: ...


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that is to be written: its dtype as recipes spell it, and its physical shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * STORAGE[self.dtype].itemsize


class SafetensorsLayout:
    """The header for the tensors of a plan, in their order, and the size of the whole file."""

    def __init__(self, plans: Sequence[TensorPlan], metadata: dict[str, str] | None = None) -> None:
        self.plans = tuple(plans)
        header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
        position = 0
        for plan in self.plans:
            if plan.name in header or plan.name.startswith(("__metadata__", FILLER_PREFIX)):
                raise ValueError(f"the tensor name {plan.name!r} is taken")
            header[plan.name] = _entry(_DTYPES[plan.dtype], plan.shape, position, position + plan.size)
            position += plan.size
            filler = _filler(plan)
            if filler:
                header[FILLER_PREFIX + plan.name] = _entry("U8", (filler,), position, position + filler)
                position += filler
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        length = round_up(8 + len(text), ALIGNMENT) - 8
        self.prefix = length.to_bytes(8, "little") + text.ljust(length)
        self.file_size = len(self.prefix) + position

    def write(self, sink: ByteSink, arrays: Iterable[NDArray[Any]]) -> None:
        """Writes the file; `arrays` are the tensors of the plan, each taken only when the one before is written."""
        sink.write(self.prefix)
        for plan, array in zip(self.plans, arrays, strict=True):
            if array.shape != plan.shape or array.dtype != STORAGE[plan.dtype]:
                raise ValueError(
                    f"the tensor {plan.name!r} is {array.dtype} {array.shape}, not {plan.dtype} {plan.shape}"
                )
            if array.size:
                sink.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            filler = _filler(plan)
            if filler:
                sink.write(bytes(filler))


def _filler(plan: TensorPlan) -> int:
    return -plan.size % ALIGNMENT


def _entry(dtype: str, shape: tuple[int, ...], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
