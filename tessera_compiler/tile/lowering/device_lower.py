"""Lowers every group of a program that is planned for devices to Tile IR kernels; groups that compute the same thing
share them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from xdsl.dialects.builtin import MemRefType
from xdsl.ir import Attribute

from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.device_blocking import (
    LEAST_ROWS,
    SPLIT_TOKENS,
    DeviceBlocking,
    adds_apart,
    is_stacked,
)
from tessera_compiler.schedule.linear_maps import matmul_in, tuned_for
from tessera_compiler.schedule.passes.plan_device_tiles import device_blockings_of, device_splits_of
from tessera_compiler.schedule.physical import padded_rows
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.lowering.context import CachePlan
from tessera_compiler.tile.lowering.device_attention import (
    PARTIALS,
    SINGLES,
    TILE_ROWS,
    TILES,
    AttentionShape,
    attend_of,
    lower_device_attention,
    lower_fold,
)
from tessera_compiler.tile.lowering.device_context import (
    PARTIAL_ROWS,
    PARTIAL_SINGLES,
    DeviceArguments,
    device_cache_plan,
    integers,
)
from tessera_compiler.tile.lowering.device_linear import (
    SPLIT_SUMS,
    lower_device_fold,
    lower_device_linear,
    lower_device_parts,
)
from tessera_compiler.tile.lowering.device_rows import lower_device_rows
from tessera_compiler.tile.lowering.device_together import (
    LoweredRows,
    RowsOfGroups,
    blamed_on,
    join_rows,
    joined_parameters,
    launched_together,
    rows_arguments,
    warps_of,
)
from tessera_compiler.tile.lowering.lower import source_of, structure_of
from tessera_compiler.tile.types import buffer_type

MOST_VALUES_OF_FOUR_WARPS = 128
"""Columns of the values whose sums, of a block and of all before, four warps keep in registers."""

NEED_EIGHT_WARPS = ("cuda-sm100", "cuda-sm120")
"""Where four keep but half of that."""

ONE_INSTRUCTION = ("cuda-sm80", "cuda-sm90", "cuda-sm120", "hip-gfx942", "hip-gfx950")
"""Targets whose products of few rows are those of many, to the bit: there is one instruction, or (sm90, as measured on
an H200) both add alike."""

LOADS_AHEAD = {"cuda-sm80": 3, "cuda-sm90": 3, "cuda-sm100": 3}
"""Stages of the loop over the context of single tokens, where shared memory has room for more than two. Where a block
lies takes one of them. Tiles of 64 rows were faster with two, on an H200."""

NOTHING_AHEAD = ("cuda-sm120", "hip-gfx942")
"""Where of keys and values of more columns shared memory has no room for a second block beside a tile of queries."""

LARGE_TILES = {"cuda-sm90": 5}
"""Targets where twice as many rows share what is loaded, computed by two groups of four warps, and how far ahead loads
are for that. Not measured: of 64 rows, loads are waited for as soon as they are asked for, since Triton takes them for
the second of two that depend on each other, the first being where the block lies; five stages put them two rounds
ahead, and there is room for that once in a multiprocessor."""


@dataclass(frozen=True)
class _Tile:
    """How query tiles are computed."""

    rows: int
    warps: int
    stages: int

    def tokens(self, shape: AttentionShape) -> int:
        return shape.tile_tokens(self.rows)


@dataclass(frozen=True)
class DeviceVariant:
    """What is launched if no size of the step is above its limit; no kernel: nothing is."""

    limits: Mapping[str, int]
    kernel: tile.KernelOp | None = None
    warps: int = 4
    stages: int = 1
    blocking: DeviceBlocking | None = None


@dataclass(frozen=True)
class DeviceStage:
    """One of the launches that a group is made of: the same parameters for all of its variants, on each target."""

    name: str
    extras: tuple[str, ...]
    variants: Mapping[str, tuple[DeviceVariant, ...]]


@dataclass(frozen=True)
class DevicePart:
    """One of several groups of a program that one launch computes."""

    extras: tuple[str, ...]
    parameters: tuple[int, ...]
    """Which of the kernel's its inputs, caches, extras and results are."""


