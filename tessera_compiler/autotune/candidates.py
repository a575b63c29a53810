"""Which blockings are worth measuring, and at which numbers of tokens."""

from __future__ import annotations

from dataclasses import replace

from tessera_compiler.schedule.passes.plan_tiles import ANY_TOKENS, Blocking, default_blocking
from tessera_compiler.targets.cpu.object_code import CPU_CLASSES

POINTS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 512)
"""Numbers of rows at which kernels are timed; boundaries between blockings lie at some of them."""

FIRST_POINTS = (1, 4, 16, 512, 64, 8)
"""Timed first; without all of them a kernel is not tuned."""

MOST_LOGIT_ROWS = 64
"""Rows of logits are at most as many as sequences, so kernels over them are not timed beyond."""

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14)
PANELS = (1, 2, 3, 4, 6, 8)

MOST_WASTED = 1.67
"""With three rows in a block of five, more is computed for nothing than a wider block can gain."""
LEAST_REUSE = 0.6

_EXACT = frozenset({"u8", "u4"})
"""Elements whose sums are integers within a group of columns, beside which those in float live too."""


def points_of(rows: str) -> tuple[int, ...]:
    """The numbers of rows to time a kernel at, in order of importance; `rows` is "T" or "L"."""
    most = MOST_LOGIT_ROWS if rows == "L" else POINTS[-1]
    return tuple(dict.fromkeys(min(point, most) for point in (*FIRST_POINTS, *POINTS)))


def candidates(cpu_class: str, element: str, panels: int, together: int, point: int) -> tuple[Blocking, ...]:
    """Blockings whose sums stay in registers, or nearly, for a step of `point` rows; the defaults come first.

    `panels` and `together` are those of `plan_tiles.output_panels` and `panels_together`.
    """
    defaults = [replace(each, max_tokens=ANY_TOKENS) for each in default_blocking(cpu_class, element, panels, together)]
    fitting = [
        Blocking(ANY_TOKENS, rows, width)
        for rows in ROWS
        for width in sorted({*PANELS, together})
        if panels % width == 0 and width % together == 0 and _fits(cpu_class, element, rows, width, together)
    ]
    usable = [blocking for blocking in (*defaults, *fitting) if is_usable(blocking, point)]
    reuse = {blocking: _reuse(blocking, point) for blocking in usable}
    least = LEAST_REUSE * max(reuse.values())
    return tuple(dict.fromkeys(each for each in usable if reuse[each] >= least or each in defaults))


def variations(blocking: Blocking) -> tuple[Blocking, ...]:
    """The same block, computed in another way: tried where the block itself is among the best."""
    return (replace(blocking, ahead=1 - blocking.ahead),)


def is_usable(blocking: Blocking, point: int) -> bool:
    """Whether a step of `point` rows would not compute much for nothing."""
    return _wasted(blocking, point) <= MOST_WASTED


def _wasted(blocking: Blocking, point: int) -> float:
    """Rows that are computed for one that is wanted."""
    return -(-point // blocking.rows) * blocking.rows / point


def _reuse(blocking: Blocking, point: int) -> float:
    """Products for one operand that is read: what keeps the multipliers fed, as far as registers go. Where there is one
    row, memory is what is waited for, and the width decides only how many streams it is read in.
    """
    return 1.0 if point == 1 else blocking.rows * blocking.panels / (blocking.rows + blocking.panels)


def _fits(cpu_class: str, element: str, rows: int, panels: int, together: int) -> bool:
    """Whether the sums take no more than the registers. One or two more are no disaster, so nothing is left for the
    operands here: the clock decides. Panels that must be together may be computed one after the other.
    """
    bits = CPU_CLASSES[cpu_class].vector_bits
    registers = (16 if cpu_class == "x86-64-v3" else 32) * together
    each = 512 // bits
    copies = 2 if element in _EXACT else 1
    return rows * panels * each * copies <= registers or (rows == 1 and panels * each <= registers)
