"""How products are blocked on devices: what a blocking is, safe ones, and what a blocking may not change.

A blocking decides speed, never a result. So all blockings of a product add in the same order: with the same kind of
instruction of the matrix units, over the same parts of its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.physical import PANEL, WORD_COLUMNS

LEAST_ROWS = 16
LEAST_DEPTH = 32
WARP_GROUP_ROWS = 64
"""Of a product's left operand, for the instructions that four warps issue together."""
WARP_GROUP = 4

LISTED_ALWAYS = 7
"""Numbers of a blocking, besides that of tokens, that every entry of a tuned schedule has."""

FLOAT8_DEPTH = 128
"""Columns of eight-bit floats that the matrix units add on their own, with few bits, before float32 takes over."""


@dataclass(frozen=True)
class DeviceBlocking:
    """For steps of at most `max_tokens` rows (0: any), one instance computes `rows` tokens by `outputs` outputs,
    `depth` columns at a time; with `warps` warps, and loads of `stages` rounds under way.

    `turned` is 1 if it computes `weight @ x.T`: then the matrix units take the outputs in blocks of 64, and few tokens
    are few columns, not rows that are filled with zeros. Forms in `TURNED` are so whatever it says.

    `stacked` is 1 if the parts of a product whose columns are cut are added next to each other, a warp to each, `depth`
    columns of every part at a time; where nothing is cut it means nothing.

    `descriptors` is 1 if both operands are read as boxes of a tensor, by descriptors, where the device has what copies
    them so: that leaves all threads to the matrix units.
    """

    max_tokens: int
    rows: int
    outputs: int
    depth: int
    warps: int
    stages: int
    turned: int = 0
    descriptors: int = 0
    stacked: int = 0

    def listed(self) -> list[int | None]:
        """As an entry of a tuned schedule has it; the last flags are left out where they are off."""
        numbers = list(astuple(self)[1:])
        while len(numbers) > LISTED_ALWAYS and not numbers[-1]:
            del numbers[-1]
        return [self.max_tokens or None, *numbers]


FORMS: dict[tuple[str, str], str] = {
    ("f32", "f32"): "f32",
    ("bf16", "bf16"): "bf16",
    ("f16", "f16"): "f16",
    ("i8", "u8"): "u8",
    ("bf16", "u8"): "bf16xu8",
    ("bf16", "u4"): "bf16xu4",
    ("f8_e4m3", "f8_e4m3"): "f8_e4m3",
}
"""What a kind of product is called, by the elements of its rows and its weight."""

TURNED = ("bf16xu8", "bf16xu4")
"""Forms that compute `weight @ x.T`: a weight that is made in registers is the left operand, which may stay there."""
_EXACT = ("u8",)
"""Forms whose products are whole numbers, which any instruction adds alike."""
_ADD_ALIKE = {"cuda-sm90": ("bf16", "f16")}
"""By target, forms whose products have the same bits from every instruction of the matrix units, for blocks of any
shape and depth, turned or not. The hardware's maker does not promise it: it was measured on an H200, with random
numbers, numbers of wide range and sums that cancel, and tests/gpu checks it with products blocked in all of these ways.
"""

_BITS = {"f32": 32, "bf16": 16, "f16": 16}
"""Of an element of both operands; 8 where nothing is said."""


_BOXED = ("bf16", "f16")
"""Forms whose operands may be read as boxes."""


def is_turned(form: str, blocking: DeviceBlocking) -> bool:
    """Whether a product of a form is computed as `weight @ x.T`."""
    return form in TURNED or bool(blocking.turned)


def is_stacked(blocking: DeviceBlocking, splits: int) -> bool:
    """Whether the parts of a product's columns are added next to each other."""
    return bool(blocking.stacked) and splits > 1


def has_boxes(form: str, blocking: DeviceBlocking, depth: int) -> bool:
    """Whether a product of a form reads its operands as boxes, all of which are in the buffers."""
    return bool(blocking.descriptors) and form in _BOXED and depth % blocking.depth == 0


def form_of_product(product: schedule.MatmulOp) -> str:
    x, weight = (schedule.element_name(type_of(each)) for each in product.arguments[:2])
    return FORMS[x, weight]