@dataclass(frozen=True)
class DeviceGroup:
    name: str
    kind: str
    tuned: tuple[str, ...] | None
    """The targets for which its blocking was measured; None if there is nothing to choose."""
    source: str
    stages: tuple[DeviceStage, ...]
    parts: tuple[DevicePart, ...] = ()
    """None: it is of one group of the program."""


@dataclass(frozen=True)
class DeviceProgram:
    """Has what `describe_program` asks of a lowered program, too."""

    groups: dict[str, DeviceGroup]
    names: tuple[str, ...]
    """The lowered group of each group of the program, in order."""
    units: tuple[tuple[int, ...], ...]
    """The groups of the program in order, those together that are launched together."""
    arguments: tuple[DeviceArguments, ...]
    cache: CachePlan
    tile_tokens: Mapping[str, int]
    """By target, the most tokens of a query tile."""
    partial_width: int
    """Numbers in a row of the buffer of partials; 0: there is none."""
    split_rows: int
    split_width: int
    """Of the buffer of the sums of parts of products; 0: there is none."""

    def kernels(self) -> dict[str, tile.KernelOp]:
        return {
            variant.kernel.symbol: variant.kernel
            for group in self.groups.values()
            for stage in group.stages
            for variants in stage.variants.values()
            for variant in variants
            if variant.kernel is not None
        }


def lower_for_devices(groups: list[schedule.GroupOp], targets: tuple[str, ...]) -> DeviceProgram:
    plan = device_cache_plan(groups)
    shapes = [AttentionShape.of(attend_of(group)) for group in groups if group.kind.data == "attention"]
    partial_width = max((shape.partial_width for shape in shapes), default=0)
    split_rows, split_width = _split_extent(groups, targets)
    lowered: dict[str, DeviceGroup] = {}
    by_key: dict[object, str] = {}
    all_arguments = tuple(DeviceArguments.with_extras(group, plan, {}) for group in groups)
    names: list[str] = []
    rows = RowsOfGroups(groups, plan)
    units = launched_together(groups, rows)
    for unit in units:
        group, kind = groups[unit[0]], groups[unit[0]].kind.data
        together = [rows.of(number) for number in unit] if len(unit) > 1 else []
        structures = tuple(structure_of(groups[number], all_arguments[number]) for number in unit)
        key = structures, joined_parameters(together)
        if key not in by_key:
            name = f"{kind}_{sum(1 for other in lowered.values() if other.kind == kind)}"
            by_key[key] = name
            if together:
                lowered[name] = _joined(together, name, targets)
            else:
                with blamed_on(group):
                    if kind == "attention":
                        stages = _attention(group, plan, name, targets, partial_width)
                    else:
                        stages = _stages(group, plan, name, targets, (split_rows, split_width))
                tuned = tuned_for(group) if kind == "linear" else None
                lowered[name] = DeviceGroup(name, kind, tuned, source_of(group), stages)
        names += [by_key[key]] * len(unit)
    return DeviceProgram(
        lowered,
        tuple(names),
        tuple(units),
        all_arguments,
        plan,
        {target: min((_tile_of(shape, target).tokens(shape) for shape in shapes), default=1) for target in targets},
        partial_width,
        split_rows,
        split_width,
    )


def _split_extent(groups: list[schedule.GroupOp], targets: tuple[str, ...]) -> tuple[int, int]:
    """Rows and columns that hold the sums of the parts of each product, one product at a time."""
    rows, width = 0, 0
    for group in groups:
        splits = max((device_splits_of(group, target) for target in targets), default=1)
        if splits > 1:
            product = matmul_in(group)
            rows = max(rows, splits * SPLIT_TOKENS)
            width = max(width, padded_rows(type_of(product.result).get_shape()[-1]))
    return rows, width


def _stages(
    group: schedule.GroupOp, plan: CachePlan, name: str, targets: tuple[str, ...], split: tuple[int, int]
) -> tuple[DeviceStage, ...]:
    if group.kind.data == "linear":
        return _linear(group, plan, name, targets, split)
    arguments = rows_arguments(group, plan)
    kernel = lower_device_rows(group, arguments, name)
    return (DeviceStage(name, arguments.extras, _rows_variants(kernel, targets)),)


