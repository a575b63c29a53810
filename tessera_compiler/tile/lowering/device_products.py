"""The products of linear maps on a device: what a block of rows by a block of outputs adds up over some columns.

Each kind of product adds in an order that its shape alone decides: over k ascending within what one `tile.dot` takes,
and then over dots in order. How many columns a round takes changes nothing: for exact sums, and those of groups, it is
the groups that count; others go on with the same sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from xdsl.ir import BlockArgument, SSAValue

from tessera_compiler.errors import UnsupportedOperation
from tessera_compiler.graph.types import type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.device_blocking import (
    FLOAT8_DEPTH,
    DeviceBlocking,
    form_of_product,
    has_boxes,
    is_stacked,
    is_turned,
)
from tessera_compiler.schedule.physical import LINE, WORD_COLUMNS, WORDS, padded_rows
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.context import resolve_static
from tessera_compiler.tile.types import BYTES, element_name

Tiles = list[SSAValue]

PREFETCHED_BYTES, PREFETCHED_BLOCKS = 1024, 4
"""Of each output's weights, what is asked for ahead; of those in words, blocks of columns."""
PREFETCHED_WHOLE = 8 << 20
"""Bytes of a matrix that is asked for whole: memory is idle while the small launches before such a product run."""


class Rows(Protocol):
    """How a kernel loads columns of its rows: (value, first column, how many) → tile; as a box, if `box`. With `parts`,
    so many tiles as a stack, the second number of columns apart."""

    def __call__(
        self,
        value: SSAValue,
        column: SSAValue,
        columns: int,
        *,
        box: bool = False,
        parts: tuple[int, int] | None = None,
    ) -> SSAValue: ...


def product_of(
    builder: KernelBuilder,
    product: schedule.MatmulOp,
    blocking: DeviceBlocking,
    rows: Rows,
    firsts: Sequence[SSAValue],
    splits: int,
) -> Product:
    """`firsts` are the first outputs of the blocks that are computed side by side; `splits` is how many parts of the
    columns are added up."""
    kind = _Stacked if is_stacked(blocking, splits) else _KINDS[form_of_product(product)]
    return kind(builder, product, blocking, rows, firsts, splits)


def _powers_of_two(count: int) -> Iterator[tuple[int, int]]:
    """Stretches (start, length), the longest first, that make up so many."""
    start = 0
    while start < count:
        length = 1 << (count - start).bit_length() - 1
        yield start, length
        start += length