_PLAIN = (
    # Few rows: many instances stream weights, with much under way. Many rows: shapes for the matrix units.
    DeviceBlocking(16, 16, 16, 256, 4, 4),
    DeviceBlocking(64, 64, 32, 128, 4, 4),
    DeviceBlocking(256, 64, 64, 128, 4, 3),
    DeviceBlocking(0, 128, 128, 64, 8, 3),
)
_WARP_GROUPS = (
    # Products of 64 rows and more have an instruction of their own, which may add in another order than that of
    # fewer: only 64 rows give the same bits for every number of tokens, and zeros cost no memory traffic.
    DeviceBlocking(16, 64, 16, 128, 4, 5),
    *_PLAIN[1:],
)
_FEW_EXACT = (DeviceBlocking(16, 16, 16, 256, 4, 12),)
"""Of forms of whole numbers, which no instruction adds otherwise. A round is a group of columns, and so little that
many have to be under way."""
_AMD = (
    DeviceBlocking(16, 16, 16, 256, 4, 2),
    DeviceBlocking(64, 64, 32, 128, 4, 2),
    DeviceBlocking(0, 128, 128, 64, 8, 2),
)
_DEFAULTS: dict[str, tuple[DeviceBlocking, ...]] = {
    "cuda-sm80": _PLAIN,
    "cuda-sm90": _WARP_GROUPS,
    "cuda-sm100": _WARP_GROUPS,
    "cuda-sm120": _PLAIN,
    "hip-gfx942": _AMD,
    "hip-gfx950": _AMD,
}
_WITHOUT_MATRIX_UNITS = (DeviceBlocking(16, 16, 16, 32, 4, 2), DeviceBlocking(0, 32, 32, 32, 4, 2))
"""For `f32`, whose operands lie in registers too."""
_OF_TURNED = (
    DeviceBlocking(16, 16, 64, 128, 4, 4),
    DeviceBlocking(64, 64, 64, 128, 4, 3),
    DeviceBlocking(0, 128, 128, 64, 8, 2),
)

_MEASURED: dict[tuple[str, bool], tuple[tuple[DeviceBlocking, ...], ...]] = {
    ("cuda-sm90", False): (
        (DeviceBlocking(16, 16, 64, 128, 4, 5, turned=1), DeviceBlocking(16, 16, 16, 256, 2, 4)),
        (
            DeviceBlocking(64, 64, 64, 128, 4, 6, turned=1),
            DeviceBlocking(64, 64, 32, 128, 4, 4),
            DeviceBlocking(64, 64, 16, 128, 4, 5),
        ),
        (
            DeviceBlocking(256, 128, 128, 64, 4, 4, descriptors=1),
            DeviceBlocking(256, 64, 128, 64, 4, 4, descriptors=1),
            DeviceBlocking(256, 64, 64, 64, 4, 5, descriptors=1),
        ),
        (DeviceBlocking(0, 256, 128, 64, 8, 4, descriptors=1), DeviceBlocking(0, 128, 128, 64, 4, 3, descriptors=1)),
    ),
    ("cuda-sm90", True): (
        (DeviceBlocking(16, 16, 32, 128, 2, 4), DeviceBlocking(16, 16, 16, 256, 2, 4)),
        (
            DeviceBlocking(64, 64, 64, 64, 4, 4),
            DeviceBlocking(64, 64, 32, 128, 4, 4),
            DeviceBlocking(64, 64, 16, 128, 4, 5),
        ),
        (
            DeviceBlocking(256, 128, 64, 64, 4, 4, descriptors=1),
            DeviceBlocking(256, 64, 64, 64, 4, 4, descriptors=1),
            DeviceBlocking(256, 64, 32, 128, 4, 4, descriptors=1),
        ),
        (DeviceBlocking(0, 128, 128, 64, 8, 3, descriptors=1), DeviceBlocking(0, 128, 64, 64, 4, 3, descriptors=1)),
    ),
}
"""By target, and by whether parts of the outputs are computed side by side, what was fastest on an H200 for the forms
of `_ADD_ALIKE`: for each number of tokens from wide blocks to narrow ones, of which the first is taken that leaves at
most a third of the multiprocessors idle (and of more than 128 rows, if there are many columns)."""
_MANY_TOKENS, _MANY_COLUMNS = 2048, 4096
"""For so many tokens blocks for any number of them are chosen; and what many columns are."""
_MEASURED_UNDER_WAY = 208 * 1024
"""Bytes of shared memory that loads of these may fill; it was faster to have many under way than a second instance."""

