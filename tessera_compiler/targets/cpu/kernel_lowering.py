"""Lowers one Tile IR kernel to an LLVM function `void (buffers…, T, L, W, first, last)` that runs instances
first..last-1.

Tiles are evaluated lazily, sixteen columns at a time, where they are consumed: a chain of elementwise ops between a
load and a store is one loop with no memory in between. A tile is kept in stack memory (which LLVM promotes to
registers when it is small) only when it is carried by a loop, accumulated by a dot, read element by element by one,
or costly and used twice.

Instances are numbered with the first grid axis fastest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from llvmlite import ir
from xdsl.dialects.builtin import MemRefType, VectorType
from xdsl.ir import Block, BlockArgument, Operation, SSAValue

from tessera_compiler.targets.cpu.arithmetic import Arithmetic
from tessera_compiler.targets.cpu.choose_columns import choose_columns
from tessera_compiler.targets.cpu.dots import DotLowering
from tessera_compiler.targets.cpu.emission import I64, LANES, POINTER, Emission, i64, splat_constant, vector
from tessera_compiler.targets.cpu.memory_lowering import MemoryLowering
from tessera_compiler.targets.cpu.object_code import CpuClass
from tessera_compiler.targets.cpu.prefetching import Prefetching
from tessera_compiler.targets.cpu.vector_math import VectorMath
from tessera_compiler.tile import dialect
from tessera_compiler.tile.functions import EXPENSIVE
from tessera_compiler.tile.lowering.chunk_sizes import CHUNK_BLOCKS
from tessera_compiler.tile.types import element_name, shape_of

Position: TypeAlias = int | ir.Value
"""A row or a column: known at compile time, or an i64."""

UNROLLED_CHUNKS = 8
"""Tiles with at most this many chunks of columns are unrolled; wider ones get a loop."""

_ELEMENT_BY_ELEMENT = (
    dialect.UnaryOp,
    dialect.BinaryOp,
    dialect.SelectOp,
    dialect.CastOp,
    dialect.CompareOp,
    dialect.ColumnsOp,
)


@dataclass
class Stored:
    """A tile in stack memory, as rows of chunks; a tile of one column keeps that column in every lane."""

    memory: ir.Value
    rows: int
    chunks: int
    element: str


class KernelLowering:
    def __init__(self, module: ir.Module, math: VectorMath, cpu_class: CpuClass):
        self._module = module
        self._math = math
        self.cpu_class = cpu_class

    def lower(self, kernel: dialect.KernelOp) -> ir.Function:
        block = kernel.body.block
        count = len(block.args)
        kind = ir.FunctionType(
            ir.VoidType(),
            [POINTER if isinstance(a.type, MemRefType) else I64 for a in block.args] + [I64, I64, I64, POINTER],
        )
        function = ir.Function(self._module, kind, kernel.symbol)
        function.linkage = "internal"
        for argument in function.args[: count - 3]:
            argument.add_attribute("noalias")
        return KernelEmitter(self, kernel, function, self._math).emit()


class KernelEmitter:
    def __init__(self, lowering: KernelLowering, kernel: dialect.KernelOp, function: ir.Function, math: VectorMath):
        self.cpu_class = lowering.cpu_class
        self._kernel = kernel
        self._function = function
        self.emission = Emission(function)
        self.arithmetic = Arithmetic(self.emission, math, self.cpu_class)
        self._dots = DotLowering(self)
        self.memory = MemoryLowering(self)
        self.prefetching = Prefetching(self, *function.args[-2:])
        # Products of panels in several rows have more results than registers: their kernels go through rows in loops.
        self._rolled = any(isinstance(op, dialect.LoadPanelsOp) for op in kernel.walk())
        self._in_place: dict[SSAValue, Stored] = {}
        self.scalars: dict[SSAValue, ir.Value] = {}
        self.stored: dict[SSAValue, Stored] = {}
        self._program: list[ir.Value] = []
        self._memo: dict[tuple[int, object, object], ir.Value] = {}

    # The whole kernel

    def emit(self) -> ir.Function:
        block = self._kernel.body.block
        for argument, value in zip(block.args, self._function.args, strict=False):
            self.scalars[argument] = value
        first, last = self._function.args[-4:-2]
        sizes = [self._grid_size(entry) for entry in self._kernel.grid_entries]
        self.emission.loop(first, last, 1, lambda index: self._emit_instance(block, index, sizes))
        self.emission.finish()
        return self._function

    def _grid_size(self, entry: str | int) -> ir.Value:
        if isinstance(entry, int):
            return i64(entry)
        if entry == "Q":
            return i64(0)  # the last entry of a grid, of which nobody asks the size
        if entry == "C":
            entry = f"W/{CHUNK_BLOCKS}"
        symbol, _, divisor = entry.partition("/")
        value = self._function.args[len(self._kernel.body.block.args) - 3 + "TLW".index(symbol)]
        builder = self.emission.builder
        if not divisor:
            return value
        return builder.udiv(builder.add(value, i64(int(divisor) - 1)), i64(int(divisor)))

    def _emit_instance(self, block: Block, index: ir.Value, sizes: list[ir.Value]) -> None:
        builder = self.emission.builder
        self._program = []
        rest = index
        for size in sizes[:-1]:
            self._program.append(builder.urem(rest, size))
            rest = builder.udiv(rest, size)
        self._program.append(rest)
        self.prefetching.begin_instance(index)
        self._emit_block(block)

    def _emit_block(self, block: Block) -> None:
        for operation in block.ops:
            self._emit_operation(operation)

    def _emit_operation(self, operation: Operation) -> None:
        builder = self.emission.builder
        if isinstance(operation, dialect.ProgramIdOp):
            self.scalars[operation.result] = self._program[operation.axis.value.data]
        elif isinstance(operation, dialect.ConstantIndexOp):
            self.scalars[operation.result] = i64(operation.value.value.data)
        elif isinstance(operation, dialect.IndexOp):
            self.scalars[operation.result] = self._index(operation)
        elif isinstance(operation, dialect.LoadIndexOp):
            pointer = self.emission.offset(self.scalars[operation.buffer], self.scalars[operation.at], "i32")
            self.scalars[operation.result] = builder.sext(self.emission.load(pointer, ir.IntType(32), 4), I64)
        elif isinstance(operation, dialect.StoreOp):
            self.memory.store(operation)
        elif isinstance(operation, dialect.StorePanelOp):
            self.memory.store_panel(operation)
        elif isinstance(operation, dialect.LoadPanelsOp):
            self.memory.prepare_panels(operation)
        elif isinstance(operation, dialect.LoadPackedOp):
            self.prefetching.ask_for_row(operation)
        elif isinstance(operation, dialect.ReduceOp):
            self.stored[operation.result] = self._reduce(operation)
        elif isinstance(operation, dialect.DotOp):
            self.stored[operation.result] = self._dots.emit(operation)
        elif isinstance(operation, dialect.ForOp):
            self._for(operation)
        elif isinstance(operation, dialect.YieldOp | dialect.ReturnOp):
            pass
        elif self._must_store(operation.results[0]):
            self.kept(operation.results[0])

    def _index(self, operation: dialect.IndexOp) -> ir.Value:
        builder = self.emission.builder
        left, right = self.scalars[operation.left], self.scalars[operation.right]
        function = operation.function.data
        if function in ("min", "max"):
            smaller = builder.icmp_signed("<", left, right)
            return builder.select(smaller, *((left, right) if function == "min" else (right, left)))
        emit: dict[str, Callable[[ir.Value, ir.Value], ir.Value]] = {
            "add": builder.add,
            "sub": builder.sub,
            "mul": builder.mul,
            "div": builder.udiv,
            "rem": builder.urem,
        }
        return emit[function](left, right)

    # Which tiles live in memory

    def _must_store(self, value: SSAValue) -> bool:
        if not isinstance(value.type, VectorType) or element_name(value.type) == "i1":
            return False
        uses = [use.operation for use in value.uses]
        read_by_element = any(isinstance(use, dialect.DotOp) and use.left is value for use in uses)
        if read_by_element and not is_addressable(value):
            return True
        if any(isinstance(use, dialect.StorePanelOp) and len(use.rows) > 1 for use in uses):
            # Such a store goes through the rows in a loop. It may stand in a loop of no round itself, so not there.
            return True
        if shape_of(value.type)[1] == 1 and not isinstance(value.owner, dialect.FullOp | dialect.IotaOp):
            # One number a row: computed here once, not again for every chunk of the rows it is broadcast over.
            return True
        return len(uses) > 1 and self._is_expensive(value)

    def _is_expensive(self, value: SSAValue) -> bool:
        if value in self.stored or isinstance(value, BlockArgument):
            return False
        operation = value.owner
        if isinstance(operation, dialect.UnaryOp) and operation.function.data in EXPENSIVE:
            return True
        if isinstance(operation, dialect.BinaryOp) and operation.function.data in ("pow", "div"):
            return True
        if isinstance(operation, _ELEMENT_BY_ELEMENT):
            return any(self._is_expensive(operand) for operand in operation.operands)
        return False

    def reserve(self, value: SSAValue) -> Stored:
        rows, columns = shape_of(value.type)
        chunks = -(-columns // LANES)
        element = element_name(value.type)
        return Stored(self.emission.allocate(vector(element), rows * chunks), rows, chunks, element)

    def kept(self, value: SSAValue) -> Stored:
        """A tile in stack memory, evaluated into it if it is not there yet."""
        if value not in self.stored:
            stored = self.reserve(value)
            self._fill(stored, value)
            self.stored[value] = stored
        return self.stored[value]

    def reserve_result(self, value: SSAValue) -> Stored:
        """Where a dot keeps its sums: with the tile that a loop carries, if it adds to that one."""
        return self._in_place.get(value) or self.reserve(value)

    @property
    def sums_in_registers(self) -> int:
        """How many vectors of sums a dot may keep, leaving registers for what it multiplies."""
        return 24 if self.cpu_class.vector_bits == 512 else 4

    def slot(self, stored: Stored, row: Position, column: Position) -> ir.Value:
        builder = self.emission.builder
        kind = vector(stored.element)
        if isinstance(row, int) and isinstance(column, int):
            return self.emission.element(stored.memory, kind, row * stored.chunks + column // LANES)
        row_value = i64(row) if isinstance(row, int) else row
        chunk = i64(column // LANES) if isinstance(column, int) else builder.udiv(column, i64(LANES))
        return self.emission.element(
            stored.memory, kind, builder.add(builder.mul(row_value, i64(stored.chunks)), chunk)
        )

    def _fill(self, stored: Stored, value: SSAValue) -> None:
        """Evaluates a tile into stack memory."""

        def put(row: Position, column: Position, lanes: int) -> None:
            result = self.chunk(value, row, column, lanes)
            self.emission.builder.store(result, self.slot(stored, row, column), align=4)

        self.each_chunk(shape_of(value.type), put)

    # Loops over the chunks of a tile

    def each_chunk(self, shape: tuple[int, int], body: Callable[[Position, Position, int], None]) -> None:
        """Calls `body(row, column, lanes)` for every chunk, rows outermost."""
        self.each_row(
            shape[0],
            lambda row: self.each_column(shape[1], lambda column, lanes: self.fresh(body, row, column, lanes)),
        )

    def each_row(self, rows: int, body: Callable[[Position], None]) -> None:
        if self._rolled and rows > 1:
            self.emission.loop(i64(0), i64(rows), 1, body)
        else:
            for row in range(rows):
                body(row)

    def each_column(self, columns: int, body: Callable[[Position, int], None]) -> None:
        whole = columns // LANES
        if whole <= UNROLLED_CHUNKS:
            for chunk in range(whole):
                body(chunk * LANES, LANES)
        else:
            self.emission.loop(i64(0), i64(whole * LANES), LANES, lambda column: body(column, LANES))
        if columns % LANES:
            body(whole * LANES, columns % LANES)

    def fresh(
        self, body: Callable[[Position, Position, int], None], row: Position, column: Position, lanes: int
    ) -> None:
        self._memo.clear()
        body(row, column, lanes)
        self._memo.clear()

    def forget(self) -> None:
        """To be called wherever control flow changes, since chunks evaluated before need not dominate what follows."""
        self._memo.clear()

    # Values

    def chunk(self, value: SSAValue, row: Position, column: Position, lanes: int = LANES) -> ir.Value:
        """Sixteen elements of a tile from (row, column) on; a tile with one row or one column is broadcast. Lanes
        past `lanes` are undefined but never fault."""
        rows, columns = shape_of(value.type)
        if rows == 1:
            row = 0
        if columns == 1:
            column, lanes = 0, LANES
        key = (id(value), row if isinstance(row, int) else id(row), column if isinstance(column, int) else id(column))
        if key not in self._memo:
            self._memo[key] = self._evaluate(value, row, column, lanes)
        return self._memo[key]

    def _evaluate(self, value: SSAValue, row: Position, column: Position, lanes: int) -> ir.Value:
        if value in self.stored:
            stored = self.stored[value]
            return self.emission.load(self.slot(stored, row, column), vector(stored.element), 4)
        operation = value.owner
        builder = self.emission.builder

        def operand(number: int) -> ir.Value:
            return self.chunk(operation.operands[number], row, column, lanes)  # type: ignore[union-attr]

        if isinstance(operation, dialect.LoadOp):
            return self.memory.load(operation, row, column, lanes)
        if isinstance(operation, dialect.LoadPackedRowOp):
            return self.memory.load_packed_row(operation, column, lanes)
        if isinstance(operation, dialect.LoadPackedOp):
            return self.memory.load_packed(operation, row, column)
        if isinstance(operation, dialect.LoadPanelsOp):
            return self.memory.load_panels(operation, column)
        if isinstance(operation, dialect.FullOp):
            element = element_name(operation.result.type)
            if element == "bf16":
                return self.emission.float_to_bfloat16(splat_constant("f32", operation.constant))
            return splat_constant(element, operation.constant)
        if isinstance(operation, dialect.IotaOp):
            return self._iota(operation, row, column)
        if isinstance(operation, dialect.UnaryOp):
            return self.arithmetic.unary(operation.function.data, operand(0), element_name(operation.operand.type))
        if isinstance(operation, dialect.BinaryOp):
            element = element_name(operation.left.type)
            return self.arithmetic.binary(operation.function.data, operand(0), operand(1), element)
        if isinstance(operation, dialect.CompareOp):
            element = element_name(operation.left.type)
            return self.arithmetic.compare(operation.function.data, operand(0), operand(1), element)
        if isinstance(operation, dialect.SelectOp):
            return builder.select(operand(0), operand(1), operand(2))
        if isinstance(operation, dialect.CastOp):
            pair = (element_name(operation.operand.type), element_name(operation.result.type))
            if pair == ("f32", "bf16") and self._rounds_natively(operation.operand):
                return self.emission.round_normal_to_bfloat16(operand(0))
            return self.arithmetic.cast(operand(0), *pair)
        if isinstance(operation, dialect.ColumnsOp):
            return choose_columns(self, operation, row, column, lanes)
        raise TypeError(f"{operation} cannot be evaluated on a CPU")

    def _rounds_natively(self, value: SSAValue) -> bool:
        """Whether the instruction that takes subnormal numbers for zero may round a tile: `exp2` gives none."""
        source = value.owner
        never_subnormal = isinstance(source, dialect.UnaryOp) and source.function.data == "exp2"
        return never_subnormal and "+avx512bf16" in self.cpu_class.llvm_features

    def _iota(self, operation: dialect.IotaOp, row: Position, column: Position) -> ir.Value:
        builder = self.emission.builder
        position = column if operation.axis.value.data == 1 else row
        start = self.scalars[operation.start]
        if not isinstance(position, int) or position:
            start = builder.add(start, i64(position) if isinstance(position, int) else position)
        base = self.emission.splat(builder.trunc(start, ir.IntType(32)))
        if shape_of(operation.result.type)[1] == 1:
            return base
        return builder.add(
            base, ir.Constant(vector("i32"), [ir.Constant(ir.IntType(32), lane) for lane in range(LANES)])
        )

    # Memory

    def address(self, operation: dialect.LoadOp | dialect.StoreOp, row: Position, column: Position) -> ir.Value:
        """The address of one element of the tile of a load or store."""
        return self.memory.address(operation, row, column)

    # Reductions and loops

    def _reduce(self, operation: dialect.ReduceOp) -> Stored:
        element = element_name(operation.operand.type)
        function = operation.function.data
        identity = self.arithmetic.identity(function, element)
        stored = self.reserve(operation.result)
        lanes_memory = self.emission.allocate(vector(element), 1)
        rows, columns = shape_of(operation.operand.type)
        builder = self.emission.builder

        def combine(left: ir.Value, right: ir.Value) -> ir.Value:
            return self.arithmetic.combine(function, left, right, element)

        def reduce_row(row: Position) -> None:
            builder.store(identity, lanes_memory, align=4)

            def add(_row: Position, column: Position, lanes: int) -> None:
                value = self.chunk(operation.operand, row, column, lanes)
                if columns == 1:
                    lanes = 1
                if lanes < LANES:
                    select = [lane if lane < lanes else LANES + lane for lane in range(LANES)]
                    value = self.emission.shuffle(value, select, identity)
                so_far = self.emission.load(lanes_memory, vector(element), 4)
                builder.store(combine(so_far, value), lanes_memory, align=4)

            self.each_chunk((1, columns), add)
            total = self.emission.reduce_lanes(self.emission.load(lanes_memory, vector(element), 4), combine)
            builder.store(total, self.slot(stored, row, 0), align=4)

        self.each_row(rows, reduce_row)
        return stored

    def _for(self, operation: dialect.ForOp) -> None:
        self.forget()
        carried: list[Stored] = []
        block = operation.body.block
        for value in operation.initial:
            stored = self.reserve(value)
            self._fill(stored, value)
            carried.append(stored)
        for argument, result, stored in zip(block.args[1:], operation.results, carried, strict=True):
            self.stored[argument] = stored
            self.stored[result] = stored
        last = block.last_op
        assert isinstance(last, dialect.YieldOp)
        updated: dict[SSAValue, Stored] = {}
        for argument, value, stored in zip(block.args[1:], last.values, carried, strict=True):
            if adds_in_place(argument, value):
                self._in_place[value] = stored
            elif updates_in_place(argument, value):
                updated[value] = stored
        step = operation.step.owner
        assert isinstance(step, dialect.ConstantIndexOp), "the step of a loop is a constant"

        def body(index: ir.Value) -> None:
            self.forget()
            self.scalars[block.args[0]] = index
            self._emit_block(block)
            # All next values are computed before any is written: they may depend on each other's present ones.
            following = []
            for value in last.values:
                source = self.stored.get(value)
                if source is None or (source in carried and value not in self._in_place):
                    source = updated.get(value) or self.reserve(value)
                    self._fill(source, value)
                following.append(source)
            for target, source in zip(carried, following, strict=True):
                if source is not target:
                    self._copy(source, target)
            self.forget()

        lower, upper = self.scalars[operation.lower], self.scalars[operation.upper]
        if operation.once is None:
            self.emission.loop(lower, upper, step.value.value.data, body)
        else:
            with self.emission.builder.if_then(self.emission.builder.icmp_signed("<", lower, upper)):
                body(lower)
        self.forget()

    def _copy(self, source: Stored, target: Stored) -> None:
        kind = vector(source.element)

        def copy(slot: Position) -> None:
            value = self.emission.load(self.emission.element(source.memory, kind, slot), kind, 4)
            self.emission.builder.store(value, self.emission.element(target.memory, kind, slot), align=4)

        self.each_row(source.rows * source.chunks, copy)


def adds_in_place(argument: SSAValue, value: SSAValue) -> bool:
    """Whether a carried tile is used for nothing but its next value, which a dot of panels adds to it element by
    element."""
    if not isinstance(value.owner, dialect.DotOp) or not isinstance(value.owner.right.owner, dialect.LoadPanelsOp):
        return False
    if len(list(value.uses)) != 1:
        return False
    while argument is not value.owner.accumulator:
        uses = list(argument.uses)
        if len(uses) != 1 or not isinstance(uses[0].operation, dialect.BinaryOp):
            return False
        argument = uses[0].operation.result
    return len(list(argument.uses)) == 1


def updates_in_place(argument: SSAValue, value: SSAValue) -> bool:
    """Whether a carried tile is used for nothing but its next value, which is computed from it element by element."""
    elementwise = dialect.UnaryOp | dialect.BinaryOp | dialect.SelectOp
    while argument is not value:
        uses = list(argument.uses)
        if len(uses) != 1 or not isinstance(uses[0].operation, elementwise):
            return False
        argument = uses[0].operation.results[0]
        if shape_of(argument.type) != shape_of(value.type):
            return False
    return len(list(value.uses)) == 1


def is_addressable(value: SSAValue) -> bool:
    """Whether single elements of a tile can be read from the buffer it was loaded from."""
    return isinstance(value.owner, dialect.LoadOp) and value.owner.lane_step.value.data == 1
