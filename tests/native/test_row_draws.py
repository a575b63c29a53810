"""Tokens drawn by an object's own code are those that its weights lead to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from llvmlite import ir
from numpy.typing import NDArray

from tessera_compiler.targets.cpu.object_code import CPU_CLASSES, compile_ir
from tessera_compiler.targets.cpu.row_draws import DRAW, DRAW_BYTES, FIELDS, add_draws
from tessera_compiler.targets.cpu.step_protocol import EXPORTS, StepProtocol
from tessera_compiler.targets.cpu.vector_math import VectorMath
from tessera_compiler.targets.cpu.weighing import WEIGH, add_weigh
from tessera_runtime.errors import ExecutionError
from tessera_runtime.executor.cpu import row_drawer
from tessera_runtime.executor.cpu.context import Context
from tessera_runtime.executor.cpu.memory import address_of, zeroed_memory
from tessera_runtime.executor.cpu.native_object import NativeObject
from tessera_runtime.executor.cpu.object_check import check_object
from tessera_runtime.executor.cpu.processor import choose_class, machine_of_class, read_processor
from tessera_runtime.executor.cpu.row_drawer import RowDrawer
from tessera_runtime.executor.cpu.weigher import Weigher
from tessera_runtime.executor.cpu.workers import WorkerPool
from tessera_runtime.sampling.parameters import SamplingParameters
from tessera_runtime.sampling.sampler import sample
from tessera_runtime.sampling.sequence import SampledSequence
from tessera_runtime.sampling.weighing import Rows

SYMBOLS = (*EXPORTS, WEIGH, DRAW)
ALMOST_ONE = 1.0 - 2.0**-53


def object_that_draws(name: str) -> bytes:
    """Its steps write over the first eight bytes of the arena."""
    entry = CPU_CLASSES[name]
    module = ir.Module()
    functions, protocol = VectorMath(module), StepProtocol(module, entry.machine)
    body = protocol.declare_body()
    builder = ir.IRBuilder(body.append_basic_block())
    arena = protocol.load(builder, body.args[0], "arena")
    builder.store(ir.Constant(ir.IntType(64), -1), arena, align=8)
    builder.ret_void()
    protocol.finish(body, 2, add_draws(module, functions, protocol))
    add_weigh(module, functions)
    return compile_ir(str(module), entry, SYMBOLS)


class Machine:
    """An object, its threads, and what its context points to."""

    def __init__(self, path: Path, name: str, threads: int) -> None:
        self.native = NativeObject(path, machine_of_class(name), SYMBOLS)
        assert self.native.weigh is not None and self.native.draw is not None
        self.context = Context()
        self.counters, self.arena = zeroed_memory(64).view(np.int64), zeroed_memory(64).view(np.int64)
        self.context["counters"], self.context["arena"] = address_of(self.counters), address_of(self.arena)
        self.context["yield"] = self.native.yield_address
        self.pool = WorkerPool(self.native, self.context, threads, [])
        self.weigh = Weigher(self.native.weigh)
        self.drawer = RowDrawer(self.native.draw, self.context, self.counters, self.pool.run, threads)


@pytest.fixture(scope="module", params=[1, 3])
def machine(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Machine]:
    name = choose_class({n: {"features": e.required_flags} for n, e in CPU_CLASSES.items()}, read_processor())
    path = tmp_path_factory.mktemp("draws") / "object.so"
    path.write_bytes(object_that_draws(name))
    made = Machine(path, name, request.param)
    yield made
    assert made.pool.close()
    made.native.close()


@pytest.mark.parametrize("name", list(CPU_CLASSES))
def test_every_class_draws(name: str) -> None:
    assert DRAW in check_object(object_that_draws(name), machine_of_class(name), SYMBOLS).symbols


def test_both_sides_mean_the_same_fields() -> None:
    described = row_drawer.DRAW
    assert described.itemsize == DRAW_BYTES
    assert {name: described.fields[name][1] for name in described.names} == {n: at for n, (at, _) in FIELDS.items()}  # type: ignore[index,union-attr]


class Fixed(SampledSequence):
    """A sequence whose uniform number is given."""

    def __init__(self, uniform: float, **parameters: float) -> None:
        super().__init__(SamplingParameters(**parameters))  # type: ignore[arg-type]
        self._uniform = uniform

    def draw(self, ahead: int = 0) -> float:
        return self._uniform


def logits_of(size: int, count: int) -> NDArray[np.float32]:
    random = np.random.default_rng(size)
    logits = (random.standard_normal((count, size)) * random.uniform(0, 20, (count, 1))).astype(np.float32)
    logits[1::5, size // 3 :] = -np.inf  # the far end has no weight
    logits[2::5] = np.round(logits[2::5])
    logits[3::5, : size // 2] = -np.inf
    return logits


def rows_of(logits: NDArray[np.float32], indices: list[int] | None = None, temperature: float = 0.7) -> Rows:
    chosen = np.arange(len(logits)) if indices is None else np.array(indices)
    return Rows(logits, chosen, logits.max(axis=1)[chosen], np.full(len(chosen), temperature))


@pytest.mark.parametrize("size", [3, 63, 64, 65, 1000, 49_152])
def test_tokens_are_those_that_the_weights_lead_to(machine: Machine, size: int) -> None:
    count = 40
    logits = logits_of(size, count)
    numbers = np.random.default_rng(1).uniform(size=count)
    numbers[::4] = (0.0, 2.0**-53, ALMOST_ONE, 0.5, 1e-9) * 2
    temperatures = np.resize([0.8, 1.0, 1e-6, 0.3, 2.0, 1.5, 1e-300], count)
    sequences = [Fixed(float(u), temperature=float(t)) for t, u in zip(temperatures, numbers, strict=True)]
    expected = sample(logits, sequences, None, machine.weigh)
    machine.arena[0] = 7
    assert sample(logits, sequences, None, machine.weigh, machine.drawer).tolist() == expected.tolist()
    assert (machine.arena[0], machine.context["draw_count"]) == (7, 0), "a draw is no step"
    machine.pool.run()
    assert machine.arena[0] == -1, "a step after it is one"


def test_a_point_beyond_all_sums_takes_the_last_that_weighs(machine: Machine) -> None:
    # More than 1: what rounding could do at worst.
    logits = logits_of(300, 10)
    for row, token in zip(logits, machine.drawer.draw(rows_of(logits), np.full(10, 2.0)), strict=True):
        values, _, _ = machine.weigh(row, float(row.max()), 0.7)
        assert token == np.flatnonzero(values)[-1]


@pytest.mark.parametrize("size", [3, 65, 1000, 49_152])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.95, 1.0 - 1e-12])
@pytest.mark.parametrize("temperature", [1e-6, 0.6, 1.0, 2.0])
def test_draws_from_a_nucleus_are_as_before(machine: Machine, size: int, top_p: float, temperature: float) -> None:
    logits = logits_of(size, 15)
    numbers = np.random.default_rng(size).uniform(size=15)
    numbers[:3] = 0.0, ALMOST_ONE, 0.5
    more: tuple[dict[str, float], ...] = ({}, {}, {"min_p": 0.01}, {"top_k": 9}, {"repetition_penalty": 1.2})
    sequences = [
        Fixed(float(number), temperature=temperature, top_p=top_p, **more[row % 5])
        for row, number in enumerate(numbers)
    ]
    expected = sample(logits, sequences, None, machine.weigh)
    assert sample(logits, sequences, None, machine.weigh, machine.drawer).tolist() == expected.tolist()


@pytest.mark.parametrize("size", [64, 1000, 49_152])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_the_nucleus_is_among_the_candidates(machine: Machine, size: int, share: float) -> None:
    logits = logits_of(size, 20)
    found, totals = machine.drawer.nuclei(rows_of(logits), np.full(20, share))
    sizes = []
    for row, candidates, total in zip(logits, found, totals, strict=True):
        values, sums, _ = machine.weigh(row, float(row.max()), 0.7)
        assert total == float(sums.sum(dtype=np.float64)), "to the bit"
        if candidates is not None:
            ids, their_logits = candidates
            assert their_logits.tolist() == row[ids].tolist()
            order = np.argsort(-values, kind="stable")
            nucleus = order[: int(np.searchsorted(np.cumsum(values[order], dtype=np.float64), share * total)) + 1]
            assert set(nucleus.tolist()) <= set(ids.tolist())
            assert ids.tolist() == sorted(set(ids.tolist())) and values[ids].min() > 0
            sizes.append(len(ids) / len(nucleus))
    assert len(sizes) >= 10 and np.median(sizes) < 1.2, "nearly nothing else"


def test_a_flat_row_has_too_many_candidates(machine: Machine) -> None:
    for size, expected in ((49_152, None), (2049, None), (2048, 2048), (1985, 1985), (64, 64)):
        found, _ = machine.drawer.nuclei(rows_of(np.zeros((4, size), np.float32)), np.full(4, 0.9))
        assert [None if each is None else len(each[0]) for each in found] == [expected] * 4


def test_a_share_of_nearly_all_is_left_to_who_asked(machine: Machine) -> None:
    # Sums of float32 cannot tell.
    assert machine.drawer.nuclei(rows_of(logits_of(500, 3)), np.full(3, 1.0 - 1e-6))[0] == [None] * 3


def test_weights_of_another_row_do_not_remain(machine: Machine) -> None:
    machine.drawer.nuclei(rows_of(np.zeros((4, 1024), np.float32)), np.full(4, 0.9))
    logits = logits_of(900, 4)  # whose last run is not whole
    found, _ = machine.drawer.nuclei(rows_of(logits), np.full(4, 0.9))
    assert all(each is not None and each[0].max() < 900 for each in found)


def test_only_chosen_rows_are_drawn_from(machine: Machine) -> None:
    logits = logits_of(500, 8)
    every = machine.drawer.draw(rows_of(logits), np.full(8, 0.4))
    some = [6, 1, 4]
    assert machine.drawer.draw(rows_of(logits, some), np.full(3, 0.4)).tolist() == every[some].tolist()
    wide = np.zeros((8, 600), np.float32)
    wide[:, :500] = logits
    assert machine.drawer.draw(rows_of(wide[:, :500]), np.full(8, 0.4)).tolist() == every.tolist()


def test_only_rows_of_float32_are_drawn_from(machine: Machine) -> None:
    for logits in (np.zeros((2, 4)), np.zeros(4, np.float32), np.zeros((2, 8), np.float32)[:, ::2]):
        rows = Rows(logits, np.arange(1), np.zeros(1, np.float32), np.ones(1))  # type: ignore[arg-type]
        with pytest.raises(ExecutionError, match="Rows of float32"):
            machine.drawer.draw(rows, np.zeros(1))


def test_older_objects_do_not_draw(open_toy) -> None:  # type: ignore[no-untyped-def]
    assert open_toy(1).row_sampler is None
