"""Softmax weights by an object's own code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from object_files import object_with

from tessera_compiler.targets.cpu.object_code import CPU_CLASSES
from tessera_compiler.targets.cpu.step_protocol import EXPORTS
from tessera_compiler.targets.cpu.vector_math import VectorMath
from tessera_compiler.targets.cpu.weighing import RUN, WEIGH, add_weigh
from tessera_runtime.errors import ExecutionError
from tessera_runtime.executor.cpu import weigher
from tessera_runtime.executor.cpu.native_object import NativeObject
from tessera_runtime.executor.cpu.object_check import check_object
from tessera_runtime.executor.cpu.processor import choose_class, machine_of_class, read_processor
from tessera_runtime.executor.cpu.weigher import Weigher


def object_that_weighs(name: str) -> bytes:
    return object_with(name, WEIGH, lambda module, _: add_weigh(module, VectorMath(module)))


def open_object(folder: Path, name: str) -> NativeObject:
    path = folder / f"{name}.so"
    path.write_bytes(object_that_weighs(name))
    return NativeObject(path, machine_of_class(name), [*EXPORTS, WEIGH])


@pytest.fixture(scope="module")
def weigh(tmp_path_factory: pytest.TempPathFactory) -> Weigher:
    name = choose_class({n: {"features": e.required_flags} for n, e in CPU_CLASSES.items()}, read_processor())
    native = open_object(tmp_path_factory.mktemp("weigh"), name)
    assert native.weigh is not None
    return Weigher(native.weigh)


@pytest.mark.parametrize("name", list(CPU_CLASSES))
def test_every_class_weighs(name: str) -> None:
    assert WEIGH in check_object(object_that_weighs(name), machine_of_class(name), [*EXPORTS, WEIGH]).symbols


@pytest.mark.parametrize("temperature", [1e-6, 0.7, 1.0, 5.0])
@pytest.mark.parametrize("size", [1, 5, RUN - 1, RUN, RUN + 1, 1000, 49_152])
def test_weights_are_exponentials_and_sums_are_theirs(weigh: Weigher, size: int, temperature: float) -> None:
    row = (np.random.default_rng(size).standard_normal(size) * 6).astype(np.float32)
    row[size // 2] = -np.inf if size > 1 else 0.0
    peak = row.max()
    values, sums, columns = weigh(row, float(peak), temperature)
    expected = np.exp((row.astype(np.float64) - float(peak)) / temperature)
    # The exponent is rounded to float32 before it is used.
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=1e-37)
    assert columns == RUN == weigher.RUN and values.max() == 1.0
    starts = np.arange(0, size, RUN)
    np.testing.assert_allclose(sums, np.add.reduceat(values.astype(np.float64), starts), rtol=1e-6)


def test_nothing_beyond_the_row_is_touched_and_nothing_else_matters(weigh: Weigher) -> None:
    random = np.random.default_rng(3)
    row = random.standard_normal(333).astype(np.float32)
    alone = weigh(row, float(row.max()), 0.8)[0].copy()
    weigh(random.standard_normal(5000).astype(np.float32), 4.0, 0.8)
    among = np.full(1000, np.nan, np.float32)
    among[100:433] = row
    again = weigh(among[100:433], float(row.max()), 0.8)
    np.testing.assert_array_equal(again[0].view(np.int32), alone.view(np.int32))
    assert np.isfinite(again[1]).all() and len(again[1]) == 6


def test_all_classes_of_this_machine_give_the_same_bits(tmp_path: Path) -> None:
    row = (np.random.default_rng(4).standard_normal(700) * 9).astype(np.float32)
    found = set()
    for name, entry in CPU_CLASSES.items():
        if entry.required_flags and set(entry.required_flags) <= read_processor().features:
            native = open_object(tmp_path, name)
            assert native.weigh is not None
            values, sums, _ = Weigher(native.weigh)(row, float(row.max()), 0.9)
            found.add(values.tobytes() + sums.tobytes())
    assert len(found) == 1


def test_only_rows_of_float32_are_weighed(weigh: Weigher) -> None:
    for row in (np.zeros(4), np.zeros((2, 2), np.float32), np.zeros(8, np.float32)[::2]):
        with pytest.raises(ExecutionError, match="contiguous float32"):
            weigh(row, 0.0, 1.0)  # type: ignore[arg-type]


def test_older_objects_do_not_weigh(open_toy) -> None:  # type: ignore[no-untyped-def]
    assert open_toy(1).weigh is None
