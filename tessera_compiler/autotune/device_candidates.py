"""Which blockings of a product are worth measuring on a device, and at which numbers of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import product

from tessera_compiler.autotune.choosing import chosen_at
from tessera_compiler.autotune.device_subjects import DeviceSubject
from tessera_compiler.schedule.device_blocking import (
    LEAST_ROWS,
    MOST_STACKED,
    TURNED,
    DeviceBlocking,
    broken_rule,
    least_depth,
)
from tessera_compiler.schedule.physical import PANEL
from tessera_compiler.targets.triton.architectures import architecture_of

POINTS = (1, 16, 64, 128, 256, 512, 2048)
"""Numbers of rows at which kernels are timed; boundaries between blockings lie at some of them."""

FIRST_POINTS = (1, 2048, 64, 256)
"""Timed first; without all of them a kernel is not tuned."""

MOST_LOGIT_ROWS = 256
"""Rows of logits are at most as many as sequences."""

MOST_CANDIDATES = 44
"""At one point. What compiling takes grows with them."""
MOST_AROUND = 24
"""Of forms whose candidates are like the default in most."""

_WARP = 32
_MOST_SUMS, _LEAST_SUMS = 128, 4
"""That a thread keeps in registers."""
_ROOM_LEFT = 2048
"""Bytes of shared memory that a kernel takes besides its operands."""
_FREE = ("bf16", "f16")
"""Forms whose rounds may have any number of columns."""
_FLAGS = tuple(field.name for field in fields(DeviceBlocking))[6:]
"""Ways to compute a block that are on or off."""


@dataclass(frozen=True)
class _Grid:
    """Blockings for a stretch of numbers of rows: every combination."""

    rows: tuple[int, ...]
    outputs: tuple[int, ...]
    depth: tuple[int, ...]
    warps: tuple[int, ...]
    stages: tuple[int, ...]
    flags: tuple[str, ...] = ()
    """Those that are on; a grid with one that blockings do not have is empty."""

    def blockings(self) -> Iterator[DeviceBlocking]:
        if not set(self.flags) <= set(_FLAGS):
            return
        on = dict.fromkeys(self.flags, 1)
        for numbers in product(self.rows, self.outputs, self.depth, self.warps, self.stages):
            yield DeviceBlocking(0, *numbers, **on)


_GRIDS: dict[int, tuple[_Grid, ...]] = {
    # Few rows: weights are streamed, by many instances or with much under way.
    16: (
        _Grid((16,), (16, 32), (64, 128, 256), (MOST_STACKED,), (3, 4, 6), ("stacked",)),
        _Grid((16,), (16, 32), (128, 256), (2, 4), (4, 6)),
        _Grid((16,), (16, 32), (512,), (4,), (3,)),
        _Grid((16,), (16, 32), (128, 256), (2, 4), (4, 6), ("descriptors",)),
        _Grid((16,), (64,), (64, 128, 256), (4,), (4, 6), ("turned",)),
        _Grid((16,), (128,), (64, 128), (4,), (4,), ("turned",)),
        _Grid((16,), (64,), (64, 128), (4,), (4, 6), ("turned", "descriptors")),
    ),
    64: (
        _Grid((64,), (16, 32, 64), (64, 128), (4,), (4, 6)),
        _Grid((64,), (128,), (64, 128), (4,), (4,)),
        _Grid((64,), (64, 128), (64, 128), (4,), (4, 6), ("turned",)),
        _Grid((32,), (32, 64), (128,), (4,), (4,)),
        _Grid((64,), (16, 32), (64, 128), (4,), (4, 6), ("descriptors",)),
    ),
    # Many rows: shapes for the matrix units.
    256: (
        _Grid((64,), (32, 64, 128), (64, 128), (4,), (3, 5)),
        _Grid((128,), (32, 64, 128), (64,), (4, 8), (3, 4)),
        _Grid((64, 128), (64, 128), (64,), (4,), (4, 6), ("descriptors",)),
        _Grid((128,), (128, 256), (64,), (8,), (3, 4), ("descriptors",)),
        _Grid((128,), (64, 128), (128,), (4, 8), (2, 3), ("descriptors",)),
        _Grid((256,), (64, 128), (64,), (8,), (3, 4), ("descriptors",)),
    ),
    POINTS[-1]: (
        _Grid((128,), (64, 128), (64,), (4, 8), (3, 4)),
        _Grid((128,), (256,), (64,), (8,), (3,)),
        _Grid((256,), (64, 128), (64,), (8,), (3,)),
        _Grid((128,), (64, 128), (64,), (4, 8), (3, 4), ("descriptors",)),
        _Grid((128,), (256,), (64,), (8,), (3, 4), ("descriptors",)),
        _Grid((256,), (64, 128), (64,), (8,), (3, 4), ("descriptors",)),
        _Grid((128,), (128, 256), (128,), (8,), (2, 3), ("descriptors",)),
    ),
}
"""Up to how many rows they are worth a trial, for forms whose rounds may have any number of columns."""


def points_of(rows: str) -> tuple[int, ...]:
    """The numbers of rows to time a kernel at, in order of importance; `rows` is "T" or "L"."""
    most = MOST_LOGIT_ROWS if rows == "L" else POINTS[-1]
    return tuple(point for point in dict.fromkeys((*FIRST_POINTS, *POINTS)) if point <= most)


def device_candidates(subject: DeviceSubject, point: int) -> tuple[DeviceBlocking, ...]:
    """Blockings that fit and keep the product's bits, for a step of `point` rows: the default there, then others."""
    default = replace(chosen_at(subject.defaults, point), max_tokens=0)
    found = [default]
    if subject.form in _FREE:
        most = next(most for most in _GRIDS if point <= most)
        found += [_fitted(subject, each) for grid in _GRIDS[most] for each in grid.blockings()]
    if subject.form not in _FREE or sum(_is_usable(subject, each) for each in found) < MOST_CANDIDATES // 3:
        found += [_fitted(subject, each) for each in _around(default, point)]
    usable = dict.fromkeys(each for each in found if each == default or _is_usable(subject, each))
    return tuple(usable)[: MOST_CANDIDATES if subject.form in _FREE else MOST_AROUND]


