"""What the lowering of every group needs to know: how kernels see buffers, and how the KV cache is laid out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xdsl.dialects.builtin import MemRefType
from xdsl.ir import Attribute, BlockArgument, Operation, SSAValue

from tessera_compiler.errors import UnsupportedOperation
from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.physical import BLOCK_TOKENS, buffer_of, input_buffer, is_input, weight_buffer
from tessera_compiler.schedule.views import View, row_shape
from tessera_compiler.tile.types import BYTES, buffer_type


@dataclass(frozen=True)
class CacheLayer:
    """One layer's part of a block of the KV cache (docs/spec/program.md, Cache)."""

    heads: int
    key_dim: int
    value_dim: int
    element: str
    key_offset: int
    value_offset: int


@dataclass(frozen=True)
class CachePlan:
    layers: tuple[CacheLayer, ...]
    bytes_per_block: int

    @staticmethod
    def of(groups: list[schedule.GroupOp]) -> CachePlan:
        writes = [op for group in groups for op in group.body.block.ops if isinstance(op, schedule.CacheWriteOp)]
        shapes: dict[int, dict[str, tuple[int, int, str]]] = {}
        for op in writes:
            _, heads, width = type_of(op.x).get_shape()
            shapes.setdefault(op.cache.value.data, {})[op.part.data] = (heads, width, op.element.data)
        layers, offset = [], 0
        for _, parts in sorted(shapes.items()):
            (heads, key_dim, element), (_, value_dim, _) = parts["key"], parts["value"]
            places = []
            for width in (key_dim, value_dim):
                places.append(offset)
                offset += -(-heads * width * BLOCK_TOKENS * BYTES[element] // 64) * 64
            layers.append(CacheLayer(heads, key_dim, value_dim, element, *places))
        return CachePlan(tuple(layers), offset)

    def buffer(self, element: str) -> MemRefType[Attribute]:
        """A layer's part of the cache as a kernel sees it: one row per block, from the start of the part on."""
        return buffer_type([None, self.bytes_per_block // BYTES[element]], element)


@dataclass(frozen=True)
class GroupArguments:
    """The parameters of a group's kernel: its inputs, the caches it touches, its results."""

    buffers: tuple[MemRefType[Attribute], ...]
    caches: tuple[tuple[str, int], ...]
    """(`key` or `value`, cache) for each cache parameter."""
    inputs: int

    @staticmethod
    def of(group: schedule.GroupOp, plan: CachePlan) -> GroupArguments:
        buffers = [_input_buffer(value) for value in group.inputs]
        caches: list[tuple[str, int]] = []
        for op in group.body.block.ops:
            if isinstance(op, schedule.CacheWriteOp):
                caches.append((op.part.data, op.cache.value.data))
            elif isinstance(op, schedule.AttendOp):
                caches += [("key", op.cache.value.data), ("value", op.cache.value.data)]
        for _, cache in caches:
            buffers.append(plan.buffer(plan.layers[cache].element))
        buffers += [buffer_of(type_of(result)) for result in group.results_]
        return GroupArguments(tuple(buffers), tuple(caches), len(group.inputs))

    def cache_parameter(self, part: str, cache: int) -> int:
        return self.inputs + self.caches.index((part, cache))

    def result_parameter(self, index: int) -> int:
        return self.inputs + len(self.caches) + index


def _input_buffer(value: SSAValue) -> MemRefType[Attribute]:
    owner, type_ = value.owner, type_of(value)
    if isinstance(owner, schedule.WeightOp):
        return weight_buffer(type_, owner.layout.data)
    if isinstance(owner, graph.ConstantOp):
        return weight_buffer(type_, "rows")
    if is_input(type_):
        return input_buffer(type_)
    return buffer_of(type_)


def resolve_view(value: SSAValue) -> tuple[BlockArgument, View]:
    """The parameter of a group that a value in its body is a view of, and which view."""
    if isinstance(value, BlockArgument):
        return value, View.contiguous(row_shape(type_of(value).get_shape()))
    owner = value.owner
    assert isinstance(owner, Operation) and rows_of(type_of(value)) is not None
    base, inner = resolve_view(owner.operands[0])
    view = inner.through(owner)
    assert view is not None, "views without strides are copied before groups are formed"
    return base, view


def resolve_static(value: SSAValue) -> BlockArgument:
    """The parameter of a group that a weight in its body is, seen through reshapes that leave every row where it is."""
    while isinstance(value.owner, graph.ReshapeOp):
        before, after = (type_of(each).get_shape() for each in (value.owner.operands[0], value))
        one = math.prod(after) == 1
        same = before[-1:] == after[-1:] and [n for n in before if n != 1] == [n for n in after if n != 1]
        if not (one or same):
            break
        value = value.owner.operands[0]
    if not isinstance(value, BlockArgument):
        assert isinstance(value.owner, Operation)
        raise UnsupportedOperation(f"{value.owner.name} of weights is not lowered. Report the model.")
    return value
