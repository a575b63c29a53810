"""Schedule IR: in which kernels a model is computed, in which element types and layouts, and where buffers lie.

A program is a list of `schedule.group`s: each becomes one kernel launch. The body of a group says what it computes,
in ops of Graph IR and the few ops below, which make explicit what Graph IR leaves open: rounding, quantization, the
KV cache, the layout of weights. docs/spec/schedule-ir.md is the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from xdsl.dialects.builtin import (
    ArrayAttr,
    BFloat16Type,
    BoolAttr,
    DictionaryAttr,
    Float8E4M3FNType,
    Float16Type,
    FloatAttr,
    IntegerAttr,
    IntegerType,
    Signedness,
    StringAttr,
    TensorType,
    UnitAttr,
)
from xdsl.ir import Attribute, Block, Dialect, Operation, Region, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    attr_def,
    irdl_op_definition,
    operand_def,
    opt_attr_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.traits import IsTerminator
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.graph.base import Array, GraphOp
from tessera_compiler.graph.types import DYNAMIC, F32, I32, TOKENS, Tensor, rows_of, tensor, type_of
from tessera_compiler.schedule.products import ZERO_PARTS as ZERO_PARTS
from tessera_compiler.schedule.products import ZERO_POINT as ZERO_POINT
from tessera_compiler.schedule.products import product, verify_product
from tessera_compiler.tile.float8 import LARGEST, round_to_float8
from tessera_compiler.tile.types import round_to_bfloat16

BF16 = BFloat16Type()
F16 = Float16Type()
F8 = Float8E4M3FNType()
I8 = IntegerType(8)
U8 = IntegerType(8, Signedness.UNSIGNED)
U4 = IntegerType(4, Signedness.UNSIGNED)
PARTS = ("scales", "zeros")

ELEMENTS: dict[str, Attribute] = {
    "f32": F32,
    "bf16": BF16,
    "f16": F16,
    "f8_e4m3": F8,
    "u4": U4,
    "u8": U8,
    "i8": I8,
    "i32": I32,
}
CACHE_ELEMENTS = ("f32", "bf16", "f16", "i8")
LAYOUTS = (
    *("rows", "matrix", "matrix_signed", "matrix4", "columns4"),
    *("panels_k1", "panels_k2", "panels_k4", "panels_k8"),
)
ROUNDED_TO = ("bf16", "f16")
LAYOUTS_OF_U4 = ("panels_k8", "matrix4")
KINDS = ("rows", "linear", "attention")


def element_name(type_: Tensor) -> str:
    return next(name for name, element in ELEMENTS.items() if element == type_.get_element_type())


class ScheduleOp(GraphOp):
    """An op that may stand in the body of a group beside those of Graph IR; unlike them it may name other element
    types than f32."""

    def verify_(self) -> None:
        operands = [type_of(operand) for operand in self.operands]
        results = [type_of(result) for result in self.results]
        try:
            expected = self.infer(operands, self.values, results[0] if self.FREE_RESULT and results else None)
        except VerifyException as error:
            raise VerifyException(f"{self.name}: {error}") from None
        if list(expected) != results:
            raise VerifyException(f"{self.name}: the results must be {expected}; found {results}.")


@irdl_op_definition
class WeightOp(ScheduleOp):
    """A tensor of the package: the sources as in `graph.weight`, in the element type of the result and in `layout`.

    A result of `ui8` holds `rint(w / scale) + 128`; `scales_of` marks the tensor of those scales, one per row.

    A result of `ui4` holds numbers from 0 to 15, which stand for `(number - zero / 16) * (scale * factor)`. Three
    tensors belong to it, marked by `scales_of`: the factors, `f32`, one per row; and, one for each row and `group`
    columns and both `ui8`, with the `part` "scales" and "zeros".
    """

    name = "schedule.weight"
    result = result_def(TensorType)
    weight_name = attr_def(StringAttr, attr_name="name")
    sources = attr_def(ArrayAttr[StringAttr])
    transposed = opt_attr_def(UnitAttr)
    layout = attr_def(StringAttr)
    scales_of = opt_attr_def(StringAttr)
    part = opt_attr_def(StringAttr)
    group = opt_attr_def(IntegerAttr)
    FREE_RESULT: ClassVar[bool] = True

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        if result is None or rows_of(result) is not None:
            raise VerifyException(f"a weight has no rows; found {result}.")
        if values["layout"] not in LAYOUTS:
            raise VerifyException(f"unknown layout {values['layout']!r}; known: {', '.join(LAYOUTS)}.")
        if (element_name(result) == "u4") != (values["layout"] in LAYOUTS_OF_U4):
            raise VerifyException(f"a weight of ui4 lies in {' or '.join(LAYOUTS_OF_U4)}, and no other does.")
        if values["layout"] == "matrix_signed" and element_name(result) != "u8":
            raise VerifyException("a weight of ui8 may lie in matrix_signed, and no other does.")
        if element_name(result) == "u4" and "group" not in values:
            raise VerifyException("a weight of ui4 says how many columns share a scale.")
        if "part" in values and (values["part"] not in PARTS or "scales_of" not in values):
            raise VerifyException(f"the part is one of {', '.join(PARTS)}, of some other weight.")
        return (result,)


@irdl_op_definition
class RoundOp(ScheduleOp):
    """Each element rounded to bfloat16, or to the element type that is named, nearest even."""

    name = "schedule.round"
    x = operand_def(TensorType)
    result = result_def(TensorType)
    element = opt_attr_def(StringAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        (x,) = types
        element = values.get("element", "bf16")
        if element not in ROUNDED_TO:
            raise VerifyException(f"rows are rounded to {' or '.join(ROUNDED_TO)}; found {element!r}.")
        return (tensor(x.get_shape(), ELEMENTS[element], rows_of(x)),)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        if self.values.get("element", "bf16") == "f16":
            return (operands[0].astype(np.float16),)
        return (round_to_bfloat16(operands[0]),)


@irdl_op_definition
class CopyOp(ScheduleOp):
    """The same elements, laid out anew: gives a view that no strides describe a buffer of its own."""

    name = "schedule.copy"
    x = operand_def(TensorType)
    result = result_def(TensorType)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        return (types[0],)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        return (np.ascontiguousarray(operands[0]),)


@irdl_op_definition
class QuantizeOp(ScheduleOp):
    """Each row as int8, in groups of `group` columns (the last may be shorter) with a scale each.

    For a group: `scale = max|x| / 127`, `q = rint(x * (127 / max|x|))` (0 for zeros), and `sum(q)`.
    """

    name = "schedule.quantize"
    x = operand_def(TensorType)
    quantized = result_def(TensorType)
    scale = result_def(TensorType)
    sum = result_def(TensorType)
    group = attr_def(IntegerAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        (x,) = types
        groups = (*x.get_shape()[:-1], -(-x.get_shape()[-1] // values["group"]))
        return tensor(x.get_shape(), I8, rows_of(x)), tensor(groups, F32, rows_of(x)), tensor(groups, I32, rows_of(x))

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        (x,) = operands
        width, group = x.shape[-1], self.group.value.data
        count = -(-width // group)
        padded = np.zeros((*x.shape[:-1], count * group), np.float32)
        padded[..., :width] = x
        grouped = padded.reshape(*x.shape[:-1], count, group)
        largest = np.max(np.abs(grouped), axis=-1, keepdims=True)
        with np.errstate(all="ignore"):
            inverse = np.where(largest != 0, np.float32(127) / largest, np.float32(0)).astype(np.float32)
            quantized = np.rint(grouped * inverse).astype(np.int8)
        total = np.asarray(np.sum(quantized, axis=-1, dtype=np.int32))
        scale = (largest * np.float32(1 / 127))[..., 0]
        return quantized.reshape(padded.shape)[..., :width], scale, total


@irdl_op_definition
class QuantizeFloatOp(ScheduleOp):
    """Each row as eight-bit floats (e4m3) with one scale: `scale = max|x| / 448`, and `x * (448 / max|x|)` rounded to
    nearest even (0 for zeros)."""

    name = "schedule.quantize_float"
    x = operand_def(TensorType)
    quantized = result_def(TensorType)
    scale = result_def(TensorType)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        (x,) = types
        return tensor(x.get_shape(), F8, rows_of(x)), tensor((*x.get_shape()[:-1], 1), F32, rows_of(x))

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        largest = np.max(np.abs(operands[0]), axis=-1, keepdims=True)
        with np.errstate(all="ignore"):
            inverse = np.where(largest != 0, np.float32(LARGEST) / largest, np.float32(0)).astype(np.float32)
        return round_to_float8(operands[0] * inverse), (largest * np.float32(1 / LARGEST)).astype(np.float32)


@irdl_op_definition
class PeaksOp(ScheduleOp):
    """The largest of each `group` columns of a row (the last may be fewer); NaN if one of them is."""

    name = "schedule.peaks"
    x = operand_def(TensorType)
    result = result_def(TensorType)
    group = attr_def(IntegerAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        (x,) = types
        return (tensor((*x.get_shape()[:-1], -(-x.get_shape()[-1] // values["group"])), F32, rows_of(x)),)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        (x,) = operands
        return (np.maximum.reduceat(x, np.arange(0, x.shape[-1], self.group.value.data), axis=-1),)


@irdl_op_definition
class MatmulOp(ScheduleOp):
    """`x @ weight.T` in f32. Operands: x and weight of one of f32·f32, bf16·bf16, f16·f16; or i8·ui8 with the scales
    and sums of the groups of x and the weight's scales: `sum over groups g of (q_g @ (w_g - 128).T) * scale_g`, times
    `scales`; or i8·ui4 with the same (the factors in place of the scales), and then the scales and zeros of the groups
    of the weight: `sum over g of ((q_g @ w_g.T - sum_g * zeros_g / 16) * scale_g) * scales_g`, times `factors`. What is
    multiplied by `scale_g` is exact. Or bf16·ui8 with the weight's scales: `x @ (w - 128).T`, times `scales`; or
    bf16·ui4 with the weight's factors, scales and zeros: `x @ v.T`, times `factors`, where v is `(w_g - zeros_g / 16) *
    scales_g`, rounded to bf16; or of eight-bit floats with the scales of both: `x @ w.T`, times both."""

    name = "schedule.matmul"
    arguments = var_operand_def(TensorType)
    result = result_def(TensorType)
    group = opt_attr_def(IntegerAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        x, weight = types[:2]
        elements = [element_name(each) for each in types]
        verify_product((elements[0], elements[1]), types, elements, values.get("group"))
        return (tensor((*x.get_shape()[:-1], weight.get_shape()[0]), F32, rows_of(x)),)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        x, weight = (element_name(type_of(each)) for each in self.arguments[:2])
        return (product((x, weight), operands, self.values),)


@irdl_op_definition
class LookupOp(ScheduleOp):
    """Row `ids[t] + offset` of `table`, as f32; of a `ui8` table `(w - 128) * scales[row]`."""

    name = "schedule.lookup"
    arguments = var_operand_def(TensorType)
    result = result_def(TensorType)
    offset = attr_def(IntegerAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        ids, table = types[:2]
        if element_name(table) == "u4":
            raise VerifyException("rows are not looked up in a table of ui4.")
        if (element_name(table) == "u8") != (len(types) == 3):
            raise VerifyException("a ui8 table comes with its scales, any other without.")
        return (tensor((*ids.get_shape(), table.get_shape()[1]), F32, rows_of(ids)),)

    def evaluate(self, *operands: Array) -> tuple[Array, ...]:
        ids = operands[0] + self.offset.value.data
        rows = operands[1][ids].astype(np.float32)
        if len(operands) == 3:
            rows = (rows - np.float32(ZERO_POINT)) * operands[2][ids][:, None]
        return (rows,)


@irdl_op_definition
class CacheWriteOp(ScheduleOp):
    """Writes each token's key or value to its place in the KV cache of `cache`, rounded to the element type of the
    cache. With `i8`, each head of a token has a scale: `max|x| / 127`, and `rint(x * (127 / max|x|))` is written (0
    for zeros).
    """

    name = "schedule.cache_write"
    x = operand_def(TensorType)
    positions = operand_def(TensorType)
    sequences = operand_def(TensorType)
    block_tables = operand_def(TensorType)
    cache = attr_def(IntegerAttr)
    part = attr_def(StringAttr)
    element = attr_def(StringAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        if values["part"] not in ("key", "value"):
            raise VerifyException(f"the part is key or value; found {values['part']!r}.")
        _verify_cache_element(values["element"])
        return ()


@irdl_op_definition
class AttendOp(ScheduleOp):
    """Paged attention of each token to its own sequence through cache `cache`; attributes as in `graph.attention`.
    `element` is what the cache holds."""

    name = "schedule.attend"
    query = operand_def(TensorType)
    positions = operand_def(TensorType)
    sequences = operand_def(TensorType)
    block_tables = operand_def(TensorType)
    result = result_def(TensorType)
    cache = attr_def(IntegerAttr)
    key_heads = attr_def(IntegerAttr)
    value_dim = attr_def(IntegerAttr)
    scale = attr_def(FloatAttr)
    window = attr_def(IntegerAttr)
    softcap = attr_def(FloatAttr)
    element = attr_def(StringAttr)

    @classmethod
    def infer(
        cls, types: Sequence[Tensor], values: Mapping[str, Any], result: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        query = types[0]
        _, heads, _ = query.get_shape()
        if heads % values["key_heads"]:
            raise VerifyException(f"{heads} heads cannot share {values['key_heads']} key heads evenly.")
        _verify_cache_element(values["element"])
        return (tensor((DYNAMIC, heads, values["value_dim"]), F32, TOKENS),)


def _verify_cache_element(element: str) -> None:
    if element not in CACHE_ELEMENTS:
        raise VerifyException(f"a cache holds {', '.join(CACHE_ELEMENTS)}; found {element!r}.")


@irdl_op_definition
class YieldOp(IRDLOperation):
    """Ends the body of a group: its results."""

    name = "schedule.yield"
    values = var_operand_def(TensorType)
    traits = traits_def(IsTerminator())

    def __init__(self, values: Sequence[SSAValue]):
        super().__init__(operands=[list(values)])


@irdl_op_definition
class GroupOp(IRDLOperation):
    """One launch. `kind` says how its kernel is built; `barrier`: everything before must have finished; `offsets`:
    where each result lies in the arena, in bytes per row; `tiles`: the blocking of each CPU class, by number of
    tokens; `splits`: of devices alone, into how many parts the columns of a product are cut."""

    name = "schedule.group"
    inputs = var_operand_def(TensorType)
    results_ = var_result_def(TensorType)
    kind = attr_def(StringAttr)
    barrier = opt_attr_def(BoolAttr)
    offsets = opt_attr_def(ArrayAttr)
    tiles = opt_attr_def(DictionaryAttr)
    splits = opt_attr_def(DictionaryAttr)
    tuned = opt_attr_def(ArrayAttr)
    body = region_def("single_block")

    def __init__(self, kind: str, inputs: Sequence[SSAValue], results: Sequence[Attribute], body: Region | Block):
        region = body if isinstance(body, Region) else Region(body)
        super().__init__(
            operands=[list(inputs)],
            result_types=[list(results)],
            attributes={"kind": StringAttr(kind)},
            regions=[region],
        )

    @property
    def yielded(self) -> tuple[SSAValue, ...]:
        last = self.body.block.last_op
        assert isinstance(last, YieldOp)
        return tuple(last.values)

    def verify_(self) -> None:
        if self.kind.data not in KINDS:
            raise VerifyException(f"unknown kind of group {self.kind.data!r}; known: {', '.join(KINDS)}")
        if [a.type for a in self.body.block.args] != [v.type for v in self.inputs]:
            raise VerifyException("the body of a group takes exactly its inputs")
        if not isinstance(self.body.block.last_op, YieldOp):
            raise VerifyException("the body of a group ends in schedule.yield")
        if [v.type for v in self.yielded] != [r.type for r in self.results_]:
            raise VerifyException("a group yields exactly its results")
        anchors = [op for op in self.body.block.ops if isinstance(op, MatmulOp | AttendOp)]
        if len(anchors) != (0 if self.kind.data == "rows" else 1):
            raise VerifyException(
                f"a group of kind {self.kind.data} has {len(anchors)} products; rows: none, the others: one"
            )


GROUP_OPERATIONS: tuple[type[ScheduleOp], ...] = (
    WeightOp,
    CopyOp,
    RoundOp,
    QuantizeOp,
    QuantizeFloatOp,
    PeaksOp,
    MatmulOp,
    LookupOp,
    CacheWriteOp,
    AttendOp,
)
SCHEDULE_OPERATIONS: tuple[type[Operation], ...] = (*GROUP_OPERATIONS, GroupOp, YieldOp)
SCHEDULE = Dialect("schedule", list(SCHEDULE_OPERATIONS), [])
