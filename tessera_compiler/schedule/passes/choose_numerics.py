"""Decides element types and layouts: what Graph IR leaves open becomes explicit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from xdsl.dialects.builtin import FunctionType, ModuleOp
from xdsl.ir import Attribute, Block, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from tessera_compiler.errors import UnsupportedOperation
from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.elementwise import UnaryOp
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.types import DYNAMIC, I32, TOKENS, tensor, type_of
from tessera_compiler.schedule import dialect as schedule

_ELEMENT_OF_WEIGHTS = {"fp32": "f32", "bf16": "bf16", "int8": "u8", "int4": "u4", "fp16": "f16", "fp8": "f8_e4m3"}
_LAYOUT_OF_WEIGHTS = {"f32": "panels_k1", "bf16": "panels_k2", "u8": "panels_k4", "u4": "panels_k8"}
_LAYOUT_OF_WEIGHTS |= {"f16": "matrix", "f8_e4m3": "matrix"}
_ELEMENT_OF_TABLES = {"fp32": "f32", "fp16": "f16"}
"""`bf16` with all others."""
_ELEMENT_OF_CACHE = {"fp32": "f32", "bf16": "bf16", "int8": "i8", "fp16": "f16"}
KV_DTYPES = ("auto", "fp32", "bf16", "int8")

ACTIVATION_GROUP = 64
"""Columns of a row that share a scale when it is quantized. One scale a row costs SmolLM2 3.5% of perplexity, groups
of 64 cost 0.6%, groups of 32 cost 0.5% and twice the conversions."""

GATED_GROUP = 32
"""The same for rows that an activation or a gate has made: few of their elements are large, and in wide groups these
take the precision of all the others. SmolLM2's logits are off by half as much as with groups of 64."""

INT4_GROUP = 32
"""Columns that share a scale in a weight of four bits, and in what is multiplied with it. In groups of 64, errors are a
sixth larger (where weights are normally distributed), and the bytes a sixteenth fewer."""


@dataclass(frozen=True)
class ChooseNumerics:
    """linear(x, w, b) --> add(matmul(x', w'), b), where x' is x itself (`fp32`), rounded (`bf16`) or quantized on
    the fly (`int8`, `int4`). For devices, x' of `int4` is x rounded: there it is memory that counts, not products.
    They have `fp16` and `fp8` besides.

    With `int4`, the last linear map, whose results are the logits, and matrices that are also embedding tables keep
    eight bits, with `fp8` sixteen: in four, SmolLM2's tied matrix, a fifth of all weights, costs 5.5% of perplexity.

    embedding --> lookup, in the tensor of the head if the two are tied; attention --> cache_write of key and value,
    then attend. Everything else stays in float32. Linear maps of the same x share one x'.
    """

    dtype: str
    kv_dtype: str = "auto"
    """Of `KV_DTYPES`; `auto` is `fp32` with weights of `fp32`, else `bf16`."""
    for_devices: bool = False

    def apply(self, module: ModuleOp) -> None:
        cache_element = _ELEMENT_OF_CACHE[kv_dtype_of(self.dtype, self.kv_dtype)]
        _Rewrite(self.dtype, cache_element, self.for_devices, module).run()


def kv_dtype_of(dtype: str, kv_dtype: str) -> str:
    """What `auto` stands for with weights of `dtype`."""
    if kv_dtype != "auto":
        return kv_dtype
    return dtype if dtype in ("fp32", "fp16") else "bf16"


