"""The executor that CUDA and HIP share, on a driver that forgives nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_driver import FakeDriver, Misuse
from hash_executor import HashExecutor
from toy_program import ToyWeights, toy_driver, toy_executor, toy_program, write_code

from tessera_runtime.engine.cache_plan import plan_for
from tessera_runtime.engine.settings import EngineSettings
from tessera_runtime.errors import (
    CacheNotAllocated,
    DeviceLost,
    DeviceMemoryTooSmall,
    DigestMismatch,
    DriverTooOld,
    FileMissing,
    FileTruncated,
    StepInvalid,
    WeightsInvalid,
)
from tessera_runtime.executor.drawing import DRAW, GREEDY, DrawingExecutor, idle_draws
from tessera_runtime.executor.gpu.executor import GpuExecutor
from tessera_runtime.executor.gpu.program import read_program
from tessera_runtime.executor.interface import StepBatch

BLOCKS = 60


def batch_of(parts: list[tuple[int, list[int], list[int]]], every_row: bool = False) -> StepBatch:
    """A step of `(first position, tokens, blocks)`."""
    ids = [token for _, tokens, _ in parts for token in tokens]
    positions = [start + index for start, tokens, _ in parts for index in range(len(tokens))]
    sequences = [row for row, (_, tokens, _) in enumerate(parts) for _ in tokens]
    width = max(len(blocks) for _, _, blocks in parts)
    tables = np.full((len(parts), width), 2**30, np.int32)  # entries past the end may hold anything
    for row, (_, _, blocks) in enumerate(parts):
        tables[row, : len(blocks)] = blocks
    ends = np.cumsum([len(tokens) for _, tokens, _ in parts]) - 1
    rows = np.arange(len(ids)) if every_row else ends
    return StepBatch(
        np.array(ids, np.int32),
        np.array(positions, np.int32),
        np.array(sequences, np.int32),
        tables,
        rows.astype(np.int32),
    )


def opened(folder: Path, **limits: int) -> tuple[GpuExecutor, FakeDriver, HashExecutor]:
    executor, driver = toy_executor(folder, **limits)
    oracle = HashExecutor()
    for each in (executor, oracle):
        each.allocate_cache(BLOCKS)
    return executor, driver, oracle


def greedy(seats: list[int]) -> np.ndarray[Any, np.dtype[Any]]:
    draws = idle_draws(len(seats))
    draws["seat"] = seats
    return draws


def test_draws_are_laid_out_as_the_specification_says() -> None:
    assert DRAW.itemsize == 64
    assert [DRAW.fields[name][1] // 4 for name in ("seat", "flags", "top_p", "biases", "uniform", "top")] == [
        *(0, 1, 4, 9, 10, 12)
    ]


def test_logits_are_those_of_the_program_whatever_the_step(tmp_path: Path) -> None:
    executor, driver, oracle = opened(tmp_path)
    random = np.random.default_rng(0)
    sequences: list[list[int]] = [[] for _ in range(5)]
    blocks = np.split(random.permutation(BLOCKS), 5)
    for _ in range(60):
        parts, room = [], 16
        for tokens, mine in zip(sequences, blocks, strict=True):
            count = min(int(random.choice([0, 1, 1, 2, 7, 9])), room, 47 - len(tokens))
            if count < 1:
                continue
            new = random.integers(0, 40, count).tolist()
            new = [t if t != 39 else 38 for t in new]
            used = -(-(len(tokens) + count) // 4)
            parts.append((len(tokens), new, mine[:used].tolist()))
            tokens += new
            room -= count
        if parts:
            batch = batch_of(parts, bool(random.integers(0, 2)))
            np.testing.assert_array_equal(executor.step(batch), oracle.step(batch))
    assert driver.graph_launches > 2, "sizes that came again should run from graphs"
    executor.close()
    assert driver.left_over() == {} and driver.closed


def test_the_same_step_gives_the_same_bits_directly_and_from_a_graph(tmp_path: Path) -> None:
    executor, driver, _ = opened(tmp_path)
    batch = batch_of([(0, [1, 2, 3, 4, 5, 6, 7], [5, 9]), (0, [8], [3])])
    results = [executor.step(batch) for _ in range(4)]
    assert executor.recorded_graphs == 1 and driver.graph_launches == 3
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    executor.close()


def test_steps_are_queued_before_their_tokens_are_known(tmp_path: Path) -> None:
    executor, driver, oracle = opened(tmp_path)
    executor.allocate_seats(4)
    prompts = {2: [1, 2, 3], 0: [7, 8, 9, 10, 11]}
    places = {2: [4, 8, 15], 0: [16, 23, 42]}
    first = batch_of([(0, tokens, places[seat][:2]) for seat, tokens in prompts.items()])
    tickets = [executor.submit(first, greedy(list(prompts)))]
    for step in range(6):
        parts = [(len(tokens) + step, [-1 - seat], places[seat]) for seat, tokens in prompts.items()]
        tickets.append(executor.submit(batch_of(parts), greedy(list(prompts))))
        drawn = executor.collect(tickets.pop(0)).ids.tolist()
        if step == 0:
            before = oracle.step(first).argmax(axis=1).tolist()
        else:
            known = [
                (len(t) + step - 1, [token], places[s]) for (s, t), token in zip(prompts.items(), before, strict=True)
            ]
            before = oracle.step(batch_of(known)).argmax(axis=1).tolist()
        assert drawn == before
    executor.collect(tickets.pop())
    assert driver.graph_launches >= 6, "decoding steps are recorded before the first comes"
    executor.close()
    assert driver.left_over() == {}


def test_two_steps_at_most_are_in_flight(tmp_path: Path) -> None:
    executor, _, _ = opened(tmp_path)
    executor.allocate_seats(2)
    batch = batch_of([(0, [1], [0])])
    tickets = [executor.submit(batch, greedy([0])) for _ in range(2)]
    with pytest.raises(StepInvalid, match="2 steps are in flight"):
        executor.submit(batch, greedy([0]))
    with pytest.raises(StepInvalid, match="in flight"):
        executor.step(batch)
    for ticket in tickets:
        executor.collect(ticket)
    with pytest.raises(StepInvalid, match="no step with the ticket"):
        executor.collect(tickets[0])
    executor.close()


def test_drawing_is_checked(tmp_path: Path) -> None:
    executor, _, _ = opened(tmp_path)
    executor.allocate_seats(2)
    batch = batch_of([(0, [1], [0])])
    assert isinstance(executor, DrawingExecutor)
    with pytest.raises(StepInvalid, match="seats of a step"):
        executor.submit(batch, greedy([2]))
    with pytest.raises(StepInvalid, match="1 rows of logits has 2 draws"):
        executor.submit(batch, greedy([0, 1]))
    with pytest.raises(StepInvalid, match="-2 to 39"):
        executor.submit(batch_of([(0, [-3], [0])]), greedy([0]))
    with pytest.raises(StepInvalid, match="no seat 2"):
        executor.set_bitmask(2, np.zeros(2, np.int32))
    executor.close()


def test_a_bitmask_is_obeyed_and_never_queued_behind_another_step(tmp_path: Path) -> None:
    executor, _, oracle = opened(tmp_path)
    executor.allocate_seats(2)
    batch = batch_of([(0, [1, 2], [0])])
    best = int(oracle.step(batch)[0].argmax())
    words = np.full(2, -1, np.int32)
    words.view(np.uint32)[best // 32] &= ~np.uint32(1 << (best % 32))
    executor.set_bitmask(1, words)
    draws = greedy([1])
    draws["flags"] |= 8
    drawn = executor.collect(executor.submit(batch, draws)).ids
    assert drawn[0] == np.argsort(oracle.step(batch)[0])[-2]
    ticket = executor.submit(batch, greedy([0]))
    with pytest.raises(StepInvalid, match="depends on the token before"):
        executor.submit(batch, draws)
    executor.collect(ticket)
    executor.close()


def test_logits_that_are_not_numbers_draw_nothing(tmp_path: Path) -> None:
    executor, _, _ = opened(tmp_path)
    executor.allocate_seats(2)
    batch = batch_of([(0, [39, 39], [0]), (0, [1], [1])])
    ids = executor.collect(executor.submit(batch, greedy([0, 1]))).ids
    assert ids[0] == -1 and ids[1] >= 0
    executor.close()


def test_memory_that_moves_is_used_at_its_new_place(tmp_path: Path) -> None:
    executor, driver, oracle = opened(tmp_path)
    batch = batch_of([(0, [5, 6, 7], [11])])
    for blocks in (BLOCKS, 2 * BLOCKS):
        executor.allocate_cache(blocks)
        for _ in range(3):
            np.testing.assert_array_equal(executor.step(batch), oracle.step(batch))
    executor.close()
    assert driver.left_over() == {}


def test_layers_can_be_read(tmp_path: Path) -> None:
    executor, _, oracle = opened(tmp_path)
    batch = batch_of([(0, [5, 6, 7], [11])])
    ((path, values),) = executor.trace(batch)
    assert path == "head"
    np.testing.assert_array_equal(values, oracle.step(batch))
    executor.close()


def test_the_device_says_what_a_step_takes(tmp_path: Path) -> None:
    executor, driver, oracle = opened(tmp_path)
    batch = batch_of([(0, [5, 6, 7], [11]), (0, [1], [2])])
    assert executor.time_step(batch, repeats=4) == pytest.approx(0.001 / 4)
    times = executor.time_launches(batch, repeats=2)
    assert [each.group for each in times] == ["embed", "cache_write", "attend_singles", "attend_tiles", "head"]
    assert times[0].layer == "embed" and times[0].seconds == pytest.approx(0.001 / 6)
    np.testing.assert_array_equal(executor.step(batch), oracle.step(batch))
    executor.close()
    assert driver.left_over() == {}


def test_a_step_needs_a_cache(tmp_path: Path) -> None:
    executor, _ = toy_executor(tmp_path)
    with pytest.raises(CacheNotAllocated):
        executor.step(batch_of([(0, [1], [0])]))
    executor.close()


def test_kernels_are_loaded_when_they_are_needed(tmp_path: Path) -> None:
    executor, driver, _ = opened(tmp_path)
    executor.step(batch_of([(0, [1], [0])]))
    assert len(driver.loaded) == 1
    executor.allocate_seats(1)
    executor.collect(executor.submit(batch_of([(0, [1], [0])]), greedy([0])))
    assert len(driver.loaded) == 2
    executor.close()


def test_too_little_memory_is_said_with_figures(tmp_path: Path) -> None:
    program = read_program(toy_program())
    driver = toy_driver(program, capacity=40_000)
    executor, _ = toy_executor(tmp_path, driver)
    with pytest.raises(DeviceMemoryTooSmall, match=r"The KV cache takes 256256 bytes, and fake has \d+ of its 40000"):
        executor.allocate_cache(1000)
    executor.allocate_cache(8)
    assert executor.step(batch_of([(0, [1], [0])])).shape == (1, 40)
    executor.close()
    with pytest.raises(DeviceMemoryTooSmall, match="The package's weights take"):
        toy_executor(tmp_path, toy_driver(program, capacity=32))
    small, _ = toy_executor(tmp_path, toy_driver(program, capacity=3_000))
    with pytest.raises(
        DeviceMemoryTooSmall, match="largest step leave 0 bytes .* to the KV cache, and one block of it"
    ):
        plan_for(EngineSettings(), small)
    small.close()


def test_what_a_failed_start_took_is_given_back(tmp_path: Path) -> None:
    class Unreadable(ToyWeights):
        def read_into(self, target: Any, name: str, start: int) -> None:
            raise FileTruncated("the file ended")

    raw = toy_program()
    program = read_program(raw)
    with pytest.raises(FileMissing, match="cannot be read: No such file"):
        GpuExecutor(toy_driver(program), program, tmp_path, Unreadable())
    write_code(tmp_path, raw)
    driver = toy_driver(program)
    with pytest.raises(FileTruncated):
        GpuExecutor(driver, program, tmp_path, Unreadable())
    assert driver.closed and driver.memory.held == 0


def test_a_step_runs_where_no_memory_is_left_for_its_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, driver, oracle = opened(tmp_path)
    batch = batch_of([(0, [1, 2], [3])])
    end, launch = driver.end_capture, driver.launch

    def no_memory(*_: Any) -> Any:
        raise DeviceMemoryTooSmall("taken by another process")

    def no_graph(stream: int) -> int:
        driver.destroy_graph(end(stream))
        return no_memory()

    def no_launch(prepared: Any, parameters: int, stream: int) -> None:
        recording = driver._streams[stream].recording is not None
        (no_memory if recording else launch)(prepared, parameters, stream)

    for name, failing in (("end_capture", no_graph), ("launch", no_launch)):
        with monkeypatch.context() as patch:
            patch.setattr(driver, name, failing)
            for _ in range(3):
                np.testing.assert_array_equal(executor.step(batch), oracle.step(batch))
        assert executor.recorded_graphs == 0
    np.testing.assert_array_equal(executor.step(batch), oracle.step(batch))
    assert executor.recorded_graphs == 1
    executor.close()
    assert driver.left_over() == {}


def test_a_driver_too_old_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    driver = toy_driver(read_program(toy_program()))
    driver.too_old = True
    with pytest.raises(DriverTooOld, match="version 12.0"):
        toy_executor(tmp_path, driver)
    assert driver.closed and driver.memory.held == 0


def test_ptx_is_the_way_out_where_there_is_some(tmp_path: Path) -> None:
    raw = toy_program()
    write_code(tmp_path, raw)
    for index in range(2):
        cubin = raw["modules"][index]
        (tmp_path / cubin["file"].replace("cubin", "ptx")).write_bytes((tmp_path / cubin["file"]).read_bytes())
        raw["modules"].append({**cubin, "file": cubin["file"].replace("cubin", "ptx"), "kind": "ptx"})
        cubin["fallback"] = 2 + index
        (tmp_path / cubin["file"]).write_bytes(b"[]")  # nothing may read it
    program = read_program(raw)
    executor = GpuExecutor(toy_driver(program), program, tmp_path, ToyWeights(), compile_at_load=True)
    executor.allocate_cache(4)
    assert executor.step(batch_of([(0, [1], [0])])).shape == (1, 40)
    executor.close()


def test_code_that_was_altered_is_not_run(tmp_path: Path) -> None:
    raw = toy_program()
    write_code(tmp_path, raw)
    for file in tmp_path.glob("*.cubin"):
        file.write_bytes(file.read_bytes() + b" ")
    program = read_program(raw)
    with pytest.raises(DigestMismatch, match="was altered"):
        GpuExecutor(toy_driver(program), program, tmp_path, ToyWeights())


def test_a_device_that_is_lost_in_a_step_is_one_error_and_closes_quietly(tmp_path: Path) -> None:
    executor, driver, _ = opened(tmp_path)
    driver.lose_after = 2
    for _ in range(2):
        with pytest.raises(DeviceLost, match="fell off the bus"):
            executor.step(batch_of([(0, [1], [0])]))
    executor.close()
    assert driver.closed


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    raw = toy_program()
    raw["weights"][0]["bytes"] = 128
    write_code(tmp_path, raw)
    program = read_program(raw)
    driver = toy_driver(program)
    with pytest.raises(WeightsInvalid, match="needs 128 bytes of the tensor 'scale', and the package has 64"):
        GpuExecutor(driver, program, tmp_path, ToyWeights())
    assert driver.closed


def test_weights_arrive_whole_through_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tessera_runtime.executor.gpu import weights

    monkeypatch.setattr(weights, "PIECE", 1000)
    monkeypatch.setattr(weights, "BUFFERS", 3)
    driver = FakeDriver({})
    random = np.random.default_rng(1)
    tensors = {f"w{n}": random.integers(0, 256, size, np.uint8) for n, size in enumerate((1, 999, 1000, 25_001, 0, 64))}

    class Source:
        def size(self, name: str) -> int:
            return len(tensors[name])

        def read_into(self, target: Any, name: str, start: int) -> None:
            target[:] = tensors[name][start : start + len(target)]

    described = [weights.Weight(name, len(values)) for name, values in tensors.items()]
    offsets, total = weights.weight_offsets(described)
    base = driver.allocate(total)
    addresses = weights.load_weights(driver, described, Source(), base)
    assert [address - base for address in addresses] == offsets and all(offset % 256 == 0 for offset in offsets)
    for address, values in zip(addresses, tensors.values(), strict=True):
        if len(values):
            np.testing.assert_array_equal(driver.memory.view(address, len(values), "weight"), values)
    assert set(driver.left_over()) == {"bytes"}


def test_the_fake_driver_sees_mistakes() -> None:
    driver = FakeDriver({})
    stream = driver.create_stream()
    address = driver.allocate(256)
    pinned = driver.allocate_pinned(256)
    driver.copy_in(address, pinned, stream)
    pinned[0] ^= 1
    with pytest.raises(Misuse, match="changed before it was copied"):
        driver.synchronize(stream)
    with pytest.raises(Misuse, match="not pinned"):
        driver.copy_in(address, np.zeros(8, np.uint8), stream)
    driver.copy_out(pinned, address, stream)
    assert set(pinned.tolist()) == {0xCD}, "nothing is there before somebody waits"
    with pytest.raises(Misuse, match="while something is queued"):
        driver.free(address)
    driver.synchronize(stream)
    assert set(pinned.tolist()) == {0xA5}
    driver.fill(address, 257, 0, stream)
    with pytest.raises(Misuse, match="1 bytes past an allocation"):
        driver.synchronize(stream)
    driver.free(address)
    driver.fill(address, 1, 0, stream)
    with pytest.raises(Misuse, match="was freed"):
        driver.synchronize(stream)
    driver.begin_capture(stream)
    with pytest.raises(Misuse, match="while a graph is recorded"):
        driver.synchronize(stream)


def test_greedy_draws_are_told_from_others() -> None:
    assert (idle_draws(3)["flags"] == GREEDY).all() and (idle_draws(3)["seat"] == -1).all()
