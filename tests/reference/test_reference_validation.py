"""Programs that make no sense are refused when they are loaded, in a sentence that says where."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from tessera_runtime.errors import AbiMismatch, ProgramInvalid
from tessera_runtime.executor.reference.body import parse_body
from tessera_runtime.executor.reference.executor import ReferenceExecutor
from tessera_runtime.executor.reference.program import parse_program

ADD = {"op": "graph.add", "operands": [0, 1], "attributes": {}, "shapes": [[None, 4]], "dtypes": ["f32"]}


def body_with(**changes: Any) -> dict[str, Any]:
    return {"inputs": 2, "body": [{**ADD, **changes}], "outputs": [2]}


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (body_with(op="graph.teleport"), "'graph.teleport', which this runtime does not know"),
        (body_with(operands=[0]), "graph.add takes 2 to 2 operands, and is given 1"),
        (body_with(operands=[0, 2]), "graph.add reads the value 2"),
        (body_with(operands=[0, -1]), "graph.add reads the value -1"),
        (body_with(attributes={"speed": 3}), "graph.add has the attribute 'speed'"),
        (body_with(dtypes=["f99"]), "dtype 'f99'"),
        (body_with(shapes=[[None, 4], [None, 4]]), "graph.add has 1 results"),
        (body_with(shapes=[[4, None]]), r"graph.add gives a value of shape \[4, rows\]"),
        (body_with(shapes=[[None, 1 << 40]]), "which no value has"),
        (body_with(op="graph.softcap", operands=[0]), "graph.softcap lacks the attribute 'cap'"),
        (
            body_with(op="graph.softcap", operands=[0], attributes={"cap": "x"}),
            "'cap' with a value that makes no sense",
        ),
        (body_with(op="graph.gated", attributes={"activation": "fire"}), "'activation'"),
        (body_with(op="graph.constant", operands=[], attributes={"value": [1.0]}), "shape has no rows"),
        (body_with(op="graph.constant", operands=[], attributes={"value": [1.0]}, shapes=[[2]]), "has 1 values"),
        ({"inputs": 2, "body": [ADD], "outputs": [3]}, "yields the value 3"),
        ({"inputs": -1, "body": [], "outputs": []}, "number of inputs"),
        (
            {"inputs": 2, "body": [ADD, {**ADD, "op": "schedule.matmul", "operands": [0, 2]}], "outputs": [3]},
            "schedule.matmul needs a weight as operand 1",
        ),
    ],
)
def test_bodies_that_make_no_sense(description: dict[str, Any], words: str) -> None:
    with pytest.raises(ProgramInvalid, match=words):
        parse_body("rows_0", description)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((3, 4), (3, 5)), "graph.add cannot be computed"),
        (((3, 5), (3, 5)), r"graph.add should have shape \[rows, 4\], and has \[3, 5\]"),
    ],
)
def test_operands_that_do_not_fit(shapes: tuple[tuple[int, ...], ...], words: str) -> None:
    body = parse_body("rows_0", body_with())
    with pytest.raises(ProgramInvalid, match=words):
        body.run([np.zeros(shape, np.float32) for shape in shapes], [])


def _first_launch(program: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(each for each in program["launches"] if any(arg.startswith(kind) for arg in each["args"]))


def _set_argument(program: dict[str, Any], kind: str, value: str) -> None:
    args = _first_launch(program, kind)["args"]
    args[next(index for index, arg in enumerate(args) if arg.startswith(kind))] = value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.update(target="cpu"), "for the target 'cpu'"),
        (lambda p: p.pop("groups"), "KeyError 'groups'"),
        (lambda p: p.update(output=10_000), "`output` names the buffer 10000"),
        (lambda p: p["launches"][0].update(group="no_such"), "'no_such'"),
        (lambda p: p["launches"][0]["args"].pop(), "gives 3 arguments"),
        (lambda p: p["launches"].pop(0), "which no launch before it writes"),
        (lambda p: _set_argument(p, "cache_key", "cache_value:0"), "cache_value:0 .* needs a key"),
        (lambda p: _set_argument(p, "cache_key", "cache_key:7"), "names nothing"),
        (lambda p: _set_argument(p, "weight", "input:color"), "names nothing"),
        (lambda p: p["buffers"][0].update(shape=[3]), "writes f32"),
        (lambda p: p["cache"]["layers"][0].update(dtype="f8"), "dtype 'f8'"),
        (lambda p: p["cache"]["layers"][0].update(key_offset=1 << 20), "do not lie within a block"),
        (lambda p: p.update(layers=[{"path": "x", "end": 1, "buffer": p["output"]}]), "before its buffer"),
    ],
)
def test_programs_that_make_no_sense(compiled, change, words) -> None:
    program = copy.deepcopy(compiled("llama", "fp32").program)
    parse_program(program)
    change(program)
    with pytest.raises(ProgramInvalid, match=words):
        parse_program(program)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda layer: layer.update(key_offset=1 << 20), "The heads of cache.layers.0. do not lie"),
        (lambda layer: layer.update(head_bytes=64), "do not lie within a block"),
        (lambda layer: layer.update(value_scale_offset=layer["value_scale_offset"] + 2), "do not lie within a block"),
        (lambda layer: layer.update(heads=1 << 40), "do not lie within a block"),
        (lambda layer: layer.pop("key_scale_offset"), "KeyError 'key_scale_offset'"),
    ],
)
def test_caches_of_bytes_that_make_no_sense(compiled, change, words) -> None:
    program = copy.deepcopy(compiled("llama", "fp32+int8").program)
    parse_program(program)
    change(program["cache"]["layers"][0])
    with pytest.raises(ProgramInvalid, match=words):
        parse_program(program)


def test_matrices_must_be_weights(compiled) -> None:
    program = copy.deepcopy(compiled("llama", "fp32").program)
    launch = next(each for each in program["launches"] if each["group"].startswith("linear"))
    launch["args"][1] = launch["args"][0]
    with pytest.raises(ProgramInvalid, match="as input 1 of 'linear_0', which cannot be"):
        parse_program(program)


def test_other_versions_are_refused(compiled) -> None:
    model = compiled("llama", "fp32")
    with pytest.raises(AbiMismatch, match="ABI 9"):
        ReferenceExecutor({**model.program, "abi": 9}, model.weights)
