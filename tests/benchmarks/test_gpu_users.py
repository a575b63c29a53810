"""Drawing, prompts beside answers, and decoding of several users, measured on a device that is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from toy_device import toy_model, toy_on_a_clock

from benchmarks import gpu_mixed, gpu_quantized
from benchmarks.gpu_measure import Bounds
from benchmarks.gpu_mixed import Mix, mixed_batch, time_mixed
from benchmarks.gpu_quantized import time_users
from benchmarks.gpu_sampling import WAYS, time_sampling
from tessera_runtime.errors import StepInvalid
from tessera_runtime.executor.drawing import GREEDY, LOGPROBS, PENALTIES, idle_draws
from tessera_runtime.executor.gpu.executor import GpuExecutor
from tessera_runtime.executor.interface import StepBatch

MIX = Mix(users=2, context=6, prompt=11, chunk=4, rounds=2, quiet=3)


@pytest.mark.parametrize("users", [1, 3])
def test_ways_of_drawing_are_compared_with_the_greedy_one(users: int, tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    executor, driver = toy_on_a_clock(model)
    executor.allocate_cache(600)
    executor.allocate_seats(4)
    found = {each.label: each for each in time_sampling(model, executor, users, 8, 1, rounds=2, repeats=3)}
    greedy = found.pop("greedy")
    assert greedy.beyond == 0 and greedy.step > 0 and greedy.left is None
    # Rows are padded to what graphs are recorded for, and a row that is drawn in another way takes four more.
    rows = 1 << (users - 1).bit_length()
    for each in found.values():
        assert each.beyond == pytest.approx(4e-6 * rows)
    assert found["temperature 0.8"].left == 40
    assert 1 <= found["temperature 0.1, top_p 0.95"].left < found["temperature 0.8, top_p 0.95"].left < 40  # type: ignore[operator]
    assert found["greedy, with 5 logprobs"].left is None
    assert {"draw", "draw_greedy"} <= set(driver.launches)
    executor.close()


def test_draws_say_how_they_are_drawn() -> None:
    ways = {way.label: way for way in WAYS}
    assert [way.label for way in WAYS if way.form == "greedy"] == ["greedy"]
    draws = ways["temperature 0.8, top_p 0.95"].draws(3, 1)
    assert draws["seat"].tolist() == [0, 1, 2] and not draws["flags"].any()
    assert np.unique(draws["uniform"]).size == 3
    np.testing.assert_allclose(draws["temperature"], 0.8)
    np.testing.assert_allclose(draws["top_p"], 0.95)
    assert ways["temperature 0.8, top_k 50"].draws(1, 1)["top_k"] == 50
    penalized = ways["greedy, with penalties"].draws(1, 1)
    assert penalized["flags"] == GREEDY | PENALTIES and penalized["repetition_penalty"] > 1
    reported = ways["greedy, with 5 logprobs"].draws(1, 1)
    assert reported["flags"] == GREEDY | LOGPROBS and reported["top"] == 5


def test_a_step_is_timed_with_draws_that_fit_it(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    executor, _ = toy_on_a_clock(model)
    executor.allocate_cache(600)
    executor.allocate_seats(2)
    batch = mixed_batch(model, MIX, 8, None)
    for draws in (idle_draws(1), np.full(2, WAYS[0].draws(3, 1)[2:])):
        with pytest.raises(StepInvalid, match="draws"):
            executor.time_step(batch, "greedy", draws=draws)
    executor.close()


def test_chunks_of_a_prompt_are_told_from_steps_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model(tmp_path)
    executor, driver = toy_on_a_clock(model)
    monkeypatch.setattr(gpu_mixed, "time", SimpleNamespace(perf_counter=lambda: driver.clock))
    found = time_mixed(model, executor, 1, MIX)
    assert len(found.carrying) == len(found.device_carrying) == 3
    # The engine's steps take what the same steps take that were put together for the device alone.
    assert found.alone == pytest.approx(found.device_alone)
    assert found.carrying == pytest.approx(found.device_carrying)
    assert found.times == pytest.approx(max(found.carrying) / found.alone) and found.times > 2
    # A step is queued before the one before it is read, so one without the prompt may come first.
    assert sum(found.carrying) <= found.first_token + 1e-9 <= sum(found.carrying) + 2 * found.alone + 2e-9
    for name in ("submit", "collect", "step"):
        assert getattr(executor, name) == getattr(GpuExecutor, name).__get__(executor), "still watched"
    executor.step(mixed_batch(model, MIX, 8, None))
    executor.close()


def test_steps_put_together_by_hand_are_those_of_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model(tmp_path)
    executor, _ = toy_on_a_clock(model)
    submit, batches = executor.submit, []

    def noting_submit(batch: StepBatch, draws: Any) -> int:
        batches.append(batch)
        return submit(batch, draws)

    monkeypatch.setattr(executor, "submit", noting_submit)
    time_mixed(model, executor, 1, MIX)
    theirs = [batch for batch in batches if len(batch.token_ids) > MIX.users][-MIX.chunks :]
    for start, engine in zip((0, 4, 8), theirs, strict=True):
        mine = mixed_batch(model, MIX, 31, start)
        for name in ("sequences", "logit_rows"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(engine, name))
        np.testing.assert_array_equal(mine.positions[MIX.users :], engine.positions[MIX.users :])
        assert mine.block_tables.shape[0] == engine.block_tables.shape[0]
        own = [row[: 31 // 4 + 1] for row in mine.block_tables[: MIX.users]] + [mine.block_tables[-1, :3]]
        assert np.unique(np.concatenate(own)).size == 2 * 8 + 3, "somebody shares a block"
    executor.close()


def test_a_program_that_leaves_the_drawing_to_the_host_is_measured_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model(tmp_path)
    model.program.drawing.clear()
    executor, driver = toy_on_a_clock(model)
    monkeypatch.setattr(gpu_mixed, "time", SimpleNamespace(perf_counter=lambda: driver.clock))
    found = time_mixed(model, executor, 1, MIX)
    assert found.carrying == pytest.approx(found.device_carrying)
    with pytest.raises(RuntimeError, match="leaves the drawing to the host"):
        time_sampling(model, executor, 1, 8, 1)
    executor.close()


def test_answers_that_are_too_short_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mix, "answer", 9)
    model = toy_model(tmp_path)
    executor, _ = toy_on_a_clock(model)
    with pytest.raises(RuntimeError, match="all answers ended before the last prompt was done"):
        time_mixed(model, executor, 1, MIX)


def test_what_users_read_stands_beside_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model(tmp_path)
    opened: list[Any] = []

    def open_model(_model: Any, _seed: int, blocks: int, seats: int) -> Any:
        executor, _ = toy_on_a_clock(model)
        executor.allocate_cache(blocks)
        executor.allocate_seats(seats)
        opened.append(executor)
        return executor

    monkeypatch.setattr(gpu_quantized, "open_model", open_model)
    monkeypatch.setattr(gpu_quantized, "STEPS", {1: 3, 3: 2})
    monkeypatch.setattr(gpu_quantized, "CONTEXT", 8)
    monkeypatch.setattr("benchmarks.gpu_measure.CONTEXT", 8)
    found = time_users(model, Bounds(1e9, 1e3), 1)
    # 256 bytes hold four positions; the toy's only weight is looked up.
    assert {users: each.bytes for users, each in found.items()} == {1: 8 * 64, 3: 3 * 8 * 64}
    assert all(each.bound == each.bytes / 1e9 and each.wall > 0 for each in found.values())
    assert found[3].device > found[1].device > 0
    with pytest.raises(Exception, match="open executor"):
        opened[0].step(mixed_batch(model, MIX, 8, None))