def _fitted(subject: DeviceSubject, blocking: DeviceBlocking) -> DeviceBlocking:
    """Groups of outputs decide how many a block has, where there are any."""
    return replace(blocking, outputs=subject.together * PANEL) if subject.together > 1 else blocking


def _around(default: DeviceBlocking, point: int) -> Iterator[DeviceBlocking]:
    """Those that differ in one number, then in two, and so on."""
    choices = {
        "stages": (default.stages, default.stages - 1, default.stages + 1, default.stages + 2),
        "outputs": (default.outputs, default.outputs // 2, default.outputs * 2),
        "warps": tuple(dict.fromkeys((default.warps, 4, 8, 2))),
        "rows": (default.rows, default.rows // 2, default.rows // 4, default.rows * 2),
    }
    combinations = [dict(zip(choices, numbers, strict=True)) for numbers in product(*choices.values())]
    combinations.sort(key=lambda each: sum(each[name] != getattr(default, name) for name in each))
    for each in combinations:
        if each["rows"] <= max(default.rows, 2 * point):
            yield replace(default, **each)


def _is_usable(subject: DeviceSubject, blocking: DeviceBlocking) -> bool:
    outputs = subject.panels * PANEL
    if min(blocking.rows, blocking.outputs) < LEAST_ROWS or blocking.warps < 1 or blocking.stages < 2:
        return False
    if blocking.descriptors and not architecture_of(subject.target).descriptors:
        return False
    if blocking.stacked and (subject.splits == 1 or blocking.depth > subject.depth // subject.splits):
        return False
    if outputs % blocking.outputs or blocking.depth < least_depth(subject.form) or blocking.depth > 2 * subject.depth:
        return False
    # Sums of a part, or of a group, stand beside those of which they become a part.
    kinds = (2 if subject.form in ("u8", "f8_e4m3") else 1) + int(subject.splits > 1)
    kinds = subject.splits if blocking.stacked else kinds
    sums = blocking.rows * blocking.outputs * subject.parts * kinds / (_WARP * blocking.warps)
    if not _LEAST_SUMS <= sums <= _MOST_SUMS or _shared_bytes(subject, blocking) > _room(subject.target):
        return False
    return broken_rule(subject.target, subject.form, (*subject.defaults, blocking)) is None


def _shared_bytes(subject: DeviceSubject, blocking: DeviceBlocking) -> int:
    bits_of_rows, bits_of_weights = {"f32": (32, 32), "bf16": (16, 16), "f16": (16, 16)}.get(subject.form, (8, 8))
    if subject.form in TURNED:
        bits_of_rows, bits_of_weights = 16, 4 if subject.form == "bf16xu4" else 8
    bits = blocking.rows * bits_of_rows + blocking.outputs * subject.parts * bits_of_weights
    columns = blocking.depth * (subject.splits if blocking.stacked else 1)
    return columns * bits * blocking.stages // 8


def _room(target: str) -> int:
    return architecture_of(target).shared_bytes - _ROOM_LEFT
