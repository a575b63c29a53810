"""Writes a Tile IR kernel as Triton source that a person can read: one statement for each op, in order.

Triton's tiles have powers of two as extents, so a tile is padded to the next one: loads put zeros there, stores leave
it out, reductions put their identity in its place first. What lies in the padding otherwise is not defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from xdsl.dialects.builtin import MemRefType
from xdsl.ir import Block, Operation, SSAValue

from tessera_compiler.errors import UnsupportedOperation
from tessera_compiler.targets.triton import functions, stacks
from tessera_compiler.targets.triton.addresses import Access, address, tile_address
from tessera_compiler.targets.triton.boxes import Tensor, tensors_of
from tessera_compiler.targets.triton.expressions import (
    LEAST_OF_PRODUCTS,
    describe,
    full_expression,
    inside,
    is_literal,
    literal_of,
    padded,
)
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.types import BYTES, element_name, shape_of

SIZES = ("T", "L", "W")
WIDENED = {"bf16": "widened", "f8_e4m3": "widened8"}
"""Elements that Triton's interpreter does not multiply, and what makes float32 of them."""
LINE_BYTES = 128
"""Of the cache of a device."""
BEFORE_THE_WAIT = (
    *(tile.ProgramIdOp, tile.ConstantIndexOp, tile.IndexOp, tile.PrefetchOp),
    *(tile.LoadIndexOp, tile.LoadOp, tile.LoadBlockOp, tile.LoadStackOp),
)
"""Ops that come before the wait for the launch before, if what they read is there: written by nobody, or by none but
such ops."""


@dataclass(frozen=True)
class Source:
    """A kernel in Triton's language."""

    symbol: str
    text: str
    signature: tuple[tuple[str, str], ...]
    """Each parameter and its type as Triton spells it."""
    tensors: tuple[Tensor, ...] = ()
    """Of the parameters that are descriptors, in order."""


def emit_source(
    kernel: tile.KernelOp,
    *,
    dependent: bool = False,
    widen: bool = False,
    float8: str = functions.FLOAT8,
    descriptors: bool = False,
) -> Source:
    """The source of one kernel.

    `dependent` lets it start while the launch before it still runs; `widen` makes products of bfloat16 and of
    eight-bit floats products of float32, which gives the same numbers where Triton's interpreter would give none;
    `float8` is what eight-bit floats are to the device: `functions.FLOAT8` or `functions.HALVED_FLOAT8`. With
    `descriptors`, buffers that nothing but boxes are loaded from come as these.
    """
    return _Emitter(kernel, dependent, widen, float8, tensors_of(kernel) if descriptors else {}).emit()


