"""Reads a `program.json` of the target `reference` and checks that its launches fit together before any of it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessera_runtime.abi import require_supported
from tessera_runtime.errors import ProgramInvalid
from tessera_runtime.executor.interface import ExecutorLimits
from tessera_runtime.executor.reference.body import Body, parse_body
from tessera_runtime.executor.reference.numbers import STORED_AS

_INPUTS = ("token_ids", "positions", "sequences", "block_tables", "logit_rows")


@dataclass(frozen=True)
class Launch:
    """One group applied to arguments, which are `(kind, which)`: `("buffer", 3)`, `("input", "positions")`."""

    body: Body
    inputs: tuple[tuple[str, Any], ...]
    caches: tuple[tuple[str, int], ...]
    """(`key` or `value`, index of the layer)."""
    outputs: tuple[int, ...]
    """Buffers."""
    finished: tuple[int, ...]
    """Buffers that nothing after this launch needs."""


@dataclass(frozen=True)
class Program:
    limits: ExecutorLimits
    cache: Mapping[str, Any]
    launches: tuple[Launch, ...]
    layers: tuple[tuple[str, int, int], ...]
    """(module path, number of launches until it is done, buffer)."""
    output: int


def parse_program(program: Mapping[str, Any]) -> Program:
    """Raises AbiMismatch or ProgramInvalid; the message names the launch, the group or the operation."""
    require_supported(program.get("abi"))
    try:
        return _Reader(program).read()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ProgramInvalid(f"The program cannot be read: {type(error).__name__} {error}.") from None


class _Reader:
    def __init__(self, program: Mapping[str, Any]) -> None:
        if program["target"] != "reference":
            raise ProgramInvalid(f"The program is for the target {program['target']!r}, not for the reference.")
        self._program = program
        self._bodies = {name: parse_body(name, group) for name, group in program["groups"].items()}
        self._written: set[int] = set()

    def read(self) -> Program:
        program = self._program
        cache = program["cache"]
        self._check_cache(cache)
        parsed = [self._launch(f"launches[{index}]", launch) for index, launch in enumerate(program["launches"])]
        output = program["output"]
        if output not in self._written:
            raise ProgramInvalid(f"`output` names the buffer {output!r}, which no launch writes.")
        last = self._last_uses(parsed)
        launches = tuple(
            Launch(*launch, finished=tuple(buffer for buffer, use in last.items() if use == index))
            for index, launch in enumerate(parsed)
        )
        limits = ExecutorLimits(
            max_tokens=program["limits"]["max_tokens"],
            max_model_len=program["limits"]["max_model_len"],
            vocab_size=program["limits"]["vocab_size"],
            block_tokens=cache["block_tokens"],
            bytes_per_block=cache["bytes_per_block"],
        )
        layers = tuple((str(layer["path"]), layer["end"], layer["buffer"]) for layer in program["layers"])
        return Program(limits, cache, launches, layers, output)

    def _launch(
        self, where: str, launch: Mapping[str, Any]
    ) -> tuple[Body, tuple[tuple[str, Any], ...], tuple[tuple[str, int], ...], tuple[int, ...]]:
        body = self._bodies.get(launch["group"])
        if body is None:
            raise ProgramInvalid(f"{where} launches the group {launch['group']!r}, which the program does not have.")
        args = [self._argument(where, argument) for argument in launch["args"]]
        split = body.inputs + len(body.caches)
        if len(args) != split + len(body.outputs):
            raise ProgramInvalid(
                f"{where} gives {len(args)} arguments to {body.name!r}, which takes {split + len(body.outputs)}."
            )
        inputs, caches, outputs = args[: body.inputs], args[body.inputs : split], args[split:]
        for number, (kind, which) in enumerate(inputs):
            if kind.startswith("cache") or (kind != "weight" and number in body.weights):
                raise ProgramInvalid(
                    f"{where} gives {kind}:{which} as input {number} of {body.name!r}, which cannot be."
                )
            if kind == "buffer" and which not in self._written:
                raise ProgramInvalid(f"{where} reads the buffer {which}, which no launch before it writes.")
        layers = self._program["cache"]["layers"]
        for (part, element), (kind, which) in zip(body.caches, caches, strict=True):
            if kind != f"cache_{part}" or layers[which]["dtype"] != element:
                raise ProgramInvalid(
                    f"{where} gives {kind}:{which} to {body.name!r}, which needs a {part} in {element}."
                )
        self._check_outputs(where, body, outputs)
        return (
            body,
            tuple(inputs),
            tuple((kind.removeprefix("cache_"), which) for kind, which in caches),
            tuple(which for _, which in outputs),
        )

    def _check_outputs(self, where: str, body: Body, outputs: list[tuple[str, Any]]) -> None:
        for (kind, which), type_ in zip(outputs, body.output_types(), strict=True):
            if kind != "buffer":
                raise ProgramInvalid(f"{where} lets {body.name!r} write to {kind}:{which}, which is no buffer.")
            buffer = self._program["buffers"][which]
            if type_ is not None and ((None, *buffer["shape"]), buffer["dtype"]) != type_:
                raise ProgramInvalid(
                    f"{where} writes {type_[1]} {list(type_[0][1:])} to the buffer {which}, "
                    f"which holds {buffer['dtype']} {buffer['shape']}."
                )
            self._written.add(which)

    def _argument(self, where: str, argument: str) -> tuple[str, Any]:
        kind, _, which = argument.partition(":")
        if kind == "input" and which in _INPUTS:
            return kind, which
        lengths = {
            "buffer": len(self._program["buffers"]),
            "weight": len(self._program["weights"]),
            "cache_key": len(self._program["cache"]["layers"]),
            "cache_value": len(self._program["cache"]["layers"]),
        }
        if kind in lengths and which.isascii() and which.isdigit() and int(which) < lengths[kind]:
            return kind, int(which)
        raise ProgramInvalid(f"{where} has the argument {argument!r}, which names nothing in the program.")

    def _last_uses(self, launches: list[Any]) -> dict[int, int]:
        """Buffer → the last launch after which it is still needed; the output is needed when all is done."""
        last: dict[int, int] = {}
        first: dict[int, int] = {}
        for index, (_, inputs, _, outputs) in enumerate(launches):
            for buffer in (*(which for kind, which in inputs if kind == "buffer"), *outputs):
                last[buffer] = index
                first.setdefault(buffer, index)
        for layer in self._program["layers"]:
            end, buffer = layer["end"], layer["buffer"]
            if type(end) is not int or not 0 < end <= len(launches) or first.get(buffer, end) >= end:
                raise ProgramInvalid(
                    f"The layer {layer['path']!r} ends at {end!r}, before its buffer {buffer!r} is written."
                )
            last[buffer] = max(last[buffer], end - 1)
        last[self._program["output"]] = len(launches)
        return last

    def _check_cache(self, cache: Mapping[str, Any]) -> None:
        for index, layer in enumerate(cache["layers"]):
            element = STORED_AS.get(layer["dtype"])
            if element is None:
                raise ProgramInvalid(
                    f"cache.layers[{index}] has the dtype {layer['dtype']!r}; known are f32, bf16 and i8."
                )
            if layer["dtype"] == "i8":
                self._check_bytes(cache, layer, index)
                continue
            for part in ("key", "value"):
                start = layer[f"{part}_offset"]
                end = start + layer["heads"] * layer[f"{part}_dim"] * cache["block_tokens"] * element.itemsize
                if not 0 <= start < end <= cache["bytes_per_block"]:
                    raise ProgramInvalid(f"The {part}s of cache.layers[{index}] do not lie within a block.")

    def _check_bytes(self, cache: Mapping[str, Any], layer: Mapping[str, Any], index: int) -> None:
        first, size, positions = layer["key_offset"], layer["head_bytes"], cache["block_tokens"]
        inside = 0 <= first <= cache["bytes_per_block"] - layer["heads"] * size
        for part in ("key", "value"):
            start, end = layer[f"{part}_offset"] - first, layer[f"{part}_dim"] * positions
            inside = inside and 0 <= start <= size - end
            start = layer[f"{part}_scale_offset"] - first
            inside = inside and 0 <= start <= size - positions * 4 and start % 4 == 0
        if not inside or size % 4 or first % 4:
            raise ProgramInvalid(f"The heads of cache.layers[{index}] do not lie within a block.")
