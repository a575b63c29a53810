"""Lowers groups of kind `linear` for a device: a block of tokens by a block of outputs, in rounds over the columns,
then what follows element by element.

Where a product's columns are cut into parts, each part is added on its own and then the parts in order. One kernel
does all of it: one part after the other, or, for few rows, all at a time, each by warps of its own. Or there are two,
of which the first leaves the sums of each part in a buffer, computed side by side, and the second goes on from them.
All add the same numbers in the same order.
"""

from __future__ import annotations

from xdsl.ir import BlockArgument, Operation, SSAValue

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.device_blocking import SPLIT_TOKENS, DeviceBlocking, is_stacked
from tessera_compiler.schedule.linear_maps import matmul_in
from tessera_compiler.schedule.passes.plan_tiles import output_panels
from tessera_compiler.schedule.physical import PANEL
from tessera_compiler.schedule.views import VIEW_OPERATIONS
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.context import resolve_static, resolve_view
from tessera_compiler.tile.lowering.device_context import DeviceArguments
from tessera_compiler.tile.lowering.device_products import Product, Tiles, product_of
from tessera_compiler.tile.lowering.elementwise import emit_elementwise, scalar
from tessera_compiler.tile.lowering.quantizing import quantize_group

SPLIT_SUMS = "split_sums"
"""The buffer of the sums of parts: row `SPLIT_TOKENS p + t` for part p of row t, a column for each output."""

ROWS_IN_GROUPS = 128
"""Of a block: with so many, a product has many blocks both of rows and of outputs, and their order matters."""
BLOCKS_IN_GROUP = 8

LOADED_AHEAD = 2048
"""Up to as many elements of a block, what follows a product is loaded before it: of few rows, waiting for it would be a
part of the time that counts."""


def lower_device_linear(
    group: schedule.GroupOp, arguments: DeviceArguments, symbol: str, blocking: DeviceBlocking, splits: int = 1
) -> tile.KernelOp:
    """The whole of a group in one kernel."""
    lowering = _DeviceLinearLowering(group, arguments, symbol, blocking)
    return lowering.whole(splits)


def lower_device_parts(
    group: schedule.GroupOp, arguments: DeviceArguments, symbol: str, blocking: DeviceBlocking, splits: int
) -> tile.KernelOp:
    """The sums of each part of the columns, for at most `SPLIT_TOKENS` rows."""
    return _DeviceLinearLowering(group, arguments, symbol, blocking, [splits]).parts_apart(splits)


def lower_device_fold(
    group: schedule.GroupOp, arguments: DeviceArguments, symbol: str, blocking: DeviceBlocking, splits: int
) -> tile.KernelOp:
    """What follows the sums of the parts."""
    return _DeviceLinearLowering(group, arguments, symbol, blocking).fold(splits)


