"""What the lowering of every group needs to know: how kernels see buffers, and how the KV cache is laid out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from xdsl.dialects.builtin import MemRefType
from xdsl.ir import Attribute, BlockArgument, Operation, SSAValue

from tessera_compiler.errors import UnsupportedOperation
from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.physical import BLOCK_TOKENS, LINE, buffer_of, input_buffer, is_input, weight_buffer
from tessera_compiler.schedule.views import View, row_shape
from tessera_compiler.tile.lowering.chunk_sizes import partial_buffer
from tessera_compiler.tile.panels import LANES
from tessera_compiler.tile.types import BYTES, buffer_type

CACHE_PACKED = {"f32": 1, "bf16": 2, "i8": 4}
"""How deep the panels of a cache are, by its element."""

SCALE = "_scale"
"""What is added to the name of a part of the cache to name its scales."""


@dataclass(frozen=True)
class CacheLayer:
    """One layer's part of a block of the KV cache (docs/spec/program.md, Cache)."""

    heads: int
    key_dim: int
    value_dim: int
    element: str
    key_offset: int
    value_offset: int
    key_scale_offset: int = 0
    value_scale_offset: int = 0
    """Where the scales lie, if the element is `i8`: one for each head and position."""

    @property
    def quantized(self) -> bool:
        return self.element == "i8"

    def element_of(self, part: str) -> str:
        """What a kernel sees there. Of bytes, keys are multiplied with signed ones, and so have no sign themselves."""
        if part.endswith(SCALE):
            return "f32"
        return "u8" if self.quantized and part == "key" else self.element

    @property
    def packed(self) -> int:
        """How many neighbours of the axis that is summed over lie side by side."""
        return CACHE_PACKED[self.element]

    def head_step(self, part: str) -> int:
        """From one head's part in a block to the next one's, in elements of the part. Bytes of a head lie together."""
        if self.quantized:
            return self.head_bytes // BYTES[self.element_of(part)]
        return self.key_elements if part == "key" else self.value_elements

    @property
    def head_bytes(self) -> int:
        """What a head takes in a block, if the element is `i8`."""
        return self.key_elements + self.value_elements + 2 * BLOCK_TOKENS * BYTES["f32"]

    @property
    def key_elements(self) -> int:
        """Of one head in a block."""
        return -(-self.key_dim // self.packed) * self.packed * BLOCK_TOKENS

    @property
    def value_elements(self) -> int:
        return -(-self.value_dim // LANES) * LANES * BLOCK_TOKENS


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
            layer = CacheLayer(heads, key_dim, value_dim, element, 0, 0)
            places: dict[str, int] = {}
            start = offset
            if layer.quantized:
                # In the order in which they are read, so that a head is one stretch of memory.
                for part in ("key", f"key{SCALE}", f"value{SCALE}", "value"):
                    places[f"{part}_offset"] = start
                    start += BLOCK_TOKENS * BYTES["f32"] if part.endswith(SCALE) else layer.key_elements
                offset += heads * layer.head_bytes
            else:
                for part, elements in (("key", layer.key_elements), ("value", layer.value_elements)):
                    places[f"{part}_offset"] = offset
                    offset += -(-heads * elements * BYTES[element] // LINE) * LINE
            layers.append(replace(layer, **places))  # type: ignore[arg-type]
        return CachePlan(tuple(layers), offset)

    def buffer(self, element: str) -> MemRefType[Attribute]:
        """A layer's part of the cache as a kernel sees it: one row per block, from the start of the part on."""
        return buffer_type([None, self.bytes_per_block // BYTES[element]], element)


@dataclass(frozen=True)
class GroupArguments:
    """The parameters of a group's kernel: its inputs, the caches it touches, the tiles of the step if it attends, its
    results."""

    buffers: tuple[MemRefType[Attribute], ...]
    caches: tuple[tuple[str, int], ...]
    """(`key`, `value`, `key_scale` or `value_scale`; cache) for each cache parameter."""
    layers: tuple[CacheLayer, ...]
    """The layer of each of them."""
    inputs: int
    tiles: bool
    """Whether the kernel takes the program's input `tiles`."""
    partials: bool
    """Whether it takes the program's scratch memory, for what chunks of a context come to."""

    @property
    def given(self) -> tuple[int, ...]:
        """The numbers of the parameters that a kernel is told that no launch writes: where kernels wait for others."""
        return ()

    @staticmethod
    def of(group: schedule.GroupOp, plan: CachePlan) -> GroupArguments:
        buffers = [_input_buffer(value) for value in group.inputs]
        caches: list[tuple[str, int]] = []
        for op in group.body.block.ops:
            if not isinstance(op, schedule.CacheWriteOp | schedule.AttendOp):
                continue
            cache = op.cache.value.data
            parts = [op.part.data] if isinstance(op, schedule.CacheWriteOp) else ["key", "value"]
            if plan.layers[cache].quantized:
                parts += [part + SCALE for part in parts]
            caches += [(part, cache) for part in parts]
        for part, cache in caches:
            buffers.append(plan.buffer(plan.layers[cache].element_of(part)))
        attended = [op for op in group.body.block.ops if isinstance(op, schedule.AttendOp)]
        for op in attended:
            buffers += [buffer_type([None], "i32"), partial_buffer(op.value_dim.value.data)]
        buffers += [buffer_of(type_of(result)) for result in group.results_]
        layers = tuple(plan.layers[cache] for _, cache in caches)
        return GroupArguments(tuple(buffers), tuple(caches), layers, len(group.inputs), bool(attended), bool(attended))

    def cache_parameter(self, part: str, cache: int) -> int:
        return self.inputs + self.caches.index((part, cache))

    def cache_layer(self, cache: int) -> CacheLayer:
        return next(layer for layer, (_, each) in zip(self.layers, self.caches, strict=True) if each == cache)

    @property
    def tiles_parameter(self) -> int:
        return self.inputs + len(self.caches)

    @property
    def partials_parameter(self) -> int:
        return self.tiles_parameter + int(self.tiles)

    def result_parameter(self, index: int) -> int:
        return self.partials_parameter + int(self.partials) + index


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