@dataclass
class _Rewrite:
    dtype: str
    cache_element: str
    for_devices: bool
    module: ModuleOp
    prepared: dict[tuple[SSAValue, int | str], tuple[SSAValue, ...]] = field(default_factory=dict)
    weights: dict[tuple[str, str], SSAValue] = field(default_factory=dict)
    caches: int = 0

    def run(self) -> None:
        function = entry_function(self.module)
        self.block: Block = function.body.block
        self.positions = self.block.args[1]
        self.sequences = self.block.insert_arg(tensor([DYNAMIC], I32, TOKENS), len(self.block.args))
        self.block_tables = self.block.insert_arg(tensor_of_tables(), len(self.block.args))
        function.properties["function_type"] = FunctionType.from_lists(
            [a.type for a in self.block.args], list(function.function_type.outputs)
        )
        linears = [op for op in self.block.ops if isinstance(op, graph.LinearOp)]
        tables = [op.table for op in self.block.ops if isinstance(op, graph.EmbeddingOp)]
        self.matrices = {self._key(op.weight): op.weight for op in linears}
        self.delicate = {self._key(value) for value in [*tables, *(op.weight for op in linears[-1:])]}
        for op in list(self.block.ops):
            if isinstance(op, graph.LinearOp):
                self._linear(op)
            elif isinstance(op, graph.EmbeddingOp):
                self._embedding(op)
            elif isinstance(op, graph.AttentionOp):
                self._attention(op)
        for op in list(self.block.ops):
            if isinstance(op, graph.WeightOp):
                if any(True for _ in op.result.uses):
                    op.result.replace_all_uses_with(self._weight(op, "f32", "rows"))
                Rewriter.erase_op(op)

    def _key(self, value: SSAValue) -> str:
        owner = value.owner
        if not isinstance(owner, graph.WeightOp):
            raise UnsupportedOperation(
                "a linear map needs a weight of the checkpoint as it is; found one that is computed. "
                "Fold the computation into the checkpoint, or report the model."
            )
        return owner.weight_name.data

    def _weight(
        self,
        op: graph.WeightOp,
        element: str,
        layout: str,
        *,
        scales: bool = False,
        part: str | None = None,
        group: int | None = None,
    ) -> SSAValue:
        name = op.weight_name.data
        if scales:
            name += f".{part or ('scales' if group is None else 'factors')}"
        key = (name, layout)
        if key not in self.weights:
            shape = type_of(op.result).get_shape()
            if scales:
                shape = shape[:1] if part is None or group is None else (shape[0], -(-shape[1] // group))
            made = schedule.WeightOp.make(
                result=tensor(shape, schedule.ELEMENTS[element]),
                name=name,
                sources=tuple(source.data for source in op.sources),
                transposed=op.transposed is not None,
                layout=layout,
                scales_of=op.weight_name.data if scales else None,
                part=part,
                group=group,
            )
            first = self.block.first_op
            assert first is not None
            Rewriter.insert_op(made, InsertPoint.before(first))
            self.weights[key] = made.result
        return self.weights[key]

    def _element(self, op: graph.WeightOp) -> str:
        element = _ELEMENT_OF_WEIGHTS[self.dtype]
        wider = {"u4": "u8", "f8_e4m3": "bf16"}
        return wider.get(element, element) if op.weight_name.data in self.delicate else element

    def _panels(self, op: graph.WeightOp) -> tuple[SSAValue, ...]:
        element = self._element(op)
        if element == "u4":
            # What is made last comes first in the program, and so the weight comes before what belongs to it.
            zeros, scales = (
                self._weight(op, "u8", "panels_k1", scales=True, part=part, group=INT4_GROUP)
                for part in ("zeros", "scales")
            )
            factors = self._weight(op, "f32", "rows", scales=True, group=INT4_GROUP)
            weight = self._weight(op, element, _LAYOUT_OF_WEIGHTS[element], group=INT4_GROUP)
            return (weight, factors, scales, zeros)
        weight = self._weight(op, element, _LAYOUT_OF_WEIGHTS[element])
        scaled = element in ("u8", "f8_e4m3")
        return (weight, self._weight(op, "f32", "rows", scales=True)) if scaled else (weight,)

    def _prepare(self, x: SSAValue, element: str, group: int | None, before: Operation) -> tuple[SSAValue, ...]:
        """x as a weight of an element is multiplied with it: in groups, if they are given."""
        if element == "f32":
            return (x,)
        key = (x, element if group is None else group)
        if key not in self.prepared:
            module = before.attributes.get("module")
            made: Operation
            if group is not None:
                made = schedule.QuantizeOp.make(x, group=group, module=module)
            elif element == "f8_e4m3":
                made = schedule.QuantizeFloatOp.make(x, module=module)
            else:
                made = schedule.RoundOp.make(x, module=module, element="f16" if element == "f16" else None)
            Rewriter.insert_op(made, InsertPoint.before(before))
            self.prepared[key] = tuple(made.results)
        return self.prepared[key]

    def _linear(self, op: graph.LinearOp) -> None:
        if len(type_of(op.x).get_shape()) != 2:
            raise UnsupportedOperation(
                f"a linear map over rows of rank 2 was expected; {op.module.data if op.module else 'the model'} "
                f"has one over {op.x.type}. Report the model."
            )
        self._key(op.weight)
        assert isinstance(op.weight.owner, graph.WeightOp)
        element = self._element(op.weight.owner)
        wide = GATED_GROUP if isinstance(op.x.owner, graph.GatedOp | UnaryOp) else ACTIVATION_GROUP
        group = {"u8": wide, "u4": INT4_GROUP}.get(element)
        rounded = self.for_devices and self.dtype == "int4"
        x, *scale_and_sum = self._prepare(op.x, "bf16" if rounded else element, None if rounded else group, op)
        weight, *scales = self._panels(op.weight.owner)
        group = None if rounded and element == "u8" else group
        product = schedule.MatmulOp.make(x, weight, *scale_and_sum, *scales, group=group, module=op.module)
        _carry_marks(op, product)
        new: list[Operation] = [product]
        if op.bias is not None:
            new.append(graph.AddOp.make(product.result, op.bias, module=op.module))
            _carry_marks(op, new[-1])
        Rewriter.replace_op(op, new, [new[-1].results[0]])

    def _embedding(self, op: graph.EmbeddingOp) -> None:
        owner = op.table.owner
        if not isinstance(owner, graph.WeightOp):
            raise UnsupportedOperation(
                "an embedding needs a table of the checkpoint as it is; found one that is computed."
            )
        if owner.weight_name.data in self.matrices:
            table = self._panels(owner)
        else:
            table = (self._weight(owner, _ELEMENT_OF_TABLES.get(self.dtype, "bf16"), "rows"),)
        lookup = schedule.LookupOp.make(op.ids, *table, offset=op.offset, module=op.module)
        _carry_marks(op, lookup)
        Rewriter.replace_op(op, [lookup], [lookup.result])

    def _attention(self, op: graph.AttentionOp) -> None:
        _, key_heads, _ = type_of(op.key).get_shape()
        value_dim = type_of(op.value).get_shape()[2]
        where = (self.positions, self.sequences, self.block_tables)
        common: dict[str, Any] = {"cache": self.caches, "element": self.cache_element, "module": op.module}
        self.caches += 1
        key = schedule.CacheWriteOp.make(op.key, *where, part="key", **common)
        value = schedule.CacheWriteOp.make(op.value, *where, part="value", **common)
        attend = schedule.AttendOp.make(
            op.query,
            *where,
            key_heads=key_heads,
            value_dim=value_dim,
            scale=op.scale,
            window=op.window,
            softcap=op.softcap,
            **common,
        )
        Rewriter.replace_op(op, [key, value, attend], [attend.result])


def tensor_of_tables() -> Attribute:
    """The type of the block tables, [S, W]."""
    return tensor([DYNAMIC, DYNAMIC], I32)


def _carry_marks(old: Operation, new: Operation) -> None:
    mark = old.attributes.get("layer_output")
    if mark is not None:
        new.attributes["layer_output"] = mark
