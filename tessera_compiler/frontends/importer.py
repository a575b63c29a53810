"""From an exported ATen graph to Graph IR.

**Layout.** A torch tensor of shape `[1, h, T, d]` becomes a graph value of shape `[T, h, d]`: dimensions of size 1
are dropped, rows (`T`, `L`) come first, the others keep their order. This *canonical* shape is a function of the torch
shape alone, so views, unsqueezes and transposes that only move unit dimensions and rows make no op at all.

**Laziness.** Only nodes that reach the output are imported, so what does not (the making of masks) needs no handler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind
from torch.fx import Node
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Attribute, Block, Region, SSAValue
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.errors import UnsupportedOperation
from tessera_compiler.frontends.export import ExportedModel, module_path
from tessera_compiler.graph.base import GraphOp
from tessera_compiler.graph.dialect import BroadcastOp, CastOp, ConstantOp, ReshapeOp, TransposeOp, WeightOp
from tessera_compiler.graph.types import (
    DYNAMIC,
    F32,
    I1,
    I32,
    LOGIT_ROWS,
    TOKENS,
    Tensor,
    rows_of,
    tensor,
    type_of,
)

ENTRY = "decode_graph"

Size = int | str
"""A torch dimension: a number, or `"T"` or `"L"`."""
Shape = tuple[Size, ...]


@dataclass(frozen=True)
class Tracked:
    """An ATen tensor: its shape in torch, and the graph value, in canonical layout, that holds its elements."""

    value: SSAValue
    shape: Shape

    @property
    def element(self) -> Attribute:
        return type_of(self.value).get_element_type()

    @property
    def axes(self) -> tuple[int, ...]:
        """The torch dimension that each axis of the graph value is."""
        return canonical_axes(self.shape)


def canonical_axes(shape: Shape) -> tuple[int, ...]:
    """The torch dimensions that a canonical graph value has, in its order."""
    rows = [axis for axis, size in enumerate(shape) if isinstance(size, str)]
    return (*rows, *(axis for axis, size in enumerate(shape) if isinstance(size, int) and size != 1))


def graph_type(shape: Shape, element: Attribute, axes: Sequence[int]) -> Tensor:
    """The graph type that has these torch dimensions as axes."""
    sizes = [shape[axis] for axis in axes]
    rows = sizes[0] if sizes and isinstance(sizes[0], str) else None
    return tensor([DYNAMIC if isinstance(size, str) else size for size in sizes], element, rows)


_ELEMENTS = {
    torch.float32: F32,
    torch.int64: I32,
    torch.int32: I32,
    torch.bool: I1,
}


def _groups_around_rows(shape: Shape) -> tuple[int, ...]:
    """How many elements the dimensions before the rows have, and those after."""
    groups = [1]
    for size in shape:
        if isinstance(size, str):
            groups.append(1)
        else:
            groups[-1] *= size
    return tuple(groups)


@dataclass(frozen=True)
class Unwritten:
    """A tensor whose elements are written part by part along one dimension, and some of which are still missing."""

    shape: Shape
    parts: tuple[tuple[int, Tracked], ...] = ()
    """First index and elements of each part, ascending."""


class Importer:
    """Imports one exported model; handlers (`aten.py`) use its methods to read arguments and to make ops."""

    def __init__(self, exported: ExportedModel, handlers: Mapping[str, Callable[..., Any]]) -> None:
        self.exported = exported
        self.handlers = handlers
        self.weights: dict[str, tuple[int, ...]] = {}
        """Names and shapes of the checkpoint's tensors that the graph uses."""
        self.attention_modules: list[str] = []
        """The module of each attention op, in the order of its `layer` numbers."""
        self._values: dict[Node, Any] = {}
        self._leaves: dict[str, Tracked] = {}
        self._node: Node | None = None
        inputs = [tensor([DYNAMIC], I32, rows) for rows in (TOKENS, TOKENS, LOGIT_ROWS)]
        self._block = Block(arg_types=inputs)
        self._inputs = {spec.arg.name: spec for spec in exported.program.graph_signature.input_specs}
        names = [spec.arg.name for spec in self._inputs.values() if spec.kind == InputKind.USER_INPUT]
        self._arguments = dict(zip(names, self._block.args, strict=True))
        nodes = {node.name: node for node in exported.program.graph.nodes}
        self._rows = {
            str(nodes[names[0]].meta["val"].shape[0]): TOKENS,
            str(nodes[names[2]].meta["val"].shape[0]): LOGIT_ROWS,
        }

    def run(self) -> ModuleOp:
        """The whole graph as a module; raises UnsupportedOperation for what Graph IR cannot express."""
        graph = self.exported.program.graph
        (output,) = graph.output_node().args[0]
        for node in self._needed(output):
            self._node = node
            self._values[node] = self._import(node)
        result = self._values[output].value
        self._block.add_op(ReturnOp(result))
        types = [argument.type for argument in self._block.args]
        function = FuncOp(ENTRY, (types, [result.type]), Region(self._block))
        module = ModuleOp([function], sym_name=StringAttr("main"))
        return module

    # -- what handlers use ------------------------------------------------------------------------------------------

    @property
    def node(self) -> Node:
        """The node that is being imported."""
        assert self._node is not None
        return self._node

    @property
    def path(self) -> str | None:
        """The path of the module whose code the current node came from."""
        stack = self.node.meta.get("nn_module_stack") or {}
        paths = [module_path(path) for path, _ in stack.values()]
        return (paths[-1] or None) if paths else None

    def output_shape(self, index: int | None = None) -> Shape:
        """The torch shape of the current node's result (or of its `index`-th result)."""
        value = self.node.meta["val"]
        return self._shape(value if index is None else value[index])

    def output_element(self) -> Attribute:
        """The element type of the current node's result."""
        return self._element(self.node.meta["val"].dtype)

    def refuse(self, reason: str) -> UnsupportedOperation:
        """The error for a use of the current node that Graph IR cannot express."""
        return UnsupportedOperation(
            f"{self.node.target} in module {self.path or 'the model itself'!r} cannot be compiled: {reason}"
        )

    def emit(
        self, operation: type[GraphOp], *operands: SSAValue | None, result: Tensor | None = None, **values: Any
    ) -> SSAValue:
        """Makes an op with one result and returns it."""
        try:
            op = operation.make(*operands, result=result, module=self.path, **values)
        except VerifyException as error:
            raise self.refuse(f"{error}") from None
        self._block.add_op(op)
        return op.results[0]

    def value_of(self, argument: Any) -> Any:
        """What an argument of the current node was imported as."""
        return self._values[argument] if isinstance(argument, Node) else argument

    def tracked(self, argument: Any, like: Tracked | None = None) -> Tracked:
        """An argument of the current node: a tensor, or a number as a scalar of `like`'s element type."""
        if isinstance(argument, Node):
            value = self._values[argument]
            if not isinstance(value, Tracked):
                raise self.refuse("a tensor is expected whose elements have all been written.")
            return value
        if isinstance(argument, (bool, int, float)):
            element = F32 if like is None or isinstance(argument, float) else like.element
            return Tracked(self.constant(np.asarray(argument, dtype=np.int32 if element == I32 else np.float32)), ())
        raise self.refuse(f"the argument {argument!r} is not a tensor.")

    def constant(self, array: Any) -> SSAValue:
        """A constant with these values."""
        op = ConstantOp.of(array, self.path)
        self._block.add_op(op)
        return op.result

    def reshaped(self, value: SSAValue, type: Tensor) -> SSAValue:
        """The value in another shape; undoes an earlier reshape instead of adding a second."""
        owner = value.owner
        if isinstance(owner, ReshapeOp):
            value = owner.x
        return value if value.type == type else self.emit(ReshapeOp, value, result=type)

    def with_axes(self, tracked: Tracked, axes: Sequence[int]) -> SSAValue:
        """The graph value that has these torch dimensions as axes: all that are not of size 1, rows first."""
        return self.reshaped(tracked.value, graph_type(tracked.shape, tracked.element, axes))

    def result(self, value: SSAValue, shape: Shape | None = None) -> Tracked:
        """The current node's result, given its elements in canonical order but perhaps with axes of size 1."""
        shape = self.output_shape() if shape is None else shape
        element = type_of(value).get_element_type()
        return Tracked(self.reshaped(value, graph_type(shape, element, canonical_axes(shape))), shape)

    def aligned(self, tracked: Tracked, shape: Shape) -> SSAValue:
        """The value with axes such that NumPy broadcasts it as torch broadcasts it to `shape`, in canonical layout."""
        shift = len(shape) - len(tracked.shape)
        axes = [axis - shift for axis in canonical_axes(shape)]
        sizes: list[Size] = [tracked.shape[axis] if axis >= 0 else 1 for axis in axes]
        # Leading axes of size 1 say nothing, except that rows must be axis 0 of the result.
        while sizes and sizes[0] == 1:
            sizes.pop(0)
        whole: Shape = tuple(sizes)
        if any(isinstance(size, str) for size in whole[1:]):
            raise self.refuse("rows of two kinds are mixed.")
        return self.reshaped(tracked.value, graph_type(whole, tracked.element, range(len(whole))))

    def broadcast(self, operation: type[GraphOp], *operands: Tracked, **values: Any) -> Tracked:
        """An elementwise op on operands that torch broadcasts to the shape of the current node's result."""
        shape = self.output_shape()
        value = self.emit(operation, *(self.aligned(operand, shape) for operand in operands), **values)
        return self.result(value, shape)

    def expanded(self, tracked: Tracked, shape: Shape) -> Tracked:
        """The tensor repeated along dimensions of size 1 up to `shape`."""
        element = tracked.element
        target = graph_type(shape, element, canonical_axes(shape))
        value = self.aligned(tracked, shape)
        if value.type != target:
            value = self.emit(BroadcastOp, value, result=target)
        return Tracked(value, shape)

    def permuted(self, tracked: Tracked, order: Sequence[int]) -> Tracked:
        """The tensor with torch dimension `order[i]` as dimension `i`."""
        shape = tuple(tracked.shape[axis] for axis in order)
        old, new = list(tracked.axes), [order[axis] for axis in canonical_axes(shape)]
        permutation = tuple(old.index(axis) for axis in new)
        if permutation == tuple(range(len(old))):
            return Tracked(tracked.value, shape)
        return Tracked(self.emit(TransposeOp, tracked.value, permutation=permutation), shape)

    def viewed(self, tracked: Tracked, shape: Shape) -> Tracked:
        """The tensor's elements, in torch's row-major order, in another shape."""
        # In canonical layout the dimensions before the rows and those after them are each in row-major order, so a view
        # is a reshape if it keeps the two groups apart.
        if _groups_around_rows(tracked.shape) != _groups_around_rows(shape) and tracked.axes:
            raise self.refuse(f"a view from {list(tracked.shape)} to {list(shape)} mixes tokens with other dimensions.")
        return self.result(tracked.value, shape)

    def cast(self, tracked: Tracked, element: Attribute) -> Tracked:
        """The tensor with another element type."""
        if tracked.element == element:
            return tracked
        type = type_of(tracked.value)
        result = tensor(type.get_shape(), element, rows_of(type))
        return Tracked(self.emit(CastOp, tracked.value, result=result), tracked.shape)

    def positive(self, dim: int, shape: Shape) -> int:
        """A dimension counted from the front."""
        return dim + len(shape) if dim < 0 else dim

    def kept_axes(self, tracked: Tracked, dim: int) -> list[int]:
        """The canonical axes of a tensor with `dim` among them, even if it has size 1."""
        axes = canonical_axes(
            tuple(2 if axis == dim and size == 1 else size for axis, size in enumerate(tracked.shape))
        )
        return list(axes)

    # -- the walk ---------------------------------------------------------------------------------------------------

    def _needed(self, output: Node) -> list[Node]:
        """The nodes whose tensors reach the output, in the order of the graph."""
        needed = {output}
        for node in reversed(list(self.exported.program.graph.nodes)):
            if node in needed and not self._is_size(node):
                needed.update(argument for argument in node.all_input_nodes if not self._is_size(argument))
        return [node for node in self.exported.program.graph.nodes if node in needed]

    @staticmethod
    def _is_size(node: Node) -> bool:
        return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymBool, int))

    def _import(self, node: Node) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op != "call_function":
            raise self.refuse(f"nodes of kind {node.op} have no meaning in Graph IR.")
        if getattr(node.target, "__name__", "") == "getitem":
            source, index = node.args
            assert isinstance(source, Node) and isinstance(index, int)
            return self._values[source][index]
        handler = self.handlers.get(str(node.target))
        if handler is None:
            raise UnsupportedOperation(
                f"the operation {node.target} in module {self.path or 'the model itself'!r} has no counterpart in "
                "Graph IR; add a handler to tessera_compiler/frontends/aten.py, or choose a model that does without it."
            )
        return handler(self, *node.args, **node.kwargs)

    def _placeholder(self, node: Node) -> Tracked:
        if node.name in self._arguments:
            return Tracked(self._arguments[node.name], self._shape(node.meta["val"]))
        spec = self._inputs[node.name]
        name = module_path(spec.target or node.name)
        name = self.exported.shared.get(name, name)
        if name not in self._leaves:
            self._leaves[name] = self._leaf(name, spec.target or "", self._shape(node.meta["val"]), node)
        return self._leaves[name]

    def _leaf(self, name: str, target: str, shape: Shape, node: Node) -> Tracked:
        value = self.exported.buffers.get(name)
        if value is None and spec_is_constant(self._inputs[node.name].kind):
            value = self.exported.program.constants[target]
        if value is not None:
            if value.device.type == "meta":
                raise UnsupportedOperation(
                    f"the model computes {name!r} when it is built, in a way that leaves no value."
                )
            array = value.detach().to(torch.float32 if value.is_floating_point() else torch.int32).numpy()
            constant = ConstantOp.of(array)
            self._block.add_op(constant)
            return self.result(constant.result, shape)
        checkpoint_name = self.exported.checkpoint_names[name]
        sizes = tuple(int(size) for size in shape)
        self.weights[checkpoint_name] = sizes
        weight = WeightOp.make(
            result=tensor(sizes),
            name=checkpoint_name,
            sources=(checkpoint_name,),
            module=name.rpartition(".")[0] or None,
        )
        self._block.add_op(weight)
        return self.result(weight.result, shape)

    def _shape(self, value: torch.Tensor) -> Shape:
        shape: list[Size] = []
        for size in value.shape:
            if isinstance(size, int):
                shape.append(size)
            elif str(size) in self._rows:
                shape.append(self._rows[str(size)])
            else:
                raise self.refuse(f"a dimension has size {size}; only the number of tokens may vary.")
        if sum(isinstance(size, str) for size in shape) > 1:
            raise self.refuse("tokens are related to tokens outside of attention.")
        return tuple(shape)

    def _element(self, dtype: torch.dtype) -> Attribute:
        if dtype not in _ELEMENTS:
            raise self.refuse(f"it computes in {dtype}; models are exported in float32.")
        return _ELEMENTS[dtype]

    def element_of(self, dtype: torch.dtype) -> Attribute:
        """The graph's element type for a torch type; refuses those that Graph IR does not have."""
        return self._element(dtype)


def spec_is_constant(kind: InputKind) -> bool:
    """True for tensors that torch lifted out of the model's code."""
    return kind == InputKind.CONSTANT_TENSOR
