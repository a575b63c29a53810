"""Kernels that see buffers and weights through tensor maps: what programs say of them, and what kernels are given."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from fake_driver import FakeDriver, Misuse
from replay import FakeModules, Mismatch, replay
from toy_kernels import ROW
from toy_program import toy_program

from tessera_runtime.errors import ProgramInvalid
from tessera_runtime.executor.gpu.arena_check import check_arena, sizes_to_try
from tessera_runtime.executor.gpu.binding import Addresses, LaunchBinder
from tessera_runtime.executor.gpu.driver import TensorMapShape
from tessera_runtime.executor.gpu.grid import StepSizes
from tessera_runtime.executor.gpu.metadata import MetadataLayout
from tessera_runtime.executor.gpu.parameters import Parameters, TensorMaps
from tessera_runtime.executor.gpu.program import read_program

SIZES = StepSizes(8, 3, 4, 4, 2, 1, 1)
WEIGHT = {"dtype": "i32", "shape": [1, 16], "strides": [64], "box": [1, 16], "swizzle": 64}
ROWS = {"dtype": "i32", "shape": ["T", ROW // 4], "strides": [ROW], "box": [4, 8], "swizzle": 32}


def mapped_program() -> dict[str, Any]:
    """The toy, whose first kernel sees a weight and its result so."""
    raw = toy_program()
    kernel = raw["kernels"]["embed"]
    kernel["parameters"][2:4] = ["tensor_map", "tensor_map"]
    kernel["tensor_maps"] = [dict(WEIGHT), dict(ROWS)]
    return raw


def test_functions_take_extents_after_each_map() -> None:
    embed = read_program(mapped_program()).kernels["embed"]
    of_map = ("tensor_map", "i32", "i32", "i64", "i64")
    assert embed.function_parameters == ("pointer", "pointer", *of_map, *of_map, "i32", "pointer", "pointer")


def test_a_program_with_maps_can_be_replayed_at_every_size() -> None:
    program = read_program(mapped_program())
    check_arena(program)
    for sizes in sizes_to_try(program):
        for form in ("logits", "greedy", "full"):
            replay(program, sizes, form)


def test_maps_describe_the_rows_of_the_step() -> None:
    """Those of weights are made once, those of buffers for each size."""
    program = read_program(mapped_program())
    driver = FakeDriver({}, capacity=1 << 30)
    binder = LaunchBinder(driver, program, FakeModules(driver, program), program.launches)
    places = [driver.allocate(1 << 16) for _ in range(4)]
    addresses = Addresses([places[0]], places[1], places[2], places[3], places[2:], {"feedback": places[2]}, {})
    for tokens in (5, 5, 7):
        sizes = StepSizes(tokens, 1, 2, 1, 0, tokens, 1)
        binder.bind(sizes, MetadataLayout.of(sizes), addresses)
    assert [(each.address, each.shape, each.strides, each.box) for each in driver.tensor_maps] == [
        (places[0], (1, 16), (64,), (1, 16)),
        *((places[1], (tokens, ROW // 4), (ROW,), (4, 8)) for tokens in (5, 5, 7)),
    ]


def test_the_replay_finds_maps_of_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    program = read_program(mapped_program())
    make = TensorMaps._make

    def shorter(self: TensorMaps, address: int, described: Any) -> Any:
        self._by_symbol = {**self._by_symbol, "T": 3}
        return make(self, address, described)

    with monkeypatch.context() as patch:
        patch.setattr(TensorMaps, "_make", shorter)
        with pytest.raises(Mismatch, match="but the buffer has 8 rows"):
            replay(program, SIZES)
    slots = Parameters.__init__

    def mixed(self: Parameters, *arguments: Any) -> None:
        slots(self, *arguments)
        self.map_numbers = self.map_numbers[::-1].copy()

    with monkeypatch.context() as patch:
        patch.setattr(Parameters, "__init__", mixed)
        with pytest.raises(Mismatch, match="maps|gets"):
            replay(program, SIZES)


def _map(number: int, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        raw["kernels"]["embed"]["tensor_maps"][number][key] = value

    return change


def too_few(raw: dict[str, Any]) -> None:
    raw["kernels"]["embed"]["tensor_maps"].pop()


def of_an_input(raw: dict[str, Any]) -> None:
    raw["kernels"]["embed"]["parameters"][0] = "tensor_map"
    raw["kernels"]["embed"]["tensor_maps"].append(dict(ROWS))


REFUSED: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (too_few, "has 1 tensor maps for 2 parameters"),
    (of_an_input, "passes input:token_ids as argument 0 of 'embed', which is of kind tensor_map"),
    (_map(0, "shape", [2, 16]), "maps 2 rows of 64 bytes of weight:0, which has 1"),
    (_map(0, "shape", ["T", 16]), "maps T rows of 64 bytes of weight:0"),
    (_map(1, "shape", ["L", 16]), "of buffer:0, which has T"),
    (_map(1, "strides", [2 * ROW]), f"maps T rows of {2 * ROW} bytes of buffer:0"),
    (_map(1, "strides", [8]), "must be multiples of 16"),
    (_map(1, "shape", ["S", 16]), "has the extent 'S'"),
    (_map(1, "box", [512, 8]), "extents lie in 1 to 256"),
    (_map(1, "box", [4]), "as many of its box"),
    (_map(1, "swizzle", 48), "one of [0, 32, 64, 128]"),
    (_map(1, "dtype", "f12"), "under 'dtype'"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_maps_that_do_not_fit_are_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    raw = mapped_program()
    change(raw)
    with pytest.raises(ProgramInvalid, match=re.escape(message)):
        read_program(raw)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (TensorMapShape(8, "bf16", (4, 64), (128,), (4, 64), 128), "no multiple of 16"),
        (TensorMapShape(0, "bf16", (4, 64), (128,), (4, 128), 128), "do not fit 128"),
        (TensorMapShape(0, "bf16", (4, 128), (128,), (4, 64), 128), "overlap"),
        (TensorMapShape(0, "bf16", (9, 64), (128,), (4, 64), 128), "past an allocation"),
    ],
)
def test_the_fake_driver_sees_maps_that_no_device_takes(shape: TensorMapShape, message: str) -> None:
    driver = FakeDriver({})
    place = driver.allocate(1024)
    with pytest.raises(Misuse, match=message):
        driver.tensor_map(TensorMapShape(place + shape.address, *list(vars(shape).values())[1:]))