class _DeviceLinearLowering:
    """The two sides of a gate are parts of one product: their sums are made in the same rounds, side by side. What is
    made of the whole product before they are taken from it, such as its sum with biases, is made of each side."""

    def __init__(
        self,
        group: schedule.GroupOp,
        arguments: DeviceArguments,
        symbol: str,
        blocking: DeviceBlocking,
        apart: list[int] | None = None,
    ) -> None:
        self._group, self._arguments, self._blocking = group, arguments, blocking
        self._product = matmul_in(group)
        self._sides = [op for op in group.body.block.ops if _is_part(op, self._product)]
        self._of_all = [op for op in group.body.block.ops if self._sides and _is_of_all(op, self._product)]
        rows = rows_of(type_of(self._product.result)) or "T"
        grid: list[str | int] = [f"{rows}/{blocking.rows}", output_panels(group) * PANEL // blocking.outputs]
        self._builder = builder = KernelBuilder(symbol, [*grid, *(apart or [])], arguments.buffers, arguments.given)
        limit = builder.tokens if rows == "T" else builder.logit_rows
        of_rows, of_outputs = builder.program_id(0), builder.program_id(1)
        if blocking.rows >= ROWS_IN_GROUPS:
            of_rows, of_outputs = self._in_groups(of_rows, of_outputs, limit, int(grid[1]))
        self._first_row = builder.index("mul", of_rows, blocking.rows)
        self._first_output = builder.index("mul", of_outputs, blocking.outputs)
        self._count = builder.index("sub", limit, self._first_row)
        self._zero = builder.constant(0)
        self._values: dict[SSAValue, SSAValue] = {}
        starts = [side.values["start"] for side in self._sides] or [0]
        self._firsts = [builder.index("add", self._first_output, start) for start in starts]

    def _in_groups(
        self, of_rows: SSAValue, of_outputs: SSAValue, limit: SSAValue, outputs: int
    ) -> tuple[SSAValue, SSAValue]:
        """Which blocks an instance computes, so that those that run at a time share blocks of rows and of weights, for
        the caches: all blocks of outputs of so many blocks of rows come before the next of these."""
        index = self._builder.index
        rows = self._blocking.rows
        blocks = index("div", index("add", limit, rows - 1), rows)
        number = index("add", index("mul", of_outputs, blocks), of_rows)
        of_group = outputs * BLOCKS_IN_GROUP
        first = index("mul", index("div", number, of_group), BLOCKS_IN_GROUP)
        blocks_there = index("min", index("sub", blocks, first), self._builder.constant(BLOCKS_IN_GROUP))
        place = index("rem", number, of_group)
        return index("add", first, index("rem", place, blocks_there)), index("div", place, blocks_there)

    def whole(self, splits: int) -> tile.KernelOp:
        product = self._make_product(splits)
        columns = product.depth // splits
        product.prefetch(self._zero, columns)
        if self._blocking.rows * self._blocking.outputs <= LOADED_AHEAD:
            self._load_what_follows()
        if splits == 1 or is_stacked(self._blocking, splits):
            sums = product.add(self._zero, columns, product.empty())
        elif columns % product.step:
            sums = self._part_by_part(product, splits)
        else:
            sums = self._in_one_loop(product, columns)
        return self._follow(product.finish(product.upright(sums)))

    def _part_by_part(self, product: Product, splits: int) -> Tiles:
        columns = product.depth // splits

        def fold(part: SSAValue, total: Tiles) -> Tiles:
            first = self._builder.index("mul", part, columns)
            return self._added(total, product.add(first, columns, product.empty()))

        return self._builder.loop(self._zero, self._builder.constant(splits), 1, product.empty(), fold)

    def _in_one_loop(self, product: Product, columns: int) -> Tiles:
        """As `_part_by_part`, but loads for the next part are under way while one ends."""
        builder, sides = self._builder, len(self._firsts)

        def step(column: SSAValue, carried: Tiles) -> Tiles:
            total, sums = carried[:sides], product.add_round(column, carried[sides:])
            left = builder.index("rem", builder.index("add", column, product.step), columns)
            return builder.when(left, [*total, *sums], lambda: [*self._added(total, sums), *product.empty()])

        initial = [*product.empty(), *product.empty()]
        return builder.loop(self._zero, builder.constant(product.depth), product.step, initial, step)[:sides]

    def _load_what_follows(self) -> None:
        """What the group takes besides its product, block by block."""
        taken = [operand for op in self._group.body.block.ops if self._is_elementwise(op) for operand in op.operands]
        for value in taken:
            if _is_of_parameter(value):
                self._operand(value)

    def _is_elementwise(self, op: Operation) -> bool:
        others = (graph.ConstantOp, schedule.YieldOp, schedule.QuantizeOp, *VIEW_OPERATIONS)
        return op is not self._product and op not in self._of_all and not isinstance(op, others)

    def parts_apart(self, splits: int) -> tile.KernelOp:
        builder = self._builder
        product = self._make_product()
        columns = product.depth // splits
        part = builder.program_id(2)
        first_column = builder.index("mul", part, columns)
        product.prefetch(first_column, columns)
        sums = product.upright(product.add(first_column, columns, product.empty()))
        row = builder.index("add", builder.index("mul", part, SPLIT_TOKENS), self._first_row)
        for first, each in zip(self._firsts, sums, strict=True):
            builder.store_block(each, self._split_sums, row, first, count=self._count, row_step=1, lane_step=1)
        return builder.finish()

    def fold(self, splits: int) -> tile.KernelOp:
        product = self._make_product()
        shape = (self._blocking.rows, self._blocking.outputs)
        total = [self._builder.full(0.0, shape) for _ in self._firsts]
        for part in range(splits):
            total = self._added(total, self._sums_of(part))
        return self._follow(product.finish(total))

    @property
    def _split_sums(self) -> SSAValue:
        return self._builder.buffers[self._arguments.extra_parameter(SPLIT_SUMS)]

    def _sums_of(self, part: int) -> Tiles:
        row = self._builder.index("add", self._first_row, part * SPLIT_TOKENS)
        shape = (self._blocking.rows, self._blocking.outputs)
        return [
            self._builder.load_block(self._split_sums, row, first, shape, count=self._count, row_step=1, lane_step=1)
            for first in self._firsts
        ]

    def _added(self, total: Tiles, sums: Tiles) -> Tiles:
        return [self._builder.binary("add", *pair) for pair in zip(total, sums, strict=True)]

    def _make_product(self, splits: int = 1) -> Product:
        return product_of(self._builder, self._product, self._blocking, self._rows, self._firsts, splits)

    def _follow(self, products: Tiles) -> tile.KernelOp:
        """What the group does with its product."""
        columns: dict[SSAValue, SSAValue] = {}
        for op in self._group.body.block.ops:
            if isinstance(op, schedule.YieldOp):
                break
            if isinstance(op, graph.ConstantOp):
                self._values[op.result] = self._builder.full(scalar(op))
            elif op is self._product:
                self._values.update(self._taken_apart(products))
            elif isinstance(op, schedule.QuantizeOp):
                columns.update(self._quantize(op))
            elif op not in self._of_all and not isinstance(op, VIEW_OPERATIONS):
                tiles = [self._operand(operand) for operand in op.operands]
                self._values[op.results[0]] = emit_elementwise(self._builder, op, tiles)
        for index, value in enumerate(self._group.yielded):
            self._builder.store_block(
                self._values[value],
                self._builder.buffers[self._arguments.result_parameter(index)],
                self._first_row,
                columns.get(value, self._first_output),
                count=self._count,
                row_step=1,
                lane_step=1,
            )
        return self._builder.finish()

    def _taken_apart(self, products: Tiles) -> dict[SSAValue, SSAValue]:
        """The product, or its sides."""
        if not self._sides:
            return {self._product.result: products[0]}
        taken: dict[SSAValue, SSAValue] = {}
        for side, first, product in zip(self._sides, self._firsts, products, strict=True):
            made = {self._product.result: product}
            for op in self._of_all:
                tiles = [made[each] if each in made else self._loaded(each, first) for each in op.operands]
                made[op.results[0]] = emit_elementwise(self._builder, op, tiles)
            taken[side.results[0]] = made[side.operands[0]]
        return taken

    def _quantize(self, op: schedule.QuantizeOp) -> dict[SSAValue, SSAValue]:
        """Where the scales and sums go, which are one for each group of columns; a block is one group."""
        rounded, scale, total = quantize_group(self._builder, self._operand(op.x))
        self._values.update(zip(op.results, (rounded, scale, total), strict=True))
        number = self._builder.index("div", self._first_output, op.group.value.data)
        return {op.scale: number, op.sum: number}

    def _operand(self, value: SSAValue) -> SSAValue:
        if value not in self._values:
            self._values[value] = self._loaded(value, self._first_output)
        return self._values[value]

    def _loaded(self, value: SSAValue, first: SSAValue) -> SSAValue:
        """Of what the group is given, what belongs to the outputs from `first` on."""
        if isinstance(value.owner, graph.ConstantOp):
            return self._builder.full(scalar(value.owner))
        if rows_of(type_of(value)) is None:
            return self._static(value, first)
        return self._rows(value, first, self._blocking.outputs)

    def _static(self, value: SSAValue, first: SSAValue) -> SSAValue:
        """Of a vector what belongs to the outputs from `first` on; of a number that."""
        shape = type_of(value).get_shape()
        buffer = self._builder.buffers[resolve_static(value).index]
        if not shape or shape[-1] == 1:
            return self._builder.load(buffer, self._zero, self._zero, (1, 1))
        return self._builder.load(buffer, self._zero, first, (1, self._blocking.outputs))

    def _rows(
        self,
        value: SSAValue,
        column: SSAValue,
        columns: int,
        *,
        box: bool = False,
        parts: tuple[int, int] | None = None,
    ) -> SSAValue:
        base, view = resolve_view(value)
        buffer, first = self._builder.buffers[base.index], self._builder.index("add", column, view.offset)
        shape = (self._blocking.rows, columns)
        if parts is not None:
            stack = (parts[0], *shape)
            return self._builder.load_stack(buffer, self._first_row, first, stack, parts[1], count=self._count)
        return self._builder.load_block(
            buffer, self._first_row, first, shape, count=self._count, box=box, row_step=1, lane_step=1
        )


def _is_of_parameter(value: SSAValue) -> bool:
    """Whether a value is a view of something that the group is given."""
    while isinstance(value.owner, VIEW_OPERATIONS):
        value = value.owner.operands[0]
    return isinstance(value, BlockArgument)


def _is_part(op: Operation, product: schedule.MatmulOp) -> bool:
    """Whether an op takes a part of the product, or of what is made of all of it."""
    owner = op.operands[0].owner if isinstance(op, graph.SliceOp) else None
    return isinstance(owner, Operation) and (owner is product or _is_of_all(owner, product))


def _is_of_all(op: Operation, product: schedule.MatmulOp) -> bool:
    """Whether an op makes something of all of the product, element by element."""
    if op is product or isinstance(op, schedule.YieldOp | graph.SliceOp):
        return False
    owners = [operand.owner for operand in op.operands]
    return any(isinstance(each, Operation) and (each is product or _is_of_all(each, product)) for each in owners)
