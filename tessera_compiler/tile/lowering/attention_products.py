"""The two products of attention, by what the KV cache holds: numbers that are multiplied as they are, or bytes.

Either way a step takes a fixed number of positions, and every row is computed by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from xdsl.ir import SSAValue

from tessera_compiler.schedule.dialect import ZERO_POINT
from tessera_compiler.schedule.physical import BLOCK_TOKENS
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.context import SCALE, GroupArguments
from tessera_compiler.tile.lowering.quantizing import quantize_group
from tessera_compiler.tile.types import shape_of

POSITIONS = 64
QUANTIZED_POSITIONS = 128
"""Positions taken at a time; of bytes more, whose products are done sooner than what lies between them."""

DIGIT = 256
LEVELS = DIGIT * DIGIT - 1
"""The largest weight in whole numbers, where values are bytes. A softmax gives most to few positions: in weights of a
single byte, all others would be lost."""

SMALLEST = 1e-30
"""The least that scales are divided by: where all of them are zero, they stay so."""

LOWEST = -1e30
"""Where the largest score starts: finite, so that it may be subtracted from itself."""

VALUE_COLUMNS = 64
"""Columns of the values summed at a time: as many as there are registers for."""


@dataclass(frozen=True)
class Step:
    """Some positions that are taken together, and the blocks that hold them."""

    blocks: Sequence[SSAValue]
    ahead: Sequence[SSAValue]
    """The blocks that come next."""
    first: SSAValue
    """The first position."""
    last: SSAValue | None
    """The last position that there is, if that may lie among them."""


class Products(Protocol):
    POSITIONS: ClassVar[int]
    """Positions that a step takes."""

    def scores(self, step: Step) -> SSAValue:
        """Of each row with each position; whatever past the last."""

    def accumulate(self, step: Step, scores: SSAValue, state: Sequence[SSAValue]) -> list[SSAValue]:
        """What a row has after a step: its largest score, the sum of its weights, and the sums of the values times
        these, 64 columns each. `scores` are -infinity where a row does not see."""


def products_of(
    builder: KernelBuilder, arguments: GroupArguments, cache: int, key_head: SSAValue, queries: SSAValue
) -> Products:
    """The products with the keys and the values of one head of a cache; `queries` are scaled."""
    return _kind_of(arguments, cache)(builder, arguments, cache, key_head, queries)


def positions_of(arguments: GroupArguments, cache: int) -> int:
    """Positions that a step of these products takes."""
    return _kind_of(arguments, cache).POSITIONS


def _kind_of(arguments: GroupArguments, cache: int) -> type[QuantizedProducts | RoundedProducts]:
    return QuantizedProducts if arguments.cache_layer(cache).quantized else RoundedProducts


class _Context:
    """Where the keys and the values of a head are."""

    POSITIONS: ClassVar[int] = POSITIONS

    def __init__(self, builder: KernelBuilder, arguments: GroupArguments, cache: int, key_head: SSAValue):
        self._builder = b = builder
        self._layer = layer = arguments.cache_layer(cache)
        self._parameters = {part: b.buffers[arguments.cache_parameter(part, cache)] for part in ("key", "value")}
        if layer.quantized:
            for part in ("key", "value"):
                self._parameters[part + SCALE] = b.buffers[arguments.cache_parameter(part + SCALE, cache)]
        self._starts = {part: b.index("mul", key_head, layer.head_step(part)) for part in self._parameters}

    def _keys(self, step: Step) -> SSAValue:
        layer, shape = self._layer, (self._layer.key_dim, self.POSITIONS)
        return self._builder.load_panels(
            self._parameters["key"], step.blocks, self._starts["key"], shape, layer.packed, "n", None, step.ahead
        )

    def _values(self, step: Step, column: int, sums: SSAValue, *, again: bool = False) -> SSAValue:
        """As many columns as there are sums of; `again` if they have been multiplied before."""
        b = self._builder
        start = b.index("add", self._starts["value"], column * BLOCK_TOKENS)
        # What lies past the sequence's end belongs to nobody, and 0 times infinity would not be 0.
        limit = None if step.last is None else b.index("add", b.index("sub", step.last, step.first), 1)
        return b.load_panels(
            self._parameters["value"],
            step.blocks,
            start,
            (self.POSITIONS, shape_of(sums.type)[1]),
            self._layer.packed,
            "k",
            limit,
            () if again else step.ahead,
        )

    def _scales(self, part: str, step: Step) -> SSAValue:
        """One for each position, in a row."""
        return self._builder.load_panels(
            self._parameters[part + SCALE],
            step.blocks,
            self._starts[part + SCALE],
            (1, self.POSITIONS),
            1,
            "n",
            None,
            step.ahead,
        )


class RoundedProducts(_Context):
    """Queries and weights are rounded to what the cache holds."""

    def __init__(
        self, builder: KernelBuilder, arguments: GroupArguments, cache: int, key_head: SSAValue, queries: SSAValue
    ):
        super().__init__(builder, arguments, cache, key_head)
        self._queries = builder.cast(queries, self._layer.element)

    def scores(self, step: Step) -> SSAValue:
        return self._builder.dot(self._queries, self._keys(step))

    def accumulate(self, step: Step, scores: SSAValue, state: Sequence[SSAValue]) -> list[SSAValue]:
        b = self._builder
        largest, total, *sums = state
        new_largest = b.binary("largest", largest, b.reduce("largest", scores))
        weights = b.cast(b.unary("exp2", b.binary("sub", scores, new_largest)), self._layer.element)
        shrink = b.unary("exp2", b.binary("sub", largest, new_largest))
        new_total = b.binary("add", b.binary("mul", total, shrink), b.reduce("sum", b.cast(weights, "f32")))
        new_sums = [
            b.dot(weights, self._values(step, number * VALUE_COLUMNS, piece), b.binary("mul", piece, shrink))
            for number, piece in enumerate(sums)
        ]
        return [new_largest, new_total, *new_sums]


class QuantizedProducts(_Context):
    """Queries become bytes with signs, a scale for each row. The weight of a position, relative to the largest of its
    step, is taken times the scale of its values, and these products, in whole numbers up to `LEVELS`, are multiplied
    digit by digit. Sums of products are exact."""

    POSITIONS = QUANTIZED_POSITIONS

    def __init__(
        self, builder: KernelBuilder, arguments: GroupArguments, cache: int, key_head: SSAValue, queries: SSAValue
    ):
        super().__init__(builder, arguments, cache, key_head)
        b, rows = builder, shape_of(queries.type)[0]
        rounded, self._query_scale, total = quantize_group(b, queries)
        self._queries = b.cast(rounded, "i8")
        # Keys are stored from 0 to 255: what that adds to a product is where the sum starts.
        self._start = b.binary("add", b.full(0, (rows, self.POSITIONS), "i32"), b.binary("mul", total, -ZERO_POINT))

    def scores(self, step: Step) -> SSAValue:
        b = self._builder
        exact = b.dot(self._queries, self._keys(step), self._start)
        return b.binary("mul", b.binary("mul", b.cast(exact, "f32"), self._query_scale), self._scales("key", step))

    def accumulate(self, step: Step, scores: SSAValue, state: Sequence[SSAValue]) -> list[SSAValue]:
        b = self._builder
        largest, total, *sums = state
        here = b.binary("largest", b.full(LOWEST), b.reduce("largest", scores))
        raised = b.unary("exp2", b.binary("sub", scores, here))
        # Either what was before shrinks, or what is here.
        factor = b.unary("exp2", b.unary("neg", b.unary("abs", b.binary("sub", largest, here))))
        one = b.full(1.0)
        grows = b.compare("greater", here, largest)
        shrink, weight = b.select(grows, factor, one), b.select(grows, one, factor)
        new_total = b.binary("add", b.binary("mul", total, shrink), b.binary("mul", b.reduce("sum", raised), weight))
        digits, unit = self._digits(step, raised)
        unit = b.binary("mul", weight, unit)
        new_sums = []
        for number, piece in enumerate(sums):
            column = number * VALUE_COLUMNS
            high = b.dot(digits[0], self._values(step, column, piece))
            exact = b.dot(digits[1], self._values(step, column, piece, again=True), b.binary("mul", high, DIGIT))
            added = b.binary("mul", b.cast(exact, "f32"), unit)
            new_sums.append(b.binary("add", b.binary("mul", piece, shrink), added))
        return [b.binary("largest", largest, here), new_total, *new_sums]

    def _digits(self, step: Step, raised: SSAValue) -> tuple[list[SSAValue], SSAValue]:
        """The weights times the scales of the values in whole numbers, their high and their low digits, and what one
        stands for."""
        b = self._builder
        scales = self._scales("value", step)
        if step.last is not None:
            # Nobody has written those past the last: they may be anything.
            there = b.compare("less_equal", b.iota(step.first, self.POSITIONS), b.iota(step.last, 1))
            scales = b.select(there, scales, b.full(0.0))
        # Relative to what this row gives most to: others of its tile may see values that it does not.
        products = b.binary("mul", raised, scales)
        largest = b.binary("maximum", b.reduce("largest", products), SMALLEST)
        wanted = b.binary("div", b.full(LEVELS / DIGIT), largest)
        # In units of the high digit; half a unit of the low one makes what is cut off round.
        levels = b.binary("add", b.binary("mul", products, wanted), 0.5 / DIGIT)
        high = b.unary("floor", levels)
        low = b.unary("floor", b.binary("mul", b.binary("sub", levels, high), float(DIGIT)))
        return [b.cast(digit, "u8") for digit in (high, low)], b.binary("mul", largest, 1 / LEVELS)
