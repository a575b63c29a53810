"""Lowers every group of a program that is planned for devices to Tile IR kernels; groups that compute the same thing
share them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from xdsl.dialects.builtin import MemRefType, VectorType
from xdsl.ir import Attribute

from tessera_compiler.errors import UnsupportedOperation
from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.device_blocking import LEAST_ROWS, SPLIT_TOKENS, DeviceBlocking
from tessera_compiler.schedule.passes.plan_device_tiles import device_blockings_of, device_splits_of
from tessera_compiler.schedule.physical import padded_rows
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.lowering.context import CachePlan
from tessera_compiler.tile.lowering.device_attention import (
    PARTIALS,
    SINGLES,
    TILES,
    AttentionShape,
    attend_of,
    lower_device_attention,
    lower_fold,
)
from tessera_compiler.tile.lowering.device_context import (
    CHUNK_TOKENS,
    PARTIAL_CHUNKS,
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
from tessera_compiler.tile.lowering.device_rows import FEEDBACK, lower_device_rows
from tessera_compiler.tile.lowering.lower import source_of, structure_of
from tessera_compiler.tile.types import buffer_type

MOST_VALUES_OF_FOUR_WARPS = 64
"""Columns of the values whose sums, of a chunk and of all before, four warps keep in registers."""

NEED_EIGHT_WARPS = ("cuda-sm100", "cuda-sm120")
"""Where four do not."""


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
class DeviceGroup:
    name: str
    kind: str
    tuned: bool | None
    source: str
    stages: tuple[DeviceStage, ...]


@dataclass(frozen=True)
class DeviceProgram:
    """Has what `describe_program` asks of a lowered program, too."""

    groups: dict[str, DeviceGroup]
    names: tuple[str, ...]
    """The lowered group of each group of the program, in order."""
    arguments: tuple[DeviceArguments, ...]
    cache: CachePlan
    tile_tokens: int
    """The most tokens of a query tile."""
    chunk_tokens: int
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


def lower_for_devices(
    groups: list[schedule.GroupOp], targets: tuple[str, ...], chunk_tokens: int = CHUNK_TOKENS
) -> DeviceProgram:
    """`chunk_tokens`, a multiple of a block's, is how much of a context is summed on its own."""
    plan = device_cache_plan(groups)
    shapes = [AttentionShape.of(attend_of(group)) for group in groups if group.kind.data == "attention"]
    partial_width = max((shape.partial_width for shape in shapes), default=0)
    split_rows, split_width = _split_extent(groups, targets)
    lowered: dict[str, DeviceGroup] = {}
    by_key: dict[object, str] = {}
    names, all_arguments = [], []
    for group in groups:
        arguments = DeviceArguments.with_extras(group, plan, {})
        key = structure_of(group, arguments)
        if key not in by_key:
            kind, source = group.kind.data, source_of(group)
            name = f"{kind}_{sum(1 for other in lowered.values() if other.kind == kind)}"
            by_key[key] = name
            try:
                if kind == "attention":
                    stages = _attention(group, plan, name, targets, partial_width, chunk_tokens)
                else:
                    stages = _stages(group, plan, name, targets, (split_rows, split_width))
            except UnsupportedOperation as error:
                raise UnsupportedOperation(f"no kernel can be made of {source}: {error}") from error
            tuned = group.tuned is not None if kind == "linear" else None
            lowered[name] = DeviceGroup(name, kind, tuned, source, stages)
        names.append(by_key[key])
        all_arguments.append(arguments)
    return DeviceProgram(
        lowered,
        tuple(names),
        tuple(all_arguments),
        plan,
        min((shape.tile_tokens for shape in shapes), default=1),
        chunk_tokens,
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
            product = next(op for op in group.body.block.ops if isinstance(op, schedule.MatmulOp))
            rows = max(rows, splits * SPLIT_TOKENS)
            width = max(width, padded_rows(type_of(product.result).get_shape()[-1]))
    return rows, width


def _stages(
    group: schedule.GroupOp, plan: CachePlan, name: str, targets: tuple[str, ...], split: tuple[int, int]
) -> tuple[DeviceStage, ...]:
    if group.kind.data == "linear":
        return _linear(group, plan, name, targets, split)
    looks_up = any(isinstance(op, schedule.LookupOp) for op in group.body.block.ops)
    extras = {FEEDBACK: integers()} if looks_up else {}
    arguments = DeviceArguments.with_extras(group, plan, extras)
    kernel = lower_device_rows(group, arguments, name)
    only = (DeviceVariant({}, kernel, warps=_warps_of(kernel)),)
    return (DeviceStage(name, arguments.extras, dict.fromkeys(targets, only)),)


def _warps_of(kernel: tile.KernelOp) -> int:
    """One warp for each 256 columns of the widest row, from 1 to 8."""
    types = [value.type for op in kernel.walk() for value in op.results]
    widest = max((type_.get_shape()[1] for type_ in types if isinstance(type_, VectorType)), default=1)
    warps = 1
    while warps < 8 and warps * 256 < widest:
        warps *= 2
    return warps


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


class _LinearVariants:
    """The kernels of one linear map; targets with equal blockings share them."""

    def __init__(self, group: schedule.GroupOp, arguments: DeviceArguments, name: str) -> None:
        self._group, self._arguments, self._name = group, arguments, name
        product = next(op for op in group.body.block.ops if isinstance(op, schedule.MatmulOp))
        self._rows = "L" if "L" in str(type_of(product.result)).rpartition(",")[2] else "T"
        self._made: dict[str, tile.KernelOp] = {}

    def of(self, target: str, splits: int) -> tuple[DeviceVariant, ...]:
        variants = []
        for each in device_blockings_of(self._group, target):
            apart = splits > 1 and _adds_apart(each)
            kernel = self._kernel("parts" if apart else "", each, splits)
            limits = {self._rows: each.max_tokens} if each.max_tokens else {}
            variants.append(DeviceVariant(limits, kernel, each.warps, each.stages, each))
        return tuple(variants)

    def fold(self, target: str, splits: int) -> tuple[DeviceVariant, ...]:
        apart = [each for each in device_blockings_of(self._group, target) if splits > 1 and _adds_apart(each)]
        if not apart:
            return (DeviceVariant({}),)
        kernel = self._kernel("fold", replace(apart[0], rows=LEAST_ROWS), splits)
        most = max(each.max_tokens for each in apart)
        return (DeviceVariant({self._rows: most}, kernel), DeviceVariant({}))

    def _kernel(self, kind: str, each: DeviceBlocking, splits: int) -> tile.KernelOp:
        cut = f"_{kind or 'of'}{splits}" if splits > 1 else ""
        symbol = f"{self._name}{cut}_{each.rows}x{each.outputs}x{each.depth}"
        if symbol not in self._made:
            lower = {"": lower_device_linear, "parts": lower_device_parts, "fold": lower_device_fold}[kind]
            self._made[symbol] = lower(self._group, self._arguments, symbol, each, splits)
        return self._made[symbol]


def _adds_apart(blocking: DeviceBlocking) -> bool:
    """Whether the parts of a product are added side by side, by instances of their own."""
    return 0 < blocking.max_tokens <= SPLIT_TOKENS


def _attention(
    group: schedule.GroupOp,
    plan: CachePlan,
    name: str,
    targets: tuple[str, ...],
    partial_width: int,
    chunk_tokens: int,
) -> tuple[DeviceStage, ...]:
    partials: MemRefType[Attribute] = buffer_type([PARTIAL_SINGLES * PARTIAL_CHUNKS, partial_width], "f32")
    of_tiles = DeviceArguments.with_extras(group, plan, {TILES: integers()}, chunk_tokens)
    of_singles = DeviceArguments.with_extras(group, plan, {SINGLES: integers(), PARTIALS: partials}, chunk_tokens)
    tiles = lower_device_attention(group, of_tiles, f"{name}_tiles")
    singles = lower_device_attention(group, of_singles, f"{name}_singles")
    chunks = lower_device_attention(group, of_singles, f"{name}_chunks", chunks_apart=True)
    fold = lower_fold(group, of_singles, f"{name}_fold")
    few = {"D": PARTIAL_SINGLES, "C": PARTIAL_CHUNKS}
    none, short = DeviceVariant({"D": 0}), {"C": 1}

    def variants(target: str) -> dict[str, tuple[DeviceVariant, ...]]:
        # The same warps for all that attend: how a row's sum is shared among them decides in which order it is added.
        warps = _warps_that_attend(group, target)
        return {
            "tiles": (DeviceVariant({"Q": 0}), DeviceVariant({}, tiles, warps=warps, stages=2)),
            "singles": (
                none,
                DeviceVariant(short, singles, warps=warps, stages=2),
                DeviceVariant(few, chunks, warps=warps, stages=2),
                DeviceVariant({}, singles, warps=warps, stages=2),
            ),
            "fold": (none, DeviceVariant(short), DeviceVariant(few, fold), DeviceVariant({})),
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


def _warps_that_attend(group: schedule.GroupOp, target: str) -> int:
    op = attend_of(group)
    few = op.values["value_dim"] <= MOST_VALUES_OF_FOUR_WARPS and op.values["element"] != "f32"
    return 4 if few and target not in NEED_EIGHT_WARPS else 8
