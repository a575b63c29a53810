"""Bodies of groups: checked once when a program is loaded, then interpreted operation by operation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tessera_runtime.errors import ProgramInvalid
from tessera_runtime.executor.reference.cache import CachePart
from tessera_runtime.executor.reference.numbers import HELD_AS, Array
from tessera_runtime.executor.reference.operation import Call, Operation, Shape
from tessera_runtime.executor.reference.table import OPERATIONS
from tessera_runtime.executor.reference.weights import Weight

_MOST_ELEMENTS = 1 << 31
"""No value has more elements in a row: a program that says so is broken, and must not take all memory."""


@dataclass(frozen=True)
class Instruction:
    """One operation of a body with its operands, as numbers of values."""

    name: str
    operation: Operation
    operands: tuple[int, ...]
    call: Call
    caches: tuple[str, ...]


@dataclass(frozen=True)
class Body:
    """What a group computes. Values are numbered: inputs first, then the results of each instruction in order."""

    name: str
    inputs: int
    instructions: tuple[Instruction, ...]
    outputs: tuple[int, ...]

    @property
    def caches(self) -> tuple[tuple[str, str], ...]:
        """Part and element type of each part of the KV cache that the instructions are handed, in order."""
        return tuple((part, each.call.attributes["element"]) for each in self.instructions for part in each.caches)

    @property
    def weights(self) -> frozenset[int]:
        """The inputs that must be weights."""
        return frozenset(each.operands[place] for each in self.instructions for place in each.operation.weights)

    def output_types(self) -> list[tuple[Shape, str] | None]:
        """Shape and element type of each output; None for one that is an input as it came."""
        types: list[tuple[Shape, str] | None] = [None] * self.inputs
        for each in self.instructions:
            types += zip(each.call.shapes, each.call.dtypes, strict=True)
        return [types[number] for number in self.outputs]

    def run(self, inputs: Sequence[Array | Weight], caches: Sequence[CachePart]) -> list[Array]:
        """The outputs for these inputs. Raises ProgramInvalid when an operation cannot be applied to them."""
        values: list[Array | Weight] = list(inputs)
        parts = iter(caches)
        for each in self.instructions:
            operands = [
                values[number] if place in each.operation.weights else _as_array(values[number])
                for place, number in enumerate(each.operands)
            ]
            mine = [next(parts) for _ in each.caches]
            try:
                results = each.operation.function(each.call, *operands, *mine)
            except (ValueError, IndexError, TypeError) as error:
                raise ProgramInvalid(f"{self.name}: {each.name} cannot be computed: {error}.") from error
            for result, shape, dtype in zip(results, each.call.shapes, each.call.dtypes, strict=True):
                values.append(self._checked(each.name, result, shape, dtype))
        return [_as_array(values[number]) for number in self.outputs]

    def _checked(self, name: str, result: Array, shape: Shape, dtype: str) -> Array:
        found = result.shape
        if len(found) != len(shape) or any(b not in (None, a) for a, b in zip(found, shape, strict=True)):
            raise ProgramInvalid(
                f"{self.name}: the result of {name} should have shape {_text(shape)}, and has {_text(found)}."
            )
        return result.astype(HELD_AS[dtype], copy=False)


def parse_body(name: str, description: Mapping[str, Any]) -> Body:
    """Reads the group `name` of a program. Raises ProgramInvalid, naming the operation, if any of it makes no sense."""
    inputs, listed = description["inputs"], description["body"]
    if type(inputs) is not int or inputs < 0:
        raise ProgramInvalid(f"The group {name!r} should have a number of inputs, not {inputs!r}.")
    known = inputs
    instructions = []
    for entry in listed:
        instruction = _parse_instruction(name, entry, known, inputs)
        known += len(instruction.call.shapes)
        instructions.append(instruction)
    outputs = tuple(description["outputs"])
    for number in outputs:
        if type(number) is not int or not 0 <= number < known:
            raise ProgramInvalid(f"The group {name!r} yields the value {number!r}, and it has 0 to {known - 1}.")
    return Body(name, inputs, tuple(instructions), outputs)


def _parse_instruction(group: str, entry: Mapping[str, Any], known: int, inputs: int) -> Instruction:
    name = entry["op"]
    operation = OPERATIONS.get(name)
    if operation is None:
        raise ProgramInvalid(
            f"The group {group!r} uses the operation {name!r}, which this runtime does not know.",
            hint="Update Tessera, or pack the model again.",
        )
    where = f"{group}: {name}"
    operands = tuple(entry["operands"])
    if not operation.least <= len(operands) <= operation.most:
        raise ProgramInvalid(
            f"{where} takes {operation.least} to {operation.most} operands, and is given {len(operands)}."
        )
    for number in operands:
        if type(number) is not int or not 0 <= number < known:
            raise ProgramInvalid(f"{where} reads the value {number!r}, and before it there are 0 to {known - 1}.")
    for place in operation.weights:
        if operands[place] >= inputs:
            raise ProgramInvalid(f"{where} needs a weight as operand {place}, and is given a computed value.")
    call = Call(dict(entry["attributes"]), tuple(tuple(shape) for shape in entry["shapes"]), tuple(entry["dtypes"]))
    _check_attributes(where, operation, call.attributes)
    _check_results(where, operation, call)
    if "value" in call.attributes and len(call.attributes["value"]) != math.prod(_static(where, call.shapes[0])):
        raise ProgramInvalid(
            f"{where} has {len(call.attributes['value'])} values, and its shape is {_text(call.shapes[0])}."
        )
    return Instruction(name, operation, operands, call, operation.caches(call.attributes))


def _check_attributes(where: str, operation: Operation, attributes: Mapping[str, Any]) -> None:
    missing = sorted(set(operation.attributes) - set(attributes))
    if missing:
        raise ProgramInvalid(f"{where} lacks the attribute {missing[0]!r}.")
    allowed = {**operation.optional, **operation.attributes}
    for key, value in attributes.items():
        if key not in allowed:
            raise ProgramInvalid(f"{where} has the attribute {key!r}, which it should not have.")
        if not allowed[key](value):
            raise ProgramInvalid(f"{where} has the attribute {key!r} with a value that makes no sense: {value!r:.80}.")


def _check_results(where: str, operation: Operation, call: Call) -> None:
    if len(call.shapes) != operation.results or len(call.dtypes) != operation.results:
        raise ProgramInvalid(f"{where} has {operation.results} results, and the program describes {len(call.shapes)}.")
    for dtype in call.dtypes:
        if dtype not in HELD_AS:
            raise ProgramInvalid(f"{where} gives a value of dtype {dtype!r}; known are {', '.join(HELD_AS)}.")
    for shape in call.shapes:
        own = shape[1:] if shape[:1] == (None,) else shape
        sizes = [size for size in own if type(size) is int and size >= 0]
        if len(sizes) != len(own) or math.prod(sizes) > _MOST_ELEMENTS:
            raise ProgramInvalid(f"{where} gives a value of shape {_text(shape)}, which no value has.")


def _static(where: str, shape: Shape) -> list[int]:
    if None in shape:
        raise ProgramInvalid(f"{where} is the same for all tokens, so its shape has no rows; found {_text(shape)}.")
    return [size for size in shape if size is not None]


def _as_array(value: Array | Weight) -> Array:
    return value.values() if isinstance(value, Weight) else np.asarray(value)


def _text(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('rows' if size is None else str(size) for size in shape)}]"
