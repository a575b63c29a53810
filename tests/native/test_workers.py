"""Worker threads: many steps, parking and waking, interruption, and leaving in good order."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from tessera_runtime.errors import ExecutionError

ALLOWED = os.sched_getaffinity(0)
"""As it was before any test ran a step."""


@pytest.mark.parametrize(
    ("threads", "steps"),
    [
        *((1, 10_000), (2, 5_000), (3, 300)),
        *(pytest.param(threads, steps, marks=pytest.mark.slow) for threads, steps in ((3, 2_000), (4, 1_000))),
    ],
)
def test_many_steps_are_all_right(open_toy, batch_of, expect, toy_weights, threads, steps):
    executor = open_toy(threads)
    batches = [batch_of(tokens) for tokens in (1, 5, 16)]
    wanted = [expect(batch, toy_weights["bias"]) for batch in batches]
    for number in range(steps):
        if not np.array_equal(executor.step(batches[number % 3]), wanted[number % 3]):
            pytest.fail(f"step {number} of {steps} on {threads} threads is wrong")


def test_idle_workers_park_and_wake(open_toy, batch_of, expect, toy_weights):
    executor = open_toy(3)
    batch = batch_of(8)
    wanted = expect(batch, toy_weights["bias"])
    for _ in range(5):
        np.testing.assert_array_equal(executor.step(batch), wanted)
        _wait_until_parked(executor, 2)


def test_idle_workers_cost_nothing(open_toy, batch_of):
    executor = open_toy(3)
    executor.step(batch_of(8))
    _wait_until_parked(executor, 2)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.5 * 0.05


@pytest.mark.slow
def test_steps_at_the_moment_of_parking(open_toy, batch_of, expect, toy_weights):
    """Pauses around the time after which workers park, so that steps and parking cross each other."""
    executor = open_toy(2)
    batch = batch_of(4)
    wanted = expect(batch, toy_weights["bias"])
    started = time.perf_counter()
    executor.step(batch)
    _wait_until_parked(executor, 1)
    patience = time.perf_counter() - started
    for number in range(150):
        np.testing.assert_array_equal(executor.step(batch), wanted)
        time.sleep(patience * (0.7 + 0.004 * number))


def test_closing_ends_the_threads(open_toy, batch_of):
    before = threading.active_count()
    executor = open_toy(4)
    executor.step(batch_of(4))
    assert threading.active_count() == before + 3
    executor.close()
    assert threading.active_count() == before
    executor.close()


def test_the_callers_affinity_is_given_back(open_toy, batch_of):
    open_toy(2).step(batch_of(4))
    assert os.sched_getaffinity(0) == ALLOWED


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupted_step_leaves_the_executor_whole(open_toy, batch_of, expect, toy_weights, moment):
    """Ctrl-C between publishing a step and running it, and right after it ran."""
    executor = open_toy(3)
    batch = batch_of(6)
    native = executor._native
    begin, step = native.begin, native.step

    def interrupted_begin(address: int) -> int:
        begin(address)
        raise KeyboardInterrupt

    def interrupted_step(address: int) -> None:
        step(address)
        raise KeyboardInterrupt

    if moment == "before":
        native.begin = interrupted_begin
    else:
        native.step = interrupted_step
    with pytest.raises(KeyboardInterrupt):
        executor.step(batch)
    native.begin, native.step = begin, step
    np.testing.assert_array_equal(executor.step(batch), expect(batch, toy_weights["bias"]))


def test_a_fork_is_refused_and_not_hung(open_toy, batch_of):
    executor = open_toy(2)
    executor.step(batch_of(2))
    executor._pool._process += 1
    try:
        with pytest.raises(ExecutionError, match="after the fork"):
            executor.step(batch_of(2))
    finally:
        executor._pool._process -= 1


def test_a_process_may_end_without_closing(tmp_path, toy_objects, toy_program):
    """Workers spin in native code when the interpreter takes its memory away; that must not become a crash."""
    import json

    for name, data in toy_objects.items():
        (tmp_path / f"{name}.so").write_bytes(data)
    (tmp_path / "program.json").write_text(json.dumps(toy_program))
    script = """
        import json, sys
        from pathlib import Path
        import numpy as np
        from tessera_runtime.executor.cpu.executor import open_cpu_executor
        from tessera_runtime.executor.interface import StepBatch
        folder = Path(sys.argv[1])
        program = json.loads((folder / "program.json").read_text())
        raw = np.zeros(80, np.float32)
        weights = {"bias": raw[-raw.ctypes.data % 64 // 4:][:64]}
        executor = open_cpu_executor(program, folder, weights, 3)
        executor.allocate_cache(1)
        one = np.zeros(1, np.int32)
        print(executor.step(StepBatch(one, one, one, one[None], one)).shape)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
    )
    assert (done.returncode, done.stdout.strip()) == (0, "(1, 16)"), done.stderr


def _wait_until_parked(executor, workers: int) -> None:
    """Fails if the workers have not parked after some seconds; on an idle machine it takes some milliseconds."""
    deadline = time.monotonic() + 5
    fields = executor._context._fields
    while time.monotonic() < deadline:
        if all(fields[(512 + 64 * worker) // 8] for worker in range(1, workers + 1)):
            return
        time.sleep(0.0005)
    pytest.fail("workers go on spinning although there is nothing to do")
