"""How attention stores what it comes to: as it is, rounded, or quantized, whichever its group ends in."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.lowering.context import GroupArguments
from tessera_compiler.tile.lowering.quantizing import quantize_group
from tessera_compiler.tile.types import shape_of


class Results:
    """The buffers of a group's results. A head of a token is some neighbouring columns in each, as many in one as in
    another, or, of scales and sums, as many as it has groups of columns."""

    def __init__(self, builder: KernelBuilder, group: schedule.GroupOp, arguments: GroupArguments, value_dim: int):
        self._builder = builder
        self._value_dim = value_dim
        self._quantize = next((op for op in group.body.block.ops if isinstance(op, schedule.QuantizeOp)), None)
        self._buffers = {
            value: builder.buffers[arguments.result_parameter(index)] for index, value in enumerate(group.yielded)
        }

    def store(self, value: SSAValue, token: SSAValue, head: SSAValue, first: int, *, of_tokens: bool) -> None:
        """Columns `first`, `first + 1`, … of some tokens or of some heads, from `token` and `head` on; whole groups of
        columns, if the group quantizes them."""
        if self._quantize is None:
            (buffer,) = self._buffers.values()
            self._put(value, buffer, token, head, first, self._value_dim, of_tokens)
            return
        op, group = self._quantize, self._quantize.group.value.data
        for place in range(0, shape_of(value.type)[1], group):
            rounded, scale, total = quantize_group(self._builder, self._builder.columns(value, place, group))
            number, groups = (first + place) // group, self._value_dim // group
            stored = ((rounded, first + place, self._value_dim), (scale, number, groups), (total, number, groups))
            for result, (part, column, width) in zip(op.results, stored, strict=True):
                if result in self._buffers:
                    self._put(part, self._buffers[result], token, head, column, width, of_tokens)

    def _put(
        self,
        value: SSAValue,
        buffer: SSAValue,
        token: SSAValue,
        head: SSAValue,
        first: int,
        width: int,
        of_tokens: bool,
    ) -> None:
        """Into a buffer that has `width` columns for each head."""
        b = self._builder
        column = b.index("add", b.index("mul", head, width), first)
        b.store(value, buffer, token, column, row_step=1 if of_tokens else 0, column_step=0 if of_tokens else width)