_UNDER_WAY = {"cuda-sm90": 104 * 1024, "cuda-sm100": 104 * 1024, "hip-gfx942": 60 * 1024, "hip-gfx950": 60 * 1024}
_UNDER_WAY_ELSEWHERE = 96 * 1024
"""Bytes of shared memory that loads may fill."""

SUMS_PER_THREAD = 64
"""That a thread keeps in registers."""
_SUMS_BESIDE_BOXES = 128
"""Likewise, where no thread has to work out from where to copy."""
_MOST_TURNED = {"cuda-sm100": 64 * 128 // PANEL}
"""Rows times panels, where each of the dots of a round keeps its sums in the matrix units' own memory."""
_WARP = 32

WARP_GROUP_TARGETS = ("cuda-sm90", "cuda-sm100")
"""Targets whose matrix units take operands of 64 rows from four warps, and add them in an order of their own."""


_STACKS = dict.fromkeys(("cuda-sm80", "cuda-sm90", "cuda-sm120"), ("bf16", "f16"))
"""By target, forms of which few rows may have parts of their columns added next to each other: one warp's instruction
multiplies them there as it does all others, or (`_ADD_ALIKE`) adds like those of four."""
_STACKED = DeviceBlocking(16, 16, 16, 128, 4, 4, stacked=1)
"""Of few rows of such a product. Not measured: of the instructions of the loop, four warps need as many for 512 columns
as two for 256 of a product that is not cut."""


def default_device_blocking(
    target: str, form: str, panels: int, depth: int, *, parts: int = 1, together: int = 1, splits: int = 1
) -> tuple[DeviceBlocking, ...]:
    """A blocking that fits: outputs divide those that there are, sums fit in registers, and what is under way in shared
    memory.

    `parts` blocks of outputs are computed side by side; where `together` is more than 1, outputs are quantized that
    many panels at a time, and a block is just these. `splits` is how many parts of the columns are added up.
    """
    measured = _is_measured(target, form)
    room = _MEASURED_UNDER_WAY if measured else _UNDER_WAY.get(target, _UNDER_WAY_ELSEWHERE)
    fitted = []
    if splits > 1 and splits == _parts_next_to_each_other(target, form, panels, depth, together):
        fits = _STACKED.stages * splits * _STACKED.depth * (LEAST_ROWS + parts * PANEL) * _BITS[form] <= room * 8
        step = _STACKED.depth if fits and depth // splits >= _STACKED.depth else STACKED_UNIT
        fitted.append(replace(_STACKED, depth=step, warps=splits))
    for choice in _choices(target, form, panels, depth, parts, together, splits):
        if fitted and choice.max_tokens and choice.max_tokens <= _STACKED.max_tokens:
            continue
        # Sums of a part, or of a group, stand beside those of which they become a part.
        kinds = (2 if form in ("u8", "f8_e4m3") else 1) + int(splits > 1)
        rows, columns, warps = choice.rows, choice.outputs // PANEL, choice.warps
        sums = _SUMS_BESIDE_BOXES if choice.descriptors else SUMS_PER_THREAD
        if sums * _WARP * warps < rows * columns * PANEL * parts * kinds and measured:
            sums = _SUMS_BESIDE_BOXES
        if choice.descriptors and rows * columns * PANEL * parts * kinds > sums * _WARP * warps:
            warps = max(warps, 2 * WARP_GROUP)
        most = sums * _WARP * warps // PANEL // parts // kinds
        if form in TURNED:
            most = min(most, _MOST_TURNED.get(target, most * parts) // parts)
        while columns > 1 and (panels % columns or (form not in TURNED and rows * columns > most)):
            columns //= 2
        if together > 1:
            columns = together
        while rows > LEAST_ROWS and rows * columns > most:
            rows //= 2
        block = replace(choice, rows=rows, outputs=columns * PANEL, warps=warps)
        fitted.append(_with_fitting_depth(form, block, parts, depth, room))
    return tuple(fitted)


def _is_measured(target: str, form: str) -> bool:
    return (target, False) in _MEASURED and form in _ADD_ALIKE[target]


def _choices(
    target: str, form: str, panels: int, depth: int, parts: int, together: int, splits: int
) -> tuple[DeviceBlocking, ...]:
    """Before they are made to fit, one for each number of tokens."""
    if not _is_measured(target, form):
        if form in TURNED:
            return _OF_TURNED
        few = _FEW_EXACT if form in _EXACT and target in WARP_GROUP_TARGETS else ()
        return _WITHOUT_MATRIX_UNITS if form == "f32" else (*few, *_DEFAULTS[target][len(few) :])
    least = 2 * _MACHINES[target].multiprocessors

    def fills(block: DeviceBlocking) -> bool:
        columns = together if together > 1 else block.outputs // PANEL
        if block.rows > 2 * WARP_GROUP_ROWS and (depth < _MANY_COLUMNS or splits > 1):
            return False
        row_blocks = max(1, (block.max_tokens or _MANY_TOKENS) // block.rows)
        apart = splits if adds_apart(block) else 1
        return panels % columns == 0 and 3 * (panels // columns) * row_blocks * apart >= least

    return tuple(next(filter(fills, widths), widths[-1]) for widths in _MEASURED[target, parts > 1])


def _with_fitting_depth(form: str, block: DeviceBlocking, parts: int, depth: int, room: int) -> DeviceBlocking:
    """What is under way fits with rounds of fewer columns, or, where they cannot be fewer, with fewer rows."""
    bits_of_rows, bits_of_weights = (_BITS.get(form, 8),) * 2
    if form in TURNED:
        bits_of_rows, bits_of_weights = 16, 4 if form == "bf16xu4" else 8
    weights = block.outputs * parts * bits_of_weights
    least = FLOAT8_DEPTH if form == "f8_e4m3" else least_depth(form)
    step, rows = max(block.depth, least), block.rows
    if form == "f8_e4m3":
        step = least

    def is_too_large() -> bool:
        return step * (rows * bits_of_rows + weights) * block.stages > room * 8

    while step > least and (step > depth or is_too_large() or (block.descriptors and depth % step)):
        step //= 2
    while rows > LEAST_ROWS and form in TURNED and is_too_large():
        rows //= 2
    return replace(block, rows=rows, depth=step)


def least_depth(form: str) -> int:
    """Columns of a round, at least; those of `matrix4` come in words."""
    return WORD_COLUMNS if form == "bf16xu4" else LEAST_DEPTH


def broken_rule(target: str, form: str, blockings: Sequence[DeviceBlocking]) -> str | None:
    """Which rule these blockings of one product break that keeps their results the same; None: they keep all.

    Blocks add alike if the same instruction makes their products, over the same parts of the columns. That others do is
    known of the forms of `_ADD_ALIKE` alone.
    """
    for each in blockings:
        if each.depth < least_depth(form):
            return f"a round of {form} takes at least {least_depth(form)} columns; found {each.depth}"
        if each.descriptors and form not in _BOXED:
            return f"operands of {form} are not read by descriptors; found a blocking that does"
        if each.stacked and form not in _STACKS.get(target, ()):
            return f"parts of {form} are not added next to each other on {target}; found a blocking that does"
        if each.stacked and (each.turned or each.descriptors):
            return "parts that are added next to each other are neither turned nor read by descriptors"
        if form == "f8_e4m3" and each.depth != FLOAT8_DEPTH:
            return f"eight-bit floats are added {FLOAT8_DEPTH} columns at a time; found {each.depth}"
    if form in _ADD_ALIKE.get(target, ()):
        return None
    if form not in TURNED and any(each.turned for each in blockings):
        return f"it is not known that turned products of {form} on {target} add like others; found both"
    if target in WARP_GROUP_TARGETS and form != "f32" and form not in _EXACT:
        what = "outputs" if form in TURNED else "rows"
        left = [each.outputs if form in TURNED else each.rows for each in blockings]
        together = [extent >= WARP_GROUP_ROWS for extent in left]
        if form not in TURNED and not all(together):
            return f"blocks have at least {WARP_GROUP_ROWS} {what}, or they add in another order; found {min(left)}"
        if any(together) != all(together):
            return f"blocks of {WARP_GROUP_ROWS} {what} and more add in another order than smaller ones; found both"
        if all(together) and any(each.warps % WARP_GROUP for each in blockings):
            return f"warps come in groups of {WARP_GROUP}, or they add in another order"
    return None


@dataclass(frozen=True)
class _Machine:
    multiprocessors: int
    bytes_of_a_launch: int
    """That a device reads in the time that one more launch takes, about two microseconds."""


_MACHINES = {
    "cuda-sm80": _Machine(108, 4 << 20),
    "cuda-sm90": _Machine(132, 8 << 20),
    "cuda-sm100": _Machine(148, 14 << 20),
    "cuda-sm120": _Machine(170, 4 << 20),
    "hip-gfx942": _Machine(304, 10 << 20),
    "hip-gfx950": _Machine(256, 14 << 20),
}
MOST_SPLITS = 8
SPLIT_UNIT = 128
"""Columns: parts have a multiple of them."""
LEAST_CUT, MOST_STACKED, STACKED_UNIT = 2048, 4, 64
"""Columns from which on a product is cut whose parts are added next to each other; into how many; a multiple of what
they are. Each ends with a wait for the matrix units when a prompt adds one after the other, so there are not more."""
SPLIT_TOKENS = 64
"""Up to as many rows have the parts of their columns added side by side; more fill the device as they are."""


def adds_apart(blocking: DeviceBlocking) -> bool:
    """Whether the parts of a product that is cut are added side by side, by instances of their own."""
    return 0 < blocking.max_tokens <= SPLIT_TOKENS and not blocking.stacked


def splits_of(target: str, form: str, panels: int, depth: int, *, parts: int = 1, together: int = 1) -> int:
    """Into how many equal parts the columns of a product are cut, each of which is added on its own, before the parts
    are: by its shape alone, since a result depends on it.

    A few rows of a product with few outputs leave most of a device idle. Cutting pays where what is streamed more
    slowly for that is more than one launch costs; or, where parts are added next to each other, where one warp would
    wait for one product of the matrix units after the other for longer than memory takes.
    """
    machine = _MACHINES[target]
    stacked = _parts_next_to_each_other(target, form, panels, depth, together)
    if stacked > 1 or (_is_measured(target, form) and together == 1):
        return stacked
    outputs = PANEL * together
    if not _is_measured(target, form):
        outputs = default_device_blocking(target, form, panels, depth, parts=parts, together=together)[0].outputs
    instances = panels * PANEL // outputs
    size = panels * PANEL * parts * depth * (4 if form == "bf16xu4" else _BITS.get(form, 8)) // 8
    if instances >= machine.multiprocessors:
        return 1
    if size * (machine.multiprocessors - instances) < machine.bytes_of_a_launch * instances:
        return 1
    splits = 1
    while splits < MOST_SPLITS and 4 * instances * splits < 3 * machine.multiprocessors:
        if depth % (2 * splits * SPLIT_UNIT):
            break
        splits *= 2
    return splits


def _parts_next_to_each_other(target: str, form: str, panels: int, depth: int, together: int) -> int:
    """Into how many parts the columns of a product are cut that are added so; 1: it is not."""
    long = depth >= LEAST_CUT and panels <= _MACHINES[target].multiprocessors
    whole = depth % (MOST_STACKED * STACKED_UNIT) == 0
    return MOST_STACKED if long and whole and together == 1 and form in _STACKS.get(target, ()) else 1


def device_schedule_key(
    target: str, form: str, outputs: int, depth: int, parts: int = 1, together: int = 1, splits: int = 1
) -> str:
    """What a tuned blocking depends on, and nothing else."""
    followed = (f"/parts{parts}" if parts > 1 else "") + (f"/groups{together * PANEL}" if together > 1 else "")
    cut = f"/cut{splits}" if splits > 1 else ""
    return f"{target}/matmul/{form}/{outputs}x{depth}{followed}{cut}"


def device_layout(weight: schedule.WeightOp) -> str | None:
    """The layout that a device reads a weight in that a processor reads in panels; None: it reads it as it is."""
    if not weight.layout.data.startswith("panels"):
        return None
    if weight.part is not None:
        return "columns4"
    return {"u4": "matrix4", "u8": "matrix_signed"}.get(schedule.element_name(type_of(weight.result)), "matrix")
