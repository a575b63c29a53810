"""Lowers every group of a planned program to Tile IR kernels; groups that compute the same thing share them."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Attribute, Operation, SSAValue

from tessera_compiler.errors import UnsupportedOperation
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.linear_maps import tuned_for
from tessera_compiler.schedule.passes.plan_tiles import Blocking, blockings_of
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.lowering.attention import lower_attention
from tessera_compiler.tile.lowering.chunk_sizes import CHUNK_BLOCKS, MOST_TOKENS
from tessera_compiler.tile.lowering.context import CachePlan, GroupArguments
from tessera_compiler.tile.lowering.linear import lower_linear
from tessera_compiler.tile.lowering.rows import lower_rows

_MARKS = frozenset({"module", "layer_output", "cache"})
"""Attributes that say where an op comes from, not what it computes."""


@dataclass(frozen=True)
class Variant:
    """A kernel for steps of at most `max_tokens` rows (0: any)."""

    max_tokens: int
    kernel: tile.KernelOp
    blocking: Blocking | None = None
    min_width: int = 0
    """And of block tables of at least so many columns."""
    then: tile.KernelOp | None = None
    """A second kernel, run when all of the first is done."""

    @property
    def kernels(self) -> tuple[tile.KernelOp, ...]:
        return (self.kernel,) if self.then is None else (self.kernel, self.then)


@dataclass(frozen=True)
class LoweredGroup:
    """A name shared by all groups that compute the same thing, and its kernels for each CPU class."""

    name: str
    kind: str
    tuned: tuple[str, ...] | None
    """The classes for which its blocking was measured; None if there is nothing to choose."""
    source: str
    variants: dict[str, tuple[Variant, ...]]


@dataclass(frozen=True)
class LoweredProgram:
    groups: dict[str, LoweredGroup]
    names: tuple[str, ...]
    """The lowered group of each launch, in order."""
    arguments: tuple[GroupArguments, ...]
    cache: CachePlan

    def kernels(self) -> dict[str, tile.KernelOp]:
        return {
            kernel.symbol: kernel
            for group in self.groups.values()
            for variants in group.variants.values()
            for variant in variants
            for kernel in variant.kernels
        }


def lower_groups(groups: list[schedule.GroupOp], classes: tuple[str, ...]) -> LoweredProgram:
    plan = CachePlan.of(groups)
    lowered: dict[str, LoweredGroup] = {}
    by_key: dict[object, str] = {}
    names, all_arguments = [], []
    for group in groups:
        arguments = GroupArguments.of(group, plan)
        key = structure_of(group, arguments)
        if key not in by_key:
            kind = group.kind.data
            source = source_of(group)
            name = f"{kind}_{sum(1 for other in lowered.values() if other.kind == kind)}"
            by_key[key] = name
            try:
                variants = _variants(group, arguments, name, classes)
            except UnsupportedOperation as error:
                raise UnsupportedOperation(f"no kernel can be made of {source}: {error}") from error
            lowered[name] = LoweredGroup(
                name,
                kind,
                tuned_for(group) if kind == "linear" else None,
                source,
                variants,
            )
        names.append(by_key[key])
        all_arguments.append(arguments)
    return LoweredProgram(lowered, tuple(names), tuple(all_arguments), plan)


def _variants(
    group: schedule.GroupOp, arguments: GroupArguments, name: str, classes: tuple[str, ...]
) -> dict[str, tuple[Variant, ...]]:
    if group.kind.data == "rows":
        return dict.fromkeys(classes, (Variant(0, lower_rows(group, arguments, name)),))
    if group.kind.data == "attention":
        of_attention = lower_attention(group, arguments, name)
        shared = Variant(MOST_TOKENS, of_attention.parts, min_width=CHUNK_BLOCKS + 1, then=of_attention.fold)
        return dict.fromkeys(classes, (shared, Variant(0, of_attention.whole)))
    made: dict[tuple[int, int, int], tile.KernelOp] = {}
    result = {}
    for cpu_class in classes:
        variants = []
        for blocking in blockings_of(group, cpu_class):
            shape = (blocking.rows, blocking.panels, blocking.ahead)
            if shape not in made:
                symbol = f"{name}_{shape[0]}x{shape[1] * 16}{'_ahead' * shape[2]}"
                made[shape] = lower_linear(group, arguments, symbol, blocking)
            variants.append(Variant(blocking.max_tokens, made[shape], blocking))
        result[cpu_class] = tuple(variants)
    return result


def source_of(group: schedule.GroupOp) -> str:
    """What a group computes, for people: the ops of its body and the module of the first."""
    ops = [op for op in group.body.block.ops if not isinstance(op, schedule.YieldOp)]
    modules = [str(op.attributes["module"].data) for op in ops if "module" in op.attributes]  # type: ignore[attr-defined]
    names = " ".join(op.name.split(".", 1)[1] for op in ops)
    return f"{names} ({modules[0]})" if modules else names


def structure_of(group: schedule.GroupOp, arguments: GroupArguments) -> object:
    """Equal for two groups exactly when one kernel serves both."""
    numbers: dict[SSAValue, int] = {}
    for argument in group.body.block.args:
        numbers[argument] = len(numbers)
    body = []
    for op in group.body.block.ops:
        body.append(
            (op.name, _attributes(op), tuple(numbers[v] for v in op.operands), tuple(str(r.type) for r in op.results))
        )
        for result in op.results:
            numbers[result] = len(numbers)
    buffers = tuple(str(buffer) for buffer in arguments.buffers)
    tiles = str(group.tiles) if group.tiles is not None else ""
    return group.kind.data, tuple(str(v.type) for v in group.inputs), buffers, tiles, tuple(body)


def _attributes(op: Operation) -> tuple[tuple[str, Attribute], ...]:
    return tuple(sorted(((k, v) for k, v in op.attributes.items() if k not in _MARKS), key=lambda item: item[0]))
