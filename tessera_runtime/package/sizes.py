"""Sizes in bytes as people write them: `2MiB`, `720KiB`, `8GB`."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,9}))? ?([A-Za-z]{0,3})", re.ASCII)


def parse_size(text: str) -> int:
    """The number of bytes that `text` means; raises ValueError with a sentence when it means none."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[3].lower() not in _UNITS:
        raise ValueError(f"expected a size such as 512MiB or 8GB, found {text!r}.")
    unit = _UNITS[match[3].lower()]
    fraction = match[2] or ""
    digits = int(match[1] + fraction)
    scale: int = 10 ** len(fraction)
    return digits * unit // scale


def exact_size(size: int) -> str:
    """`size` in the largest binary unit that divides it, so that `parse_size` gives the same number back."""
    for name in ("TiB", "GiB", "MiB", "KiB"):
        unit = _UNITS[name.lower()]
        if size >= unit and size % unit == 0:
            return f"{size // unit}{name}"
    return f"{size}B"


def readable_size(size: float) -> str:
    """`size` rounded for people: `134.5 MiB`."""
    for name in ("TiB", "GiB", "MiB", "KiB"):
        unit = _UNITS[name.lower()]
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} B"
