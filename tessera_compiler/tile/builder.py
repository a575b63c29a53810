"""Writes kernels: a thin layer over the dialect, so that lowering reads like the kernel it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xdsl.builder import Builder
from xdsl.dialects.builtin import MemRefType
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue
from xdsl.rewriter import InsertPoint

from tessera_compiler.tile import dialect
from tessera_compiler.tile.stacks import Shape
from tessera_compiler.tile.types import INDEX, element_name, shape_of


class KernelBuilder:
    """Builds one `tile.kernel`; `finish` returns it, verified."""

    def __init__(
        self,
        symbol: str,
        grid: Sequence[str | int],
        buffers: Sequence[MemRefType[Attribute]],
        given: Sequence[int] = (),
    ):
        """`given` are the numbers of the buffers that no launch of a step writes, for a target that asks."""
        self._given = tuple(given)
        self._symbol = symbol
        self._grid = list(grid)
        self._block = Block(arg_types=[*buffers, INDEX, INDEX, INDEX])
        self._builder = Builder(InsertPoint.at_end(self._block))
        self._constants: dict[tuple[int, int], SSAValue] = {}
        self.buffers: list[SSAValue] = list(self._block.args[:-3])
        self.tokens, self.logit_rows, self.table_width = self._block.args[-3:]

    def finish(self) -> dialect.KernelOp:
        self._builder.insert(dialect.ReturnOp())
        kernel = dialect.KernelOp(self._symbol, self._grid, Region(self._block), self._given)
        kernel.verify()
        return kernel

    def _insert(self, operation: Operation) -> SSAValue:
        self._builder.insert(operation)
        return operation.results[0]

    # Indices

    def program_id(self, axis: int) -> SSAValue:
        return self._insert(dialect.ProgramIdOp(axis))

    def constant(self, value: int) -> SSAValue:
        block = self._builder.insertion_point.block
        key = (id(block), value)
        if key not in self._constants:
            self._constants[key] = self._insert(dialect.ConstantIndexOp(value))
        return self._constants[key]

    def index(self, function: str, left: SSAValue, right: SSAValue | int) -> SSAValue:
        if isinstance(right, int):
            if (function, right) in {("add", 0), ("sub", 0), ("mul", 1), ("div", 1)}:
                return left
            right = self.constant(right)
        return self._insert(dialect.IndexOp(function, left, right))

    def load_index(self, buffer: SSAValue, at: SSAValue) -> SSAValue:
        return self._insert(dialect.LoadIndexOp(buffer, at))

    # Memory

    def load(
        self,
        buffer: SSAValue,
        row: SSAValue,
        column: SSAValue,
        shape: tuple[int, int],
        *,
        limit: SSAValue | None = None,
        row_step: int = 0,
        column_step: int = 0,
        lane_step: int = 1,
    ) -> SSAValue:
        return self._insert(
            dialect.LoadOp(
                buffer,
                row,
                column,
                shape,
                limit=limit,
                row_step=row_step,
                column_step=column_step,
                lane_step=lane_step,
            )
        )

    def store(
        self,
        value: SSAValue,
        buffer: SSAValue,
        row: SSAValue,
        column: SSAValue,
        *,
        limit: SSAValue | None = None,
        row_step: int = 0,
        column_step: int = 0,
        lane_step: int = 1,
    ) -> None:
        value = self.cast(value, element_name(buffer.type))
        self._builder.insert(
            dialect.StoreOp(
                value,
                buffer,
                row,
                column,
                limit=limit,
                row_step=row_step,
                column_step=column_step,
                lane_step=lane_step,
            )
        )

    def load_packed(
        self, buffer: SSAValue, n0: SSAValue, k0: SSAValue, shape: tuple[int, int], *, ahead: int | None = None
    ) -> SSAValue:
        return self._insert(dialect.LoadPackedOp(buffer, n0, k0, shape, ahead=ahead))

    def load_packed_row(self, buffer: SSAValue, n: SSAValue, k0: SSAValue, columns: int) -> SSAValue:
        return self._insert(dialect.LoadPackedRowOp(buffer, n, k0, columns))

    def load_panels(
        self,
        buffer: SSAValue,
        rows: Sequence[SSAValue],
        column: SSAValue,
        shape: tuple[int, int],
        packed: int,
        along: str,
        limit: SSAValue | None = None,
        ahead: Sequence[SSAValue] = (),
    ) -> SSAValue:
        return self._insert(dialect.LoadPanelsOp(buffer, rows, column, shape, packed, along, limit, ahead))

    def store_panel(
        self,
        value: SSAValue,
        buffer: SSAValue,
        rows: Sequence[SSAValue],
        column: SSAValue,
        at: Sequence[SSAValue],
        *,
        packed: int,
        along: str,
        first: int = 0,
        step: int = 1,
        count: SSAValue | None = None,
    ) -> None:
        value = self.cast(value, element_name(buffer.type))
        self._builder.insert(
            dialect.StorePanelOp(
                value, buffer, rows, column, at, first=first, step=step, packed=packed, along=along, count=count
            )
        )

    def load_block(
        self,
        buffer: SSAValue,
        row: SSAValue,
        column: SSAValue,
        shape: tuple[int, int],
        *,
        count: SSAValue | None = None,
        box: bool = False,
        **steps: int,
    ) -> SSAValue:
        """`steps` are those of `tile.load_block`; one that is not given is 0."""
        return self._insert(dialect.LoadBlockOp(buffer, row, column, shape, count=count, box=box, **steps))

    def store_block(
        self,
        value: SSAValue,
        buffer: SSAValue,
        row: SSAValue,
        column: SSAValue,
        *,
        count: SSAValue | None = None,
        **steps: int,
    ) -> None:
        value = self.cast(value, element_name(buffer.type))
        self._builder.insert(dialect.StoreBlockOp(value, buffer, row, column, count=count, **steps))

    def prefetch(self, buffer: SSAValue, row: SSAValue, column: SSAValue, shape: tuple[int, int]) -> None:
        self._builder.insert(dialect.PrefetchOp(buffer, row, column, shape))

    # Tiles

    def full(self, value: float, shape: tuple[int, int] = (1, 1), element: str = "f32") -> SSAValue:
        return self._insert(dialect.FullOp(value, shape, element))

    def iota(self, start: SSAValue, count: int, axis: int = 1, repeat: int = 1) -> SSAValue:
        return self._insert(dialect.IotaOp(start, count, axis, repeat))

    def unary(self, function: str, operand: SSAValue) -> SSAValue:
        return self._insert(dialect.UnaryOp(function, operand))

    def binary(self, function: str, left: SSAValue, right: SSAValue | float) -> SSAValue:
        if isinstance(right, int | float):
            right = self.full(right, element=element_name(left.type))
        return self._insert(dialect.BinaryOp(function, left, right))

    def compare(self, function: str, left: SSAValue, right: SSAValue) -> SSAValue:
        return self._insert(dialect.CompareOp(function, left, right))

    def select(self, condition: SSAValue, left: SSAValue, right: SSAValue) -> SSAValue:
        return self._insert(dialect.SelectOp(condition, left, right))

    def multiply_add(self, x: SSAValue, y: SSAValue, z: SSAValue) -> SSAValue:
        return self._insert(dialect.MultiplyAddOp(x, y, z))

    def cast(self, operand: SSAValue, element: str) -> SSAValue:
        if element_name(operand.type) == element:
            return operand
        return self._insert(dialect.CastOp(operand, element))

    def transpose(self, operand: SSAValue) -> SSAValue:
        return self._insert(dialect.TransposeOp(operand))

    def unpack(self, words: SSAValue, scales: SSAValue, zeros: SSAValue, pair: int) -> SSAValue:
        return self._insert(dialect.UnpackOp(words, scales, zeros, pair))

    def reduce(self, function: str, operand: SSAValue) -> SSAValue:
        return self._insert(dialect.ReduceOp(function, operand))

    def columns(self, operand: SSAValue, first: int, count: int, step: int = 1) -> SSAValue:
        if (first, count, step) == (0, shape_of(operand.type)[1], 1):
            return operand
        return self._insert(dialect.ColumnsOp(operand, first, count, step))

    def dot(self, left: SSAValue, right: SSAValue, accumulator: SSAValue | None = None) -> SSAValue:
        if accumulator is None:
            known = {**dialect.DotOp.ELEMENTS, **dialect.DotOp.PANELS_ELEMENTS, **dialect.DotOp.BLOCK_ELEMENTS}
            element = known[element_name(left.type), element_name(right.type)]
            accumulator = self.full(0, (shape_of(left.type)[0], shape_of(right.type)[1]), element)
        return self._insert(dialect.DotOp(left, right, accumulator))

    # Loops

    def loop(
        self,
        lower: SSAValue,
        upper: SSAValue,
        step: int,
        initial: Sequence[SSAValue],
        body: Callable[[SSAValue, list[SSAValue]], Sequence[SSAValue]],
        *,
        once: bool = False,
    ) -> list[SSAValue]:
        """`body(index, carried)` writes one round and returns what is carried into the next."""
        step_value = self.constant(step)
        block = Block(arg_types=[INDEX, *[value.type for value in initial]])
        outer = self._builder
        self._builder = Builder(InsertPoint.at_end(block))
        carried = body(block.args[0], list(block.args[1:]))
        self._builder.insert(dialect.YieldOp(carried))
        self._builder = outer
        loop = dialect.ForOp(lower, upper, step_value, initial, block, once=once)
        self._builder.insert(loop)
        return list(loop.results)

    def when(self, at: SSAValue, initial: Sequence[SSAValue], body: Callable[[], Sequence[SSAValue]]) -> list[SSAValue]:
        """What `body` writes and returns where `at` is 0, else the initial tiles."""
        block, outer = Block(), self._builder
        self._builder = Builder(InsertPoint.at_end(block))
        self._builder.insert(dialect.YieldOp(body()))
        self._builder = outer
        choice = dialect.WhenOp(at, initial, block)
        self._builder.insert(choice)
        return list(choice.results)

    # Stacks

    def empty_stack(self, shape: Shape) -> SSAValue:
        return self._insert(dialect.EmptyStackOp(shape))

    def load_stack(
        self,
        buffer: SSAValue,
        row: SSAValue,
        column: SSAValue,
        shape: Shape,
        part_step: int,
        *,
        count: SSAValue | None = None,
        transposed: bool = False,
    ) -> SSAValue:
        load = dialect.LoadStackOp(buffer, row, column, shape, part_step, count=count, transposed=transposed)
        return self._insert(load)

    def dot_stack(self, left: SSAValue, right: SSAValue, accumulator: SSAValue) -> SSAValue:
        return self._insert(dialect.DotStackOp(left, right, accumulator))

    def sum_stack(self, operand: SSAValue) -> SSAValue:
        return self._insert(dialect.SumStackOp(operand))

    # Parts

    def parts(self, at: SSAValue, counts: Sequence[int], bodies: Sequence[Callable[[SSAValue], None]]) -> None:
        """`body(index)` writes what the next `count` instances along the axis of `at` do; they count from 0."""
        outer, blocks, first = self._builder, [], 0
        for count, body in zip(counts, bodies, strict=True):
            blocks.append(Block())
            self._builder = Builder(InsertPoint.at_end(blocks[-1]))
            body(self.index("sub", at, first))
            self._builder.insert(dialect.YieldOp([]))
            first += count
        self._builder = outer
        self._builder.insert(dialect.PartsOp(at, counts, blocks))

    def inline(self, kernel: dialect.KernelOp, buffers: Sequence[SSAValue], ids: Sequence[SSAValue]) -> None:
        """All that another kernel does, with `buffers` for its own and `ids` for the places in its grid."""
        block = kernel.body.block
        sizes = (self.tokens, self.logit_rows, self.table_width)
        values: dict[SSAValue, SSAValue] = dict(zip(block.args, [*buffers, *sizes], strict=True))
        values.update(
            (op.result, ids[op.axis.value.data]) for op in kernel.walk() if isinstance(op, dialect.ProgramIdOp)
        )
        for op in block.ops:
            if not isinstance(op, dialect.ReturnOp | dialect.ProgramIdOp):
                self._builder.insert(op.clone(values))
