"""When cores are left to other processes, and when they are taken back."""

from __future__ import annotations

import numpy as np
import pytest

from tessera_runtime.executor.cpu.disturbance import FIRST_REST, WINDOW, CoreWatch, waited_seconds


class Machine:
    """A clock, and threads that wait for their cores a part of the time."""

    def __init__(self, cores: list[int]) -> None:
        self.now = 0.0
        self.share = dict.fromkeys(range(len(cores)), 0.0)
        self.waits = dict.fromkeys(range(len(cores)), 0.0)
        self.watch = CoreWatch(cores, lambda thread: self.waits[thread], lambda: self.now)

    def run(self, seconds: float, step: float = 0.003) -> list[list[int]]:
        """The changes that the watch asks for meanwhile."""
        changes = []
        for _ in range(round(seconds / step)):
            self.now += step
            for thread, share in self.share.items():
                self.waits[thread] += share * step
            change = self.watch.look(list(self.share))
            if change is not None:
                changes.append(change)
        return changes


def test_a_core_that_is_taken_half_of_the_time_is_left() -> None:
    machine = Machine([4, 7])
    assert machine.run(1.0) == []
    machine.share[1] = 0.5
    assert machine.run(4 * WINDOW) == [[4]]


def test_it_is_taken_back_and_left_again_for_longer() -> None:
    machine = Machine([4, 7])
    machine.share[0] = 0.6
    first = machine.run(4 * WINDOW)
    assert first == [[7]]
    assert machine.run(FIRST_REST + 4 * WINDOW) == [[4, 7], [7]]
    assert machine.run(FIRST_REST) == []
    machine.share[0] = 0.0
    assert machine.run(3.0) == [[4, 7]]


@pytest.mark.parametrize("shares", [(0.3, 0.3), (0.6, 0.6), (0.0, 0.35)])
def test_others_that_pause_or_are_everywhere_change_nothing(shares: tuple[float, float]) -> None:
    machine = Machine([0, 1])
    machine.share = dict(enumerate(shares))
    assert machine.run(1.0) == []


def test_one_bad_moment_changes_nothing() -> None:
    machine = Machine([0, 1])
    for _ in range(5):
        machine.run(3 * WINDOW)
        machine.share[1] = 1.0
        assert machine.run(0.9 * WINDOW) == []
        machine.share[1] = 0.0


def test_steps_far_apart_are_not_judged() -> None:
    machine = Machine([0, 1])
    machine.share[1] = 0.9
    assert machine.run(5.0, step=5 * WINDOW) == []


def test_a_kernel_that_does_not_say_is_asked_in_vain() -> None:
    assert CoreWatch([0, 1], lambda _: None).look([1, 2]) is None
    assert waited_seconds(-1) is None


def test_steps_on_fewer_threads_and_back_are_right(open_toy, batch_of, expect, toy_weights) -> None:
    executor = open_toy(3)
    batches = [batch_of(tokens) for tokens in (1, 5, 16)]
    wanted = [expect(batch, toy_weights["bias"]) for batch in batches]
    cores = [0, 0, 0]
    crew = executor._pool._crew
    for number in range(600):
        if number % 4 == 0:
            assert crew.gather(cores[: 1 + number // 4 % 3])
        np.testing.assert_array_equal(executor.step(batches[number % 3]), wanted[number % 3])
