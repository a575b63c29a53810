"""Threads share out a launch so that each instance runs once, and each goes through a stretch of its own first."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from llvmlite import ir
from numpy.typing import NDArray

from tessera_compiler.targets.cpu.emission import I64, POINTER, i64
from tessera_compiler.targets.cpu.object_code import CPU_CLASSES, compile_ir
from tessera_compiler.targets.cpu.work_sharing import Place, share_out
from tessera_runtime.executor.cpu.processor import choose_class, read_processor

CLAIMS, LAUNCHES, LAUNCH = 4, 5, 3
Portions = list[tuple[int, int]]
Threads = Callable[[NDArray[np.int64], int, int, int], Portions]


@pytest.fixture(scope="module")
def run_thread(tmp_path_factory: pytest.TempPathFactory) -> Threads:
    """`run(counters, thread, threads, total)`: the portions that a thread runs, in their order."""
    name = choose_class({n: {"features": e.required_flags} for n, e in CPU_CLASSES.items()}, read_processor())
    module = ir.Module()
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64, I64, POINTER])
    function = ir.Function(module, kind, "share")
    counters, thread, threads, total, log = function.args
    builder = ir.IRBuilder(function.append_basic_block())

    def note(first: ir.Value, last: ir.Value) -> None:
        count = builder.load(log, align=8, typ=I64)
        place = builder.add(builder.mul(count, i64(2)), i64(1))
        builder.store(first, builder.gep(log, [place], source_etype=I64), align=8)
        builder.store(last, builder.gep(log, [builder.add(place, i64(1))], source_etype=I64), align=8)
        builder.store(builder.add(count, i64(1)), log, align=8)

    share_out(builder, Place(counters, i64(LAUNCHES), i64(LAUNCH)), thread, threads, total, CLAIMS, note)
    builder.ret_void()
    path = Path(tmp_path_factory.mktemp("sharing")) / "object.so"
    path.write_bytes(compile_ir(str(module), CPU_CLASSES[name], ["share"]))
    library = ctypes.CDLL(str(path))

    def run(taken: NDArray[np.int64], number: int, of: int, instances: int) -> Portions:
        portions = np.zeros(1 + 2 * (instances + 1), np.int64)
        library.share(
            ctypes.c_void_p(taken.ctypes.data),
            ctypes.c_int64(number),
            ctypes.c_int64(of),
            ctypes.c_int64(instances),
            ctypes.c_void_p(portions.ctypes.data),
        )
        return [(int(first), int(last)) for first, last in portions[1 : 1 + 2 * portions[0]].reshape(-1, 2)]

    return run


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("total", [0, 1, 2, 5, 16, 33])
def test_a_thread_runs_its_own_share_in_order_and_then_what_others_left(
    run_thread: Threads, threads: int, total: int
) -> None:
    counters = np.zeros((threads, LAUNCHES), np.int64)
    first = threads // 2
    portions = run_thread(counters, first, threads, total)
    covered = [instance for start, end in portions for instance in range(start, end)]
    assert sorted(covered) == list(range(total)), "alone, it does everything once"
    share = range(total * first // threads, total * (first + 1) // threads)
    assert covered[: len(share)] == list(share)
    for thread in range(threads):
        assert run_thread(counters, thread, threads, total) == [], "nothing is left"
    assert not np.delete(counters, LAUNCH, axis=1).any(), "other launches have counters of their own"


def test_a_disturbed_thread_leaves_the_rest_of_its_share_to_the_others(run_thread: Threads) -> None:
    counters = np.zeros((2, LAUNCHES), np.int64)
    counters[0, LAUNCH] = 4  # thread 0 has taken the first of its four portions, and is at work on it
    assert run_thread(counters, 1, 2, 32) == [(16, 20), (20, 24), (24, 28), (28, 32), (4, 8), (8, 12), (12, 16)]
