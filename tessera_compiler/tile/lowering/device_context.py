"""What the lowering of every group for a device needs to know: its parameters, and how the KV cache is laid out there.

A block of the cache holds as many positions as an instance attends to at a time, and a head's keys and values lie in it
as plain matrices, `[position, column]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xdsl.dialects.builtin import MemRefType
from xdsl.ir import Attribute, SSAValue

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.physical import is_input
from tessera_compiler.tile.lowering.context import CacheLayer, CachePlan, GroupArguments
from tessera_compiler.tile.types import BYTES, buffer_type

BLOCK_TOKENS = 64
"""Positions in a block of the cache."""

PART_ALIGNMENT = 256
"""Bytes: where the keys or the values of a layer start within a block."""

PARTIAL_ROWS = 2048
"""Blocks of context, of all single tokens together, whose sums are made side by side."""
PARTIAL_SINGLES = (1, 16, 4)
"""Up to as many single tokens, the fewer the longer their contexts, have their blocks computed so."""


@dataclass(frozen=True)
class DeviceCacheLayer(CacheLayer):
    """One layer's part of a block of a device's cache."""

    @property
    def key_elements(self) -> int:
        return self.key_dim * BLOCK_TOKENS

    @property
    def value_elements(self) -> int:
        return self.value_dim * BLOCK_TOKENS

    @property
    def key_bytes(self) -> int:
        return _aligned(self.heads * self.key_elements * BYTES[self.element])

    @property
    def value_bytes(self) -> int:
        return _aligned(self.heads * self.value_elements * BYTES[self.element])


def _aligned(size: int) -> int:
    return -(-size // PART_ALIGNMENT) * PART_ALIGNMENT


def device_cache_plan(groups: list[schedule.GroupOp]) -> CachePlan:
    writes = [op for group in groups for op in group.body.block.ops if isinstance(op, schedule.CacheWriteOp)]
    shapes: dict[int, dict[str, tuple[int, int, str]]] = {}
    for op in writes:
        _, heads, width = type_of(op.x).get_shape()
        shapes.setdefault(op.cache.value.data, {})[op.part.data] = (heads, width, op.element.data)
    layers: list[DeviceCacheLayer] = []
    offset = 0
    for _, parts in sorted(shapes.items()):
        (heads, key_dim, element), (_, value_dim, _) = parts["key"], parts["value"]
        layer = DeviceCacheLayer(heads, key_dim, value_dim, element, offset, 0)
        layers.append(DeviceCacheLayer(heads, key_dim, value_dim, element, offset, offset + layer.key_bytes))
        offset += layer.key_bytes + layer.value_bytes
    return CachePlan(tuple(layers), offset)


@dataclass(frozen=True)
class DeviceArguments(GroupArguments):
    """The parameters of a device's kernel: inputs, caches, what no op names (`extras`), results.

    An extra is an argument of program-gpu.md: `input:tiles`, `seat:feedback`, `partials`.
    """

    extras: tuple[str, ...] = ()
    not_written: tuple[int, ...] = ()
    """The numbers of those that no launch of a step writes: weights, and what comes with the step."""

    @property
    def given(self) -> tuple[int, ...]:
        return self.not_written

    def extra_parameter(self, name: str) -> int:
        return self.inputs + len(self.caches) + self.extras.index(name)

    def result_parameter(self, index: int) -> int:
        return self.inputs + len(self.caches) + len(self.extras) + index

    @staticmethod
    def with_extras(
        group: schedule.GroupOp, plan: CachePlan, extras: Mapping[str, MemRefType[Attribute]]
    ) -> DeviceArguments:
        plain = GroupArguments.of(group, plan)
        first = plain.inputs + len(plain.caches)
        buffers = [*plain.buffers[:first], *extras.values(), *plain.buffers[plain.result_parameter(0) :]]
        names = tuple(extras)
        shared = plain.caches, plain.layers, plain.inputs, False, False
        given = [index for index, value in enumerate(group.inputs) if _is_given(value)]
        given += [first + index for index, name in enumerate(names) if name.startswith("input:")]
        return DeviceArguments(tuple(buffers), *shared, names, tuple(given))


def _is_given(value: SSAValue) -> bool:
    return isinstance(value.owner, schedule.WeightOp | graph.ConstantOp) or is_input(type_of(value))


def integers() -> MemRefType[Attribute]:
    """A vector of int32 that the runtime provides."""
    return buffer_type([None], "i32")