class Product:
    """Sums of one product: `empty`, then `add` for ranges of columns, then `upright`, then `finish`.

    Between `empty` and `upright` a turned product has its outputs as rows: it is `weight @ x.T`.
    """

    def __init__(
        self,
        builder: KernelBuilder,
        product: schedule.MatmulOp,
        blocking: DeviceBlocking,
        rows: Rows,
        firsts: Sequence[SSAValue],
        splits: int,
    ) -> None:
        self._builder, self._product, self._blocking = builder, product, blocking
        self._rows, self._firsts, self._splits = rows, firsts, splits
        self._x, self._weight, *self._others = product.arguments
        self.depth: int = type_of(self._weight).get_shape()[1]
        self._turned = is_turned(form_of_product(product), blocking)
        self.shape = (blocking.outputs, blocking.rows) if self._turned else (blocking.rows, blocking.outputs)
        self._boxes = has_boxes(form_of_product(product), blocking, self.depth)

    @property
    def step(self) -> int:
        """Columns of a round."""
        return self._blocking.depth

    def empty(self) -> Tiles:
        return [self._builder.full(0.0, self.shape) for _ in self._firsts]

    def prefetch(self, column: SSAValue, columns: int) -> None:
        """Says which weights come first, of `columns` from `column` on: no launch before writes them. (Where there are
        boxes, there are so many rows that it would not matter.)"""
        if self._boxes:
            return
        buffer = self._buffer(self._weight)
        outputs, depth = type_of(self._weight).get_shape()
        size = BYTES[element_name(buffer.type)]
        if outputs * depth * size > PREFETCHED_WHOLE:
            columns = min(columns, PREFETCHED_BYTES // size)
        for start, count in _powers_of_two(columns):
            if start and count * size < LINE:
                break
            for first in self._firsts:
                place = self._builder.index("add", column, start)
                self._builder.prefetch(buffer, first, place, (self._blocking.outputs, count))

    def add(self, first: SSAValue, columns: int, sums: Tiles) -> Tiles:
        """The sums with those of `columns` columns, from `first` on."""
        builder, step = self._builder, self.step
        whole = columns // step * step
        if whole:
            end = builder.index("add", first, whole)
            sums = builder.loop(first, end, step, sums, lambda column, carried: self._round(column, step, carried))
        if columns % step:
            sums = self._round(builder.index("add", first, whole), columns % step, sums)
        return sums

    def add_round(self, column: SSAValue, sums: Tiles) -> Tiles:
        """The sums with those of `step` columns."""
        return self._round(column, self.step, sums)

    def upright(self, sums: Tiles) -> Tiles:
        """The sums as `[rows, outputs]`."""
        return [self._builder.transpose(each) for each in sums] if self._turned else sums

    def finish(self, sums: Tiles) -> Tiles:
        """What is made of upright sums once all are added."""
        return sums

    def _round(self, column: SSAValue, columns: int, sums: Tiles) -> Tiles:
        raise TypeError(f"{type(self).__name__} does not say what it adds in a round")

    def _buffer(self, value: SSAValue) -> SSAValue:
        assert isinstance(value, BlockArgument)
        return self._builder.buffers[value.index]

    def _weights(self, column: SSAValue, columns: int) -> Tiles:
        """As the product takes them: `[outputs, columns]` if it is turned, else `[columns, outputs]`."""
        if not self._turned and not self._boxes:
            return [self._across(first, column, columns) for first in self._firsts]
        buffer = self._buffer(self._weight)
        weights = [self._along(buffer, first, column, columns, box=self._boxes) for first in self._firsts]
        return weights if self._turned else [self._builder.transpose(each) for each in weights]

    def _dots(self, rows: SSAValue, weights: Tiles, sums: Tiles) -> Tiles:
        """The sums with the products of these columns of the rows, `[rows, columns]`, and of the weights."""
        pairs = zip(weights, sums, strict=True)
        if self._turned:
            right = self._builder.transpose(rows)
            return [self._builder.dot(weight, right, each) for weight, each in pairs]
        return [self._builder.dot(rows, weight, each) for weight, each in pairs]

    def _along(self, buffer: SSAValue, row: SSAValue, column: SSAValue, columns: int, *, box: bool = False) -> SSAValue:
        """`[outputs, columns]`."""
        shape = (self._blocking.outputs, columns)
        return self._builder.load_block(buffer, row, column, shape, box=box, row_step=1, lane_step=1)

    def _across(self, first: SSAValue, column: SSAValue, columns: int) -> SSAValue:
        """`[columns, outputs]` of a weight that lies as `[outputs, columns]`."""
        return self._builder.load_block(
            self._buffer(self._weight),
            first,
            column,
            (columns, self._blocking.outputs),
            column_step=1,
            lane_row_step=1,
        )

    def _of_outputs(self, value: SSAValue, first: SSAValue) -> SSAValue:
        """The numbers that a vector has for the outputs from `first` on, as a row."""
        buffer = self._builder.buffers[resolve_static(value).index]
        return self._builder.load(buffer, self._builder.constant(0), first, (1, self._blocking.outputs))


class _Plain(Product):
    """Of two tiles of floats, as they are."""

    def _round(self, column: SSAValue, columns: int, sums: Tiles) -> Tiles:
        rows = self._rows(self._x, column, columns, box=self._boxes)
        return self._dots(rows, self._weights(column, columns), sums)


class _Stacked(_Plain):
    """The parts of the columns next to each other, each by warps of its own: sums are a stack, a tile for each part."""

    @property
    def _part(self) -> int:
        """Columns of each."""
        return self.depth // self._splits

    def empty(self) -> Tiles:
        return [self._builder.empty_stack((self._splits, *self.shape)) for _ in self._firsts]

    def prefetch(self, column: SSAValue, columns: int) -> None:
        for part in range(self._splits):
            super().prefetch(self._builder.index("add", column, part * self._part), columns)

    def add(self, first: SSAValue, columns: int, sums: Tiles) -> Tiles:
        """`columns` of each part; the last rounds are of powers of two, which is what an axis of a stack may have."""
        whole = columns // self.step * self.step
        sums = super().add(first, whole, sums)
        for start, count in _powers_of_two(columns - whole):
            sums = self._round(self._builder.index("add", first, whole + start), count, sums)
        return sums

    def upright(self, sums: Tiles) -> Tiles:
        return [self._builder.sum_stack(each) for each in sums]

    def _round(self, column: SSAValue, columns: int, sums: Tiles) -> Tiles:
        builder, parts = self._builder, (self._splits, self._part)
        rows = self._rows(self._x, column, columns, parts=parts)
        shape = (self._splits, columns, self._blocking.outputs)
        result = []
        for first, each in zip(self._firsts, sums, strict=True):
            buffer = self._buffer(self._weight)
            weights = builder.load_stack(buffer, first, column, shape, self._part, transposed=True)
            result.append(builder.dot_stack(rows, weights, each))
        return result


class _OfFloat8(Product):
    """The matrix units may keep few bits of a sum of eight-bit floats, so some columns are added at a time, and these
    sums in float32; times the scales of both."""

    @property
    def step(self) -> int:
        return FLOAT8_DEPTH

    def _round(self, column: SSAValue, columns: int, sums: Tiles) -> Tiles:
        added = self._dots(self._rows(self._x, column, columns), self._weights(column, columns), self.empty())
        return [self._builder.binary("add", *pair) for pair in zip(sums, added, strict=True)]

    def finish(self, sums: Tiles) -> Tiles:
        of_rows, of_outputs = self._others
        scale = self._rows(of_rows, self._builder.constant(0), 1)
        scaled = [self._builder.binary("mul", each, scale) for each in sums]
        pairs = zip(self._firsts, scaled, strict=True)
        return [self._builder.binary("mul", each, self._of_outputs(of_outputs, first)) for first, each in pairs]


class _OfQuantizedRows(Product):
    """The sum over groups of columns of exact products times the group's scale, times the outputs' scales."""

    @property
    def step(self) -> int:
        assert self._product.group is not None
        return int(self._product.group.value.data)

    def add(self, first: SSAValue, columns: int, sums: Tiles) -> Tiles:
        """A group's factor is asked for a round before it is needed: nothing else of a round is waited for so long."""
        builder, step = self._builder, self.step
        if columns % step:
            return super().add(first, columns, sums)
        end = builder.index("add", first, columns)
        last = builder.index("sub", builder.index("div", end, step), 1)

        def step_on(column: SSAValue, carried: Tiles) -> Tiles:
            following = builder.index("add", builder.index("div", column, step), 1)
            factor = self._factor(builder.index("min", following, last))
            return [*self._group(column, step, carried[-1], carried[:-1]), factor]

        factor = self._factor(builder.index("div", first, step))
        return builder.loop(first, end, step, [*sums, factor], step_on)[:-1]

    def _round(self, column: SSAValue, columns: int, sums: Tiles) -> Tiles:
        return self._group(column, columns, self._factor(self._builder.index("div", column, self.step)), sums)

    def _factor(self, group: SSAValue) -> SSAValue:
        return self._rows(self._others[0], group, 1)

    def _group(self, column: SSAValue, columns: int, factor: SSAValue, sums: Tiles) -> Tiles:
        builder = self._builder
        left = self._rows(self._x, column, columns)
        result = []
        for first, each in zip(self._firsts, sums, strict=True):
            exact = builder.dot(left, self._across(first, column, columns), builder.full(0, self.shape, "i32"))
            result.append(builder.binary("add", each, builder.binary("mul", builder.cast(exact, "f32"), factor)))
        return result

    def finish(self, sums: Tiles) -> Tiles:
        scales = self._others[2]
        pairs = zip(self._firsts, sums, strict=True)
        return [self._builder.binary("mul", each, self._of_outputs(scales, first)) for first, each in pairs]


class _OfWidenedWeights(Product):
    """Of weights that become bfloat16 in registers: as the left operand, of a turned product, they may stay there."""

    def finish(self, sums: Tiles) -> Tiles:
        pairs = zip(self._firsts, sums, strict=True)
        return [self._builder.binary("mul", each, self._of_outputs(self._others[0], first)) for first, each in pairs]

    def _widened(self, column: SSAValue, columns: int, weights: Tiles, sums: Tiles, there: int) -> Tiles:
        """`weights` are f32 numbers that bfloat16 holds, or that it rounds; only so many columns are `there`."""
        builder = self._builder
        rows = self._rows(self._x, column, columns)
        if there < columns:
            inside = builder.compare(
                "less", builder.iota(builder.constant(0), columns), builder.full(there, element="i32")
            )
            rows = builder.select(inside, rows, builder.full(0.0, element="bf16"))
        return self._dots(rows, [builder.cast(weight, "bf16") for weight in weights], sums)


class _OfEightBits(_OfWidenedWeights):
    """Whole numbers from -128 to 127, which bfloat16 holds."""

    def _round(self, column: SSAValue, columns: int, sums: Tiles) -> Tiles:
        weights = [self._builder.cast(each, "f32") for each in self._weights(column, columns)]
        return self._widened(column, columns, weights, sums, columns)


class _OfFourBits(_OfWidenedWeights):
    """Numbers of which eight share a word, in the layout `matrix4`: a pair of each word is a group of columns."""

    def prefetch(self, column: SSAValue, columns: int) -> None:
        builder, buffer = self._builder, self._buffer(self._weight)
        for block in range(min(-(-columns // WORD_COLUMNS), PREFETCHED_BLOCKS)):
            row = self._block_row(builder.index("add", column, block * WORD_COLUMNS))
            for first in self._firsts:
                place = builder.index("add", row, first)
                builder.prefetch(buffer, place, builder.constant(0), (self._blocking.outputs, WORDS))

    def _block_row(self, column: SSAValue) -> SSAValue:
        """Where the words of the block that a column lies in begin."""
        block = self._builder.index("div", column, WORD_COLUMNS)
        return self._builder.index("mul", block, padded_rows(type_of(self._weight).get_shape()[0]))

    def _round(self, column: SSAValue, columns: int, sums: Tiles) -> Tiles:
        for start in range(0, columns, WORD_COLUMNS):
            first = self._builder.index("add", column, start)
            sums = self._block(first, min(WORD_COLUMNS, columns - start), sums)
        return sums

    def _block(self, column: SSAValue, columns: int, sums: Tiles) -> Tiles:
        builder, group = self._builder, 2 * WORDS
        if self._product.group is None or self._product.group.value.data != group:
            raise UnsupportedOperation(f"devices read weights of four bits in groups of {group} columns")
        block, zero = builder.index("div", column, WORD_COLUMNS), builder.constant(0)
        row = self._block_row(column)
        buffer, scales, zeros = (self._buffer(each) for each in (self._weight, *self._others[1:]))
        operands = [
            (
                self._along(buffer, builder.index("add", row, first), zero, WORDS),
                self._of_block(scales, block, first),
                self._of_block(zeros, block, first),
            )
            for first in self._firsts
        ]
        for pair in range(-(-columns // group)):
            weights = [builder.unpack(*each, pair) for each in operands]
            first = builder.index("add", column, pair * group)
            sums = self._widened(first, group, weights, sums, columns - pair * group)
        return sums

    def _of_block(self, buffer: SSAValue, block: SSAValue, first: SSAValue) -> SSAValue:
        """What belongs to a block of columns, for the outputs from `first` on, as a column."""
        return self._builder.load_block(buffer, block, first, (self._blocking.outputs, 1), column_step=1)


_KINDS: dict[str, type[Product]] = {
    "f32": _Plain,
    "bf16": _Plain,
    "f16": _Plain,
    "f8_e4m3": _OfFloat8,
    "u8": _OfQuantizedRows,
    "bf16xu8": _OfEightBits,
    "bf16xu4": _OfFourBits,
}