def _joined(rows: Sequence[LoweredRows], name: str, targets: tuple[str, ...]) -> DeviceGroup:
    stage = DeviceStage(name, (), _rows_variants(join_rows(rows, name), targets))
    pairs = zip(rows, joined_parameters(rows), strict=True)
    parts = tuple(DevicePart(each.arguments.extras, parameters) for each, parameters in pairs)
    return DeviceGroup(name, "rows", None, "; ".join(source_of(each.group) for each in rows), (stage,), parts)


def _rows_variants(kernel: tile.KernelOp, targets: tuple[str, ...]) -> dict[str, tuple[DeviceVariant, ...]]:
    return dict.fromkeys(targets, (DeviceVariant({}, kernel, warps=warps_of(kernel)),))


def _linear(
    group: schedule.GroupOp, plan: CachePlan, name: str, targets: tuple[str, ...], split: tuple[int, int]
) -> tuple[DeviceStage, ...]:
    """One stage; or two where some target adds up parts of the columns: the sums of few rows, then what follows."""
    splits = {target: device_splits_of(group, target) for target in targets}
    cut = any(count > 1 for count in splits.values())
    extras = {SPLIT_SUMS: buffer_type(list(split), "f32")} if cut else {}
    lowering = _LinearVariants(group, DeviceArguments.with_extras(group, plan, extras), name)
    whole = {target: lowering.of(target, splits[target]) for target in targets}
    if not cut:
        return (DeviceStage(name, (), whole),)
    folds = {target: lowering.fold(target, splits[target]) for target in targets}
    return (
        DeviceStage(f"{name}_sums", (SPLIT_SUMS,), whole),
        DeviceStage(f"{name}_fold", (SPLIT_SUMS,), folds),
    )


_LOWERINGS: dict[str, Callable[..., tile.KernelOp]] = {
    "": lower_device_linear,
    "parts": lower_device_parts,
    "fold": lower_device_fold,
}
"""The kinds of kernels that a linear map may have."""


class _LinearVariants:
    """The kernels of one linear map; targets with equal blockings share them."""

    def __init__(self, group: schedule.GroupOp, arguments: DeviceArguments, name: str) -> None:
        self._group, self._arguments, self._name = group, arguments, name
        product = matmul_in(group)
        self._rows = "L" if "L" in str(type_of(product.result)).rpartition(",")[2] else "T"
        self._made: dict[str, tile.KernelOp] = {}

    def of(self, target: str, splits: int) -> tuple[DeviceVariant, ...]:
        variants = []
        for each in device_blockings_of(self._group, target):
            apart = splits > 1 and adds_apart(each)
            kernel = self._kernel("parts" if apart else "", each, splits)
            limits = {self._rows: each.max_tokens} if each.max_tokens else {}
            variants.append(DeviceVariant(limits, kernel, each.warps, each.stages, each))
        return tuple(variants)

    def fold(self, target: str, splits: int) -> tuple[DeviceVariant, ...]:
        blockings = device_blockings_of(self._group, target) if splits > 1 else ()
        apart = [each for each in blockings if adds_apart(each)]
        if not apart:
            return (DeviceVariant({}),)
        kernel = self._kernel("fold", replace(apart[0], rows=LEAST_ROWS), splits)
        variants = []
        for each, following in itertools.pairwise(blockings):
            # Those in whose place the following ones would do are left out.
            if adds_apart(each) != adds_apart(following):
                variants.append(DeviceVariant({self._rows: each.max_tokens}, kernel if adds_apart(each) else None))
        return (*variants, DeviceVariant({}))

    def _kernel(self, kind: str, each: DeviceBlocking, splits: int) -> tile.KernelOp:
        cut = f"_{kind or 'of'}{splits}" if splits > 1 else ""
        turned = "_turned" if each.turned and kind != "fold" else ""
        boxes = "_boxes" if each.descriptors and kind != "fold" else ""
        boxes = "_stacked" if is_stacked(each, splits) else boxes
        symbol = f"{self._name}{cut}{turned}{boxes}_{each.rows}x{each.outputs}x{each.depth}"
        if symbol not in self._made:
            lowering = _LOWERINGS[kind]
            self._made[symbol] = lowering(self._group, self._arguments, symbol, each, splits)
        return self._made[symbol]


