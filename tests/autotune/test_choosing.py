"""From times to blockings and their boundaries."""

from __future__ import annotations

from tessera_compiler.autotune.candidates import MOST_LOGIT_ROWS, candidates, points_of
from tessera_compiler.autotune.choosing import choose, chosen_at
from tessera_compiler.schedule.passes.plan_tiles import Blocking, default_blocking

ONE, FOUR, EIGHT = Blocking(0, 1, 4), Blocking(0, 4, 2), Blocking(0, 8, 2)


def test_each_stretch_gets_its_best() -> None:
    times = {
        1: {ONE: 1.0},
        2: {ONE: 1.0, FOUR: 2.0},
        4: {ONE: 3.0, FOUR: 2.0},
        64: {ONE: 64.0, FOUR: 32.0, EIGHT: 16.0},
    }
    assert choose(times) == (Blocking(2, 1, 4), Blocking(4, 4, 2), Blocking(0, 8, 2))


def test_a_boundary_must_pay() -> None:
    assert choose({1: {ONE: 1.0}, 4: {ONE: 1.03, FOUR: 1.0}}) == (ONE,)


def test_noise_does_not_beat_a_default() -> None:
    times = {1: {ONE: 1.01, FOUR: 1.0}}
    assert choose(times) == (FOUR,)
    assert choose(times, [Blocking(7, 1, 4)]) == (ONE,)


def test_what_was_not_measured_at_a_point_does_not_serve_it() -> None:
    assert choose({1: {ONE: 1.0}, 2: {FOUR: 1.0}}) == (Blocking(1, 1, 4), FOUR)


def test_which_runs() -> None:
    blockings = (Blocking(1, 1, 4), Blocking(4, 4, 2), Blocking(0, 8, 2))
    assert [chosen_at(blockings, rows).rows for rows in (1, 2, 4, 5, 999)] == [1, 4, 4, 8, 8]


def test_candidates_are_few_and_allowed() -> None:
    for cpu_class in ("x86-64-v4", "x86-64-v3", "aarch64"):
        for element in ("f32", "bf16", "u8", "u4"):
            for panels, together in ((36, 1), (3072, 1), (96, 4), (7, 1)):
                defaults = {(b.rows, b.panels) for b in default_blocking(cpu_class, element, panels, together)}
                for point in points_of("T"):
                    found = candidates(cpu_class, element, panels, together, point)
                    assert 1 <= len(found) == len(set(found)) <= 24
                    assert all(b.max_tokens == 0 for b in found)
                    assert all(panels % b.panels == 0 and b.panels % together == 0 for b in found)
                assert defaults & {(b.rows, b.panels) for b in found}


def test_points_of_logits_are_no_more_than_sequences() -> None:
    assert max(points_of("L")) == MOST_LOGIT_ROWS and max(points_of("T")) == 512
    assert points_of("L")[0] == 1
