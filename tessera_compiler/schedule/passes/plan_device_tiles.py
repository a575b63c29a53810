"""Decides how linear maps are blocked on each device, by the number of tokens in a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field

from xdsl.dialects.builtin import ArrayAttr, DictionaryAttr, IntegerAttr, ModuleOp, StringAttr, UnitAttr, i64

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.passes.plan_tiles import output_panels, panels_together
from tessera_compiler.schedule.physical import PANEL
from tessera_compiler.schedule.tuned_cache import InvalidTuning

LEAST_ROWS = 16

DEVICE_LAYOUT = "matrix"
"""How weights of linear maps lie on a device: `[outputs, columns]`, outputs padded as panels are."""


@dataclass(frozen=True)
class DeviceBlocking:
    """For steps of at most `max_tokens` rows (0: any), one instance computes `rows` tokens by `outputs` outputs,
    `depth` columns at a time; with `warps` warps, and loads of `stages` rounds under way."""

    max_tokens: int
    rows: int
    outputs: int
    depth: int
    warps: int
    stages: int


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

_UNDER_WAY = {"cuda-sm90": 104 * 1024, "cuda-sm100": 104 * 1024, "hip-gfx942": 60 * 1024, "hip-gfx950": 60 * 1024}
_UNDER_WAY_ELSEWHERE = 96 * 1024
"""Bytes of shared memory that loads may fill."""

SUMS_PER_THREAD = 64
"""That a thread keeps in registers."""
_WARP = 32


def default_device_blocking(
    target: str, element: str, panels: int, depth: int, *, parts: int = 1, together: int = 1
) -> tuple[DeviceBlocking, ...]:
    """A blocking that fits: outputs divide those that there are, sums fit in registers, and what is under way in shared
    memory.

    `parts` blocks of outputs are computed side by side; where `together` is more than 1, outputs are quantized that
    many panels at a time, and a block is just these.
    """
    size = {"f32": 4, "bf16": 2}.get(element, 1)
    # Integer sums stand beside those of which they become a part.
    kinds = 2 if element == "u8" else 1
    fitted = []
    for choice in _WITHOUT_MATRIX_UNITS if element == "f32" else _DEFAULTS[target]:
        rows, columns = choice.rows, choice.outputs // PANEL
        most = SUMS_PER_THREAD * _WARP * choice.warps // PANEL // parts // kinds
        while columns > 1 and (panels % columns or rows * columns > most):
            columns //= 2
        if together > 1:
            columns = together
        while rows > LEAST_ROWS and rows * columns > most:
            rows //= 2
        columns *= PANEL
        step = choice.depth
        bytes_each = size * (rows + columns * parts) * choice.stages
        while step > 32 and (step > depth or step * bytes_each > _UNDER_WAY.get(target, _UNDER_WAY_ELSEWHERE)):
            step //= 2
        fitted.append(DeviceBlocking(choice.max_tokens, rows, columns, step, choice.warps, choice.stages))
    return tuple(fitted)


def device_schedule_key(target: str, element: str, outputs: int, depth: int, parts: int = 1, together: int = 1) -> str:
    """What a tuned blocking depends on, and nothing else."""
    followed = (f"/parts{parts}" if parts > 1 else "") + (f"/groups{together * PANEL}" if together > 1 else "")
    return f"{target}/matmul/{element}/{outputs}x{depth}{followed}"


@dataclass(frozen=True)
class LayOutForDevices:
    """weight in panels --> the same weight in `matrix`, as `<name>.matrix`: a device reads matrices as they are."""

    def apply(self, module: ModuleOp) -> None:
        renamed: dict[str, str] = {}
        weights = [op for op in entry_function(module).body.block.ops if isinstance(op, schedule.WeightOp)]
        for op in weights:
            if op.layout.data.startswith("panels"):
                renamed[op.weight_name.data] = f"{op.weight_name.data}.{DEVICE_LAYOUT}"
        for op in weights:
            if op.weight_name.data in renamed:
                op.weight_name = StringAttr(renamed[op.weight_name.data])
                op.layout = StringAttr(DEVICE_LAYOUT)
            if op.scales_of is not None and op.scales_of.data in renamed:
                op.scales_of = StringAttr(renamed[op.scales_of.data])


@dataclass(frozen=True)
class PlanDeviceTiles:
    """group "linear" --> group "linear" with `tiles`: from `tuned` (see `device_schedule_key`) where it has an entry,
    else a safe default."""

    targets: tuple[str, ...]
    tuned: Mapping[str, tuple[DeviceBlocking, ...]] = field(default_factory=dict)

    def apply(self, module: ModuleOp) -> None:
        for group in entry_function(module).body.block.ops:
            if not isinstance(group, schedule.GroupOp) or group.kind.data != "linear":
                continue
            product = next(op for op in group.body.block.ops if isinstance(op, schedule.MatmulOp))
            weight = type_of(product.arguments[1])
            outputs, depth = weight.get_shape()
            element = schedule.element_name(weight)
            parts = max(1, sum(isinstance(op, graph.SliceOp) for op in group.body.block.ops))
            chosen, all_tuned = {}, True
            together, panels = panels_together(group), output_panels(group)
            for name in self.targets:
                key = device_schedule_key(name, element, outputs, depth, parts, together)
                entry = _fitting(self.tuned.get(key), key, panels, together)
                all_tuned = all_tuned and entry is not None
                default = default_device_blocking(name, element, panels, depth, parts=parts, together=together)
                chosen[name] = _as_attribute(entry or default)
            group.tiles = DictionaryAttr(chosen)
            group.tuned = UnitAttr() if all_tuned and self.targets else None


def _fitting(
    entry: tuple[DeviceBlocking, ...] | None, key: str, panels: int, together: int
) -> tuple[DeviceBlocking, ...] | None:
    """The entry, if its blocks divide the outputs and hold whole groups."""
    for each in entry or ():
        if panels * PANEL % each.outputs or (together > 1 and each.outputs != together * PANEL):
            raise InvalidTuning(
                f"the tuned schedule {key!r} has blocks of {each.outputs} outputs, which do not fit {panels * PANEL} "
                f"outputs in groups of {together * PANEL}. Tune again, or remove the entry."
            )
    return entry


def _as_attribute(blockings: tuple[DeviceBlocking, ...]) -> ArrayAttr[ArrayAttr[IntegerAttr]]:  # type: ignore[type-arg]
    return ArrayAttr([ArrayAttr([IntegerAttr(number, i64) for number in astuple(each)]) for each in blockings])


def device_blockings_of(group: schedule.GroupOp, target: str) -> tuple[DeviceBlocking, ...]:
    """The blockings of a planned group for one target."""
    assert group.tiles is not None, "the tiles of a group are planned before it is lowered"
    entry = group.tiles.data[target]
    assert isinstance(entry, ArrayAttr)
    return tuple(DeviceBlocking(*(number.value.data for number in blocking.data)) for blocking in entry.data)