def _attention(
    group: schedule.GroupOp, plan: CachePlan, name: str, targets: tuple[str, ...], partial_width: int
) -> tuple[DeviceStage, ...]:
    partials: MemRefType[Attribute] = buffer_type([PARTIAL_ROWS, partial_width], "f32")
    of_tiles = DeviceArguments.with_extras(group, plan, {TILES: integers()})
    of_singles = DeviceArguments.with_extras(group, plan, {SINGLES: integers(), PARTIALS: partials})
    fold = lower_fold(group, of_singles, f"{name}_fold")
    shape = AttentionShape.of(attend_of(group))
    forms = {target: _tile_of(shape, target) for target in targets}
    tiles = {
        rows: lower_device_attention(group, of_tiles, f"{name}_tiles{rows}", rows=rows)
        for rows in {form.rows for form in forms.values()}
    }
    # The kernels of singles and of blocks apart, by the rows of their products.
    singles = {
        rows: tuple(
            lower_device_attention(group, of_singles, f"{name}_{kind}{rows}", rows=rows, apart=kind == "blocks")
            for kind in ("singles", "blocks")
        )
        for rows in {_rows_of_singles(shape, target) for target in targets}
    }
    few = [{"D": count, "C": PARTIAL_ROWS // count} for count in PARTIAL_SINGLES]
    none = DeviceVariant({"D": 0})

    def variants(target: str) -> dict[str, tuple[DeviceVariant, ...]]:
        warps, stages = _warps_that_attend(shape, target), LOADS_AHEAD.get(target, 2)
        if shape.widest > MOST_VALUES_OF_FOUR_WARPS:
            stages = 2
        stages, of_blocks = (1, 1) if shape.element == "f32" else (stages, 2)
        form = forms[target]
        whole, apart = singles[_rows_of_singles(shape, target)]
        return {
            "tiles": (
                DeviceVariant({"Q": 0}),
                DeviceVariant({}, tiles[form.rows], warps=form.warps, stages=form.stages),
            ),
            "singles": (
                none,
                *(DeviceVariant(each, apart, warps=warps, stages=of_blocks) for each in few),
                DeviceVariant({}, whole, warps=warps, stages=stages),
            ),
            "fold": (none, *(DeviceVariant(each, fold, warps=1) for each in few), DeviceVariant({})),
        }

    by_target = {target: variants(target) for target in targets}
    return tuple(
        DeviceStage(
            f"{name}_{stage}",
            (of_tiles if stage == "tiles" else of_singles).extras,
            {target: by_target[target][stage] for target in targets},
        )
        for stage in ("tiles", "singles", "fold")
    )


def _warps_that_attend(shape: AttentionShape, target: str) -> int:
    if shape.element == "f32":
        return 8
    most = MOST_VALUES_OF_FOUR_WARPS // (2 if target in NEED_EIGHT_WARPS else 1)
    return 4 if shape.value_dim <= most else 8


def _rows_of_singles(shape: AttentionShape, target: str) -> int:
    return shape.single_rows if target in ONE_INSTRUCTION or shape.element == "f32" else TILE_ROWS


def _tile_of(shape: AttentionShape, target: str) -> _Tile:
    if shape.element == "f32":
        # Without matrix units operands lie in registers, in several threads at a time.
        return _Tile(shape.single_rows, _warps_that_attend(shape, target), 1)
    wide = shape.widest > MOST_VALUES_OF_FOUR_WARPS
    if target in LARGE_TILES and not wide:
        return _Tile(2 * TILE_ROWS, 8, LARGE_TILES[target])
    return _Tile(TILE_ROWS, _warps_that_attend(shape, target), 1 if wide and target in NOTHING_AHEAD else 2)