@dataclass
class _Emitter:
    kernel: tile.KernelOp
    dependent: bool
    widen: bool
    float8: str
    tensors: dict[SSAValue, Tensor]
    lines: list[str] = field(default_factory=list)
    depth: int = 1
    names: dict[SSAValue, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    helpers: set[str] = field(default_factory=set)
    least: int = 1
    """Extent of an axis of more than one element."""

    def emit(self) -> Source:
        self.least = LEAST_OF_PRODUCTS if any(isinstance(op, tile.DotOp) for op in self.kernel.walk()) else 1
        arguments = self.kernel.body.block.args
        signature, comments = [], []
        for number, argument in enumerate(arguments[:-3]):
            self.names[argument] = f"b{number}"
            tensor = self.tensors.get(argument)
            signature.append((f"b{number}", tensor.kind if tensor else functions.POINTERS[element_name(argument.type)]))
            comments.append(f"    # b{number}: {describe(argument)}")
            if self._is_float8(argument):
                # Numbers that are loaded as bits would pass through registers on their way to the matrix units.
                self._line(f"b{number} = b{number}.to(tl.pointer_type({self.float8}), bitcast=True)")
        for name, argument in zip(SIZES, arguments[-3:], strict=True):
            self.names[argument] = name
            signature.append((name, "i32"))
        if self.dependent:
            self._wait_late(self.kernel.body.block, {*arguments[-3:], *self.kernel.given_buffers})
        else:
            self._block(self.kernel.body.block)
        header = ["import triton", "import triton.language as tl"]
        if self.dependent:
            header.append("from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait")
        parts = ["\n".join(header) + "\n"]
        parts += [functions.HELPERS[name] for name in functions.HELPERS if name in self.helpers]
        grid = ", ".join(str(entry) for entry in self.kernel.grid_entries)
        names = ", ".join(name for name, _ in signature)
        head = f"@triton.jit\ndef {self.kernel.symbol}({names}):\n    # grid: {grid}\n"
        parts.append(head + "\n".join([*comments, *self.lines]) + "\n")
        return Source(self.kernel.symbol, "\n\n".join(parts), tuple(signature), tuple(self.tensors.values()))

    def _padded(self, extent: int) -> int:
        return padded(extent, self.least)

    # Statements

    def _line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def _fresh(self, prefix: str) -> str:
        self.counts[prefix] = self.counts.get(prefix, 0) + 1
        return f"{prefix}{self.counts[prefix]}"

    def _let(self, value: SSAValue, prefix: str, expression: str) -> None:
        name = self._fresh(prefix)
        self.names[value] = name
        self._line(f"{name} = {expression}")

    def _block(self, block: Block) -> None:
        for op in block.ops:
            self._operation(op)

    def _wait_late(self, block: Block, there: set[SSAValue]) -> None:
        """All that does not depend on what earlier launches write, then the wait for them, then the rest; if that is
        parts, each waits on its own. `there` grows by what is known before.

        The launch after may start from there on. Started earlier, before this one waits, the many that wait at a time
        would take room from those that work: measured on an H200, a step took a fifth longer.
        """
        early = []
        for op in block.ops:
            if isinstance(op, tile.PrefetchOp):
                ready = all(each in there for each in (op.row, op.column))
            else:
                ready = isinstance(op, BEFORE_THE_WAIT) and all(each in there for each in op.operands)
            if ready:
                early.append(op)
                there.update(op.results)
        for op in early:
            self._operation(op)
        late = [op for op in block.ops if op not in early]
        if late and isinstance(late[0], tile.PartsOp) and all(isinstance(op, tile.ReturnOp) for op in late[1:]):
            self._parts(late[0], there)
            return
        self._line("gdc_wait()")
        self._line("gdc_launch_dependents()")
        for op in late:
            self._operation(op)

    def _operation(self, op: Operation) -> None:
        if isinstance(op, tile.ReturnOp | tile.YieldOp):
            return
        if isinstance(op, tile.PrefetchOp):
            self._prefetch(op)
            return
        if isinstance(op, tile.ForOp):
            self._for(op)
        elif isinstance(op, tile.PartsOp):
            self._parts(op, None)
        elif isinstance(op, tile.WhenOp):
            self._when(op)
        elif isinstance(op, stacks.STACK_OPERATIONS):
            self._stack(op)
        elif isinstance(op, tile.StoreOp | tile.StoreBlockOp):
            self._store(op)
        elif isinstance(op, tile.ConstantIndexOp):
            self.names[op.result] = str(op.value.value.data)
        elif isinstance(op, tile.ProgramIdOp):
            self._let(op.result, "at", f"tl.program_id({op.axis.value.data})")
        elif isinstance(op, tile.IndexOp):
            self._index(op)
        elif isinstance(op, tile.LoadIndexOp):
            self._let(op.result, "at", f"tl.load({self.names[op.buffer]} + {self.names[op.at]})")
        else:
            self._tile(op)

    def _index(self, op: tile.IndexOp) -> None:
        left, right = self.names[op.left], self.names[op.right]
        if left.isdigit() and right.isdigit():
            value = tile.INDEX_FUNCTIONS[op.function.data](int(left), int(right))
            if value >= 0:
                self.names[op.result] = str(value)
                return
        self._let(op.result, "at", functions.INDEX[op.function.data].format(x=left, y=right))

    def _for(self, op: tile.ForOp) -> None:
        block = op.body.block
        carried = []
        for argument, initial, result in zip(block.args[1:], op.initial, op.results, strict=True):
            name = self._fresh("sum")
            self._line(f"{name} = {self._full_tile(initial)}")
            self.names[argument] = self.names[result] = name
            carried.append(name)
        index = self._fresh("step")
        self.names[block.args[0]] = index
        lower, upper, step = (self.names[each] for each in (op.lower, op.upper, op.step))
        last_bound = f"tl.minimum({upper}, {lower} + {step})" if op.once is not None else upper
        bounds = f"{lower}, {last_bound}, {step}"
        self._line(f"for {index} in range({bounds}):")
        self.depth += 1
        self._block(block)
        last = block.last_op
        assert isinstance(last, tile.YieldOp)
        following = [self._full_tile(value) for value in last.values]
        moved = [(name, value) for name, value in zip(carried, following, strict=True) if name != value]
        if any(value in carried for _, value in moved):
            moved = [(name, self._copied(value)) for name, value in moved]
        for name, value in moved:
            self._line(f"{name} = {value}")
        if not moved and not any(self._writes(each) for each in block.ops):
            self._line("pass")
        self.depth -= 1

    def _parts(self, op: tile.PartsOp, there: set[SSAValue] | None) -> None:
        """With `there`, each part has still to wait for the launch before."""
        for number, (body, end) in enumerate(zip(op.bodies, op.ends, strict=True)):
            last = number == len(op.bodies) - 1
            case = "else" if last else f"{'elif' if number else 'if'} {self.names[op.at]} < {end}"
            self._line(f"{case}:" if len(op.bodies) > 1 else "if True:")
            self.depth += 1
            if there is not None:
                self._wait_late(body.block, there)
            else:
                self._block(body.block)
                if not any(self._writes(each) for each in body.block.ops):
                    self._line("pass")
            self.depth -= 1

    def _when(self, op: tile.WhenOp) -> None:
        kept = []
        for initial, result in zip(op.initial, op.results, strict=True):
            kept.append(self._copied(self._full_tile(initial)))
            self.names[result] = kept[-1]
        self._line(f"if {self.names[op.at]} == 0:")
        self.depth += 1
        self._block(op.body.block)
        last = op.body.block.last_op
        assert isinstance(last, tile.YieldOp)
        for name, value in zip(kept, last.values, strict=True):
            self._line(f"{name} = {self._full_tile(value)}")
        self.depth -= 1

    def _copied(self, value: str) -> str:
        name = self._fresh("next")
        self._line(f"{name} = {value}")
        return name

    def _writes(self, op: Operation) -> bool:
        silent = isinstance(op, tile.PrefetchOp) and not self.dependent
        return not silent and not isinstance(op, tile.YieldOp | tile.ConstantIndexOp)

    # Tiles

    def _tile(self, op: Operation) -> None:
        result = op.results[0]
        if isinstance(op, tile.LoadBlockOp) and op.buffer in self.tensors:
            place = f"{self.names[op.row]}, {self.names[op.column]}"
            self._let(result, "x", f"{self.names[op.buffer]}.load([{place}])")
        elif isinstance(op, tile.LoadOp | tile.LoadBlockOp):
            pointers, mask = self._access(op, result)
            nothing = "0.0" if self._is_float8(result) else "0"
            masked = f", mask={mask}, other={nothing}" if mask else ""
            self._let(result, "x", f"tl.load({pointers}{masked})")
        elif isinstance(op, tile.FullOp):
            self.names[result] = self._full(op)
        elif isinstance(op, tile.IotaOp):
            self._iota(op)
        elif isinstance(op, tile.UnaryOp):
            function = op.function.data
            self._let(result, "v", self._call(functions.UNARY, function, self._full_tile(op.operand)))
        elif isinstance(op, tile.BinaryOp):
            table = functions.BINARY if element_name(op.left.type) == "f32" else functions.INTEGER_BINARY
            left, right = self.names[op.left], self.names[op.right]
            if (is_literal(op.left) and is_literal(op.right)) or op.function.data == "pow":
                left, right = self._full_tile(op.left), self._full_tile(op.right)
            # Triton would make of a dot and a sum one dot that goes on with the sum, and that rounds otherwise; a loop
            # may be one round, and then its result is a dot.
            dots = (tile.DotOp, tile.ForOp)
            if op.function.data == "add" and isinstance(op.right.owner, dots):
                self._let(result, "v", f"{left} - {right} * -1.0")
            elif op.function.data == "add" and isinstance(op.left.owner, dots):
                self._let(result, "v", f"{right} - {left} * -1.0")
            else:
                self._let(result, "v", self._call(table, op.function.data, left, right))
        elif isinstance(op, tile.CompareOp):
            left, right = self._full_tile(op.left), self.names[op.right]
            self._let(result, "is", functions.COMPARE[op.function.data].format(x=left, y=right))
        elif isinstance(op, tile.SelectOp):
            sides = f"{self._full_tile(op.left)}, {self.names[op.right]}"
            self._let(result, "v", f"tl.where({self.names[op.condition]}, {sides})")
        elif isinstance(op, tile.MultiplyAddOp):
            x, y, z = (self._full_tile(each) for each in op.operands)
            shape = ", ".join(str(self._padded(extent)) for extent in shape_of(result.type))
            same = [f"tl.broadcast_to({each}, ({shape}))" for each in (x, y, z)]
            self._let(result, "v", f"tl.fma({', '.join(same)})")
        elif isinstance(op, tile.CastOp):
            self._cast(op)
        elif isinstance(op, tile.TransposeOp):
            self._let(result, "v", f"tl.trans({self._full_tile(op.operand)})")
        elif isinstance(op, tile.UnpackOp):
            self._unpack(op)
        elif isinstance(op, tile.ReduceOp):
            self._reduce(op)
        elif isinstance(op, tile.DotOp):
            self._dot(op)
        else:
            raise UnsupportedOperation(f"{op.name} is not lowered to Triton. Report the model.")

    def _stack(self, op: Operation) -> None:
        result = op.results[0]
        if isinstance(op, tile.EmptyStackOp):
            self._let(result, "c", stacks.zeros(op))
        elif isinstance(op, tile.LoadStackOp):
            assert isinstance(op.buffer.type, MemRefType)
            stride = op.buffer.type.get_shape()[1]
            pointers = stacks.pointers(op, address(self.names, op.buffer, op.row, op.column, stride), stride)
            mask = "" if op.count is None else self._mask([stacks.mask(op, self.names[op.count])])
            self._let(result, "x", f"tl.load({pointers}{f', mask={mask}, other=0' if mask else ''})")
        elif isinstance(op, tile.DotStackOp):
            left, right = (self._widened(each) for each in (op.left, op.right))
            options = ', input_precision="ieee"' if self._is_widened(op.left) else ""
            self._let(result, "v", f"tl.dot({left}, {right}, {self.names[op.accumulator]}{options})")
        elif isinstance(op, tile.SumStackOp):
            lines, total = stacks.sum_in_order(op, self.names[op.operand], self._fresh)
            for line in lines:
                self._line(line)
            self._let(result, "v", total)

    def _is_widened(self, value: SSAValue) -> bool:
        return self.widen and element_name(value.type) in WIDENED

    def _widened(self, value: SSAValue, name: str | None = None) -> str:
        """An operand of a product."""
        name = name or self.names[value]
        if not self._is_widened(value):
            return name
        helper = WIDENED[element_name(value.type)]
        self.helpers.add(helper)
        return f"{helper}({name})"

    def _call(self, table: dict[str, str], function: str, x: str, y: str = "") -> str:
        self.helpers.update(functions.NEEDS.get(function, ()))
        return table[function].format(x=x, y=y)

    def _full(self, op: tile.FullOp) -> str:
        """A number where one will do, else a tile of it."""
        literal = literal_of(op)
        if shape_of(op.result.type) == (1, 1):
            return literal
        name = self._fresh("c")
        self._line(f"{name} = {full_expression(op, self.least)}")
        return name

    def _full_tile(self, value: SSAValue) -> str:
        """A value where a number alone would not do."""
        owner = value.owner
        if isinstance(owner, tile.FullOp) and is_literal(value):
            return full_expression(owner, self.least)
        return self.names[value]

    def _iota(self, op: tile.IotaOp) -> None:
        axis = op.axis.value.data
        numbers = f"tl.arange(0, {self._padded(max(shape_of(op.result.type)))})"
        if op.repeats > 1:
            numbers = f"{numbers} // {op.repeats}"
        index = "[None, :]" if axis == 1 else "[:, None]"
        self._let(op.result, "n", f"({self.names[op.start]} + {numbers}){index}")

    def _cast(self, op: tile.CastOp) -> None:
        before, after = element_name(op.operand.type), element_name(op.result.type)
        operand = self._full_tile(op.operand)
        if after == "i1":
            self._let(op.result, "is", f"{operand} != 0")
        elif self.widen and (before, after) in functions.INTERPRETED_CASTS:
            helper = functions.INTERPRETED_CASTS[before, after]
            self.helpers.add(helper)
            self._let(op.result, "v", f"{helper}({operand})")
        elif (before, after) == ("u8", "i8"):
            self._let(op.result, "v", f"({operand} ^ 128).to(tl.int8, bitcast=True)")
        elif after == "f8_e4m3":
            halved = " * 0.5" if self.float8 == functions.HALVED_FLOAT8 else ""
            self._let(op.result, "v", f"({operand}{halved}).to({self.float8})")
        else:
            self._let(op.result, "v", f"{operand}.to({functions.TYPES[after]})")

    def _unpack(self, op: tile.UnpackOp) -> None:
        """A number becomes the last bits of a float32 of n above a power of two, which needs no conversion; and as all
        that follows is exact, one multiply-add does it."""
        pair, words = op.pair.value.data, self.names[op.words]
        scale, zero = self._fresh("scale"), self._fresh("zero")
        for name, value in ((scale, op.scales), (zero, op.zeros)):
            moved = f"({self.names[value]} >> {8 * pair})" if pair else self.names[value]
            self._line(f"{name} = ({moved} & 255).to(tl.float32)")
        halves = []
        for place in (12, 16):
            up = 12 - 8 * pair
            shifted = f"({words} << {up})" if up > 0 else f"({words} >> {-up})"
            bits = f"({shifted} & {15 << place} | {(150 - place) << 23}).to(tl.float32, bitcast=True)"
            start = f"({zero} * -0.0625 - {float(1 << 23 - place)}) * {scale}"
            halves.append(self._fresh("half"))
            self._line(f"{halves[-1]} = tl.fma({bits}, {scale}, {start})")
        rows, columns = shape_of(op.result.type)
        joined = f"tl.join({', '.join(halves)})"
        self._let(op.result, "v", f"tl.reshape({joined}, ({self._padded(rows)}, {self._padded(columns)}))")

    def _reduce(self, op: tile.ReduceOp) -> None:
        function = op.function.data
        columns = shape_of(op.operand.type)[1]
        operand = self._full_tile(op.operand)
        if columns == 1:
            self.names[op.result] = operand
            return
        if self._padded(columns) != columns:
            integer = element_name(op.operand.type) == "i32"
            identity = (functions.INTEGER_IDENTITY if integer else functions.IDENTITY)[function]
            operand = f"tl.where({inside(columns, 1, self.least)}, {operand}, {identity})"
        self._let(op.result, "v", f"{functions.REDUCE[function]}({operand}, 1, keep_dims=True)")

    def _is_float8(self, value: SSAValue) -> bool:
        """Whether a value is of eight-bit floats that are more than their bits."""
        return element_name(value.type) == "f8_e4m3" and not self.widen

    def _dot(self, op: tile.DotOp) -> None:
        depth = shape_of(op.left.type)[1]
        left = self._factor(op.left, depth, 1)
        right = self._factor(op.right, depth, 0)
        if self._is_float8(op.left) and self.float8 == functions.HALVED_FLOAT8:
            self._let(op.result, "v", f"{self._full_tile(op.accumulator)} + tl.dot({left}, {right}) * 4.0")
            return
        options = ""
        if element_name(op.left.type) == "f32" or self._is_widened(op.left):
            options = ', input_precision="ieee"'
        elif element_name(op.accumulator.type) == "i32":
            options = ", out_dtype=tl.int32"
        self._let(op.result, "v", f"tl.dot({left}, {right}, {self._full_tile(op.accumulator)}{options})")

    def _factor(self, value: SSAValue, depth: int, axis: int) -> str:
        name = self._full_tile(value)
        loaded = value.owner.operand if isinstance(value.owner, tile.TransposeOp) else value
        if self._padded(depth) != depth and not isinstance(loaded.owner, tile.LoadOp | tile.LoadBlockOp):
            name = f"tl.where({inside(depth, axis, self.least)}, {name}, 0)"
        return self._widened(value, name)

    # Memory

    def _prefetch(self, op: tile.PrefetchOp) -> None:
        """Where a launch waits for those before, it asks for its weights meanwhile: one line of the cache a thread."""
        if not self.dependent:
            return
        rows, columns = op.shape
        assert isinstance(op.buffer.type, MemRefType)
        stride, size = op.buffer.type.get_shape()[1], BYTES[element_name(op.buffer.type)]
        lines = max(1, columns * size // LINE_BYTES)
        lines = 1 << (lines.bit_length() - 1)
        places = [
            address(self.names, op.buffer, op.row, op.column, stride),
            f"tl.arange(0, {rows})[:, None] * {stride}",
        ]
        if lines > 1:
            places.append(f"tl.arange(0, {lines})[None, :] * {LINE_BYTES // size}")
        places[1:] = [f"({place})" for place in places[1:]]
        self._line(f"ahead = ({' + '.join(places)}).to(tl.int64)")
        assembly = '"prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l"'
        self._line(f"tl.inline_asm_elementwise({assembly}, [ahead], dtype=tl.int32, is_pure=False, pack=1)")

    def _store(self, op: tile.StoreOp | tile.StoreBlockOp) -> None:
        pointers, mask = self._access(op, op.value)
        masked = f", mask={mask}" if mask else ""
        self._line(f"tl.store({pointers}, {self._full_tile(op.value)}{masked})")

    def _access(self, op: Access, value: SSAValue) -> tuple[str, str]:
        """The pointers of a tile, and which of them may be followed."""
        pointers, conditions = tile_address(op, value, self.names, self.least)
        return pointers, self._mask(conditions)

    def _mask(self, conditions: Sequence[str]) -> str:
        if not conditions:
            return ""
        mask = self._fresh("in")
        self._line(f"{mask} = {' & '.join(f'({each})' for each in conditions)}")
        return mask
