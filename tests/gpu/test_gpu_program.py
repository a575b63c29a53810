"""Programs of GPU targets: what is read, what is refused, and that a whole one can be replayed."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_driver import Misuse
from replay import Mismatch, replay
from toy_program import toy_program, write_code

from tessera_pack.memory_plan import memory_plan
from tessera_runtime.errors import AbiMismatch, ProgramInvalid, TesseraError
from tessera_runtime.executor.gpu.arena_check import check_arena, sizes_to_try
from tessera_runtime.executor.gpu.binding import LaunchBinder
from tessera_runtime.executor.gpu.grid import StepSizes, evaluate_grid, parse_entry
from tessera_runtime.executor.gpu.program import GpuProgram, read_program
from tessera_runtime.package.gpu_program_check import gpu_checks
from tessera_runtime.package.memory_check import check_device_memory

SIZES = StepSizes(8, 3, 4, 4, 2, 1, 1)


def test_a_program_can_be_replayed_at_every_size() -> None:
    program = read_program(toy_program())
    for sizes in sizes_to_try(program):
        for form in ("logits", "greedy", "full"):
            replay(program, sizes, form)
    assert replay(program, SIZES, "full") == 6
    assert replay(program, StepSizes(2, 2, 3, 1, 0, 2, 1), "greedy") == 5, "without tiles, nothing is launched for them"


def test_the_arena_of_a_sound_program_is_sound() -> None:
    assert check_arena(read_program(toy_program())) == "4 buffers in 128 bytes per token"


def overlap(raw: dict[str, Any]) -> None:
    raw["buffers"][1]["offset"]["tokens"] = 0


def leave(raw: dict[str, Any]) -> None:
    raw["buffers"][3]["offset"]["tokens"] = 192


def read_early(raw: dict[str, Any]) -> None:
    raw["launches"].reverse()


@pytest.mark.parametrize(
    ("change", "message"),
    [(overlap, "alive together"), (leave, "leaves the arena"), (read_early, "which nothing has written")],
)
def test_launches_that_harm_each_other_are_found(change: Callable[[dict[str, Any]], None], message: str) -> None:
    raw = toy_program()
    change(raw)
    program = read_program(raw)
    with pytest.raises(ProgramInvalid, match=message):
        check_arena(program)
    with pytest.raises((Mismatch, Misuse)):
        replay(program, SIZES)


def test_the_replay_finds_parameters_in_the_wrong_place(monkeypatch: pytest.MonkeyPatch) -> None:
    program = read_program(toy_program())
    correct = LaunchBinder._value

    def shifted(self: LaunchBinder, argument: Any, *rest: Any) -> int:
        return correct(self, argument, *rest) + (64 if argument.kind == "weight" else 0)

    monkeypatch.setattr(LaunchBinder, "_value", shifted)
    with pytest.raises(Mismatch, match="for weight:0"):
        replay(program, SIZES)


def test_the_replay_finds_blocks_and_grids_that_no_device_takes() -> None:
    raw = toy_program()
    raw["kernels"]["head"]["warps"] = 33
    with pytest.raises(Misuse, match="1056 threads"):
        replay(read_program(raw), SIZES)
    raw = toy_program()
    raw["groups"]["head"]["variants"][0]["grid"] = [1, "L*65536"]
    with pytest.raises(ProgramInvalid, match="65535 is the most"):
        replay(read_program(raw), SIZES)


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    *keys, last, value = path

    def change(raw: dict[str, Any]) -> None:
        place: Any = raw
        for key in keys:
            place = place[key]
        place[last] = value

    return change


REFUSED: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (_set("launches", 0, "args", ["input:token_ids"]), "has 1 arguments, and the kernel 'embed' takes 5"),
    (_set("launches", 0, "args", 3, "size:T"), "argument 3 of 'embed', which is of kind pointer"),
    (_set("launches", 0, "args", 4, "weight:0"), "argument 4 of 'embed', which is of kind i32"),
    (_set("launches", 0, "args", 2, "weight:1"), "names weight 1; there are 1"),
    (_set("launches", 0, "args", 0, "input:slots"), "names nothing that programs have"),
    (_set("launches", 0, "group", "other"), "names a group that the program does not have"),
    (_set("launches", 0, "writes", [1]), "writes and updates buffers that it does not name"),
    (_set("groups", "head", "variants", []), "a last variant without limits"),
    (_set("groups", "head", "variants", 0, "limits", {"T": 4}), "a last variant without limits"),
    (_set("groups", "head", "variants", 0, "kernel", "nobody"), "'nobody', which is no kernel"),
    (_set("groups", "head", "variants", 0, "grid", ["T/0"]), "the grid entry 'T/0'"),
    (_set("groups", "head", "variants", 0, "grid", ["Z*2"]), "the grid entry 'Z*2'"),
    (_set("kernels", "head", "parameters", ["f64"]), "a parameter 'f64'"),
    (_set("kernels", "head", "module", 7), "in module 7, which does not exist"),
    (_set("modules", 0, "file", "../evil.cubin"), "named after its digest"),
    (_set("modules", 0, "fallback", 1), "falls back on 1, which is no module of PTX"),
    (_set("buffers", 0, "row_bytes", 100), "a multiple of 64"),
    (_set("buffers", 0, "rows", "S"), "rows T, L or a number"),
    (_set("cache", "chunk_tokens", 6), "a multiple of 4"),
    (_set("output", 9), "`output` names buffer 9"),
    (_set("output", 0), "`output` should be a float32 buffer"),
    (_set("seats", []), "names the seat memory 'feedback'"),
    (_set("warp_size", 16), "one of [32, 64]"),
    (_set("limits", None), "an object under 'limits'"),
    (_set("graph_tokens", None), "cannot be read"),
]


def test_a_program_of_another_abi_is_refused() -> None:
    with pytest.raises(AbiMismatch, match=r"of ABI 1, and this runtime reads 2 for GPUs\. Pack the model again"):
        read_program({**toy_program(), "abi": 1})


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_a_program_that_does_not_hang_together_is_refused(
    change: Callable[[dict[str, Any]], None], message: str
) -> None:
    raw = toy_program()
    change(raw)
    with pytest.raises(ProgramInvalid, match=re.escape(message)):
        read_program(raw)


def test_grids_are_products_of_sizes() -> None:
    sizes = StepSizes(100, 3, 4, 5, 6, 7, 2).by_symbol()
    entries = tuple(parse_entry(entry, "here") for entry in (7, "T/64*12", "D*C"))
    assert evaluate_grid(entries, sizes, "here") == (7, 24, 14)


def test_verification_runs_without_a_device(tmp_path: Path) -> None:
    raw = toy_program()
    write_code(tmp_path, raw)

    class Entry:
        size = 64

    def results(raw: dict[str, Any]) -> dict[str, str]:
        found = {}
        for name, check in gpu_checks(raw, lambda: {"scale": Entry()}, lambda n: (tmp_path / n).read_bytes()).items():  # type: ignore[dict-item]
            try:
                found[name] = check()
            except TesseraError as error:
                found[name] = str(error)
        return found

    assert results(raw) == {
        "weights": "1 tensors, 64 bytes",
        "launches": "5 launches of 7 kernels",
        "arena": "4 buffers in 128 bytes per token",
        "cache": "1 layers, 256 bytes for 4 positions",
        "code objects": "2 code objects, 89 bytes",
    }
    broken = copy.deepcopy(raw)
    broken["weights"][0]["bytes"] = 32
    broken["cache"]["layers"][0]["value_offset"] = 0
    broken["modules"][0]["bytes"] += 1
    broken["kernels"]["idle"] = broken["kernels"]["head"]
    assert {name for name, text in results(raw).items() if text != results(broken)[name]} == {
        *("weights", "cache", "code objects", "launches")
    }


def test_the_manifest_is_held_to_what_the_program_takes() -> None:
    raw = toy_program()
    promised = memory_plan({"cuda-sm90": raw}, 1 << 20).devices["cuda-sm90"]
    assert promised.weights_bytes == 256, "64 bytes, rounded up"
    assert check_device_memory(promised, raw) == "as the manifest says"
    for change in ({"weights_bytes": 64}, {"kv": msgspec.structs.replace(promised.kv, bytes_per_block=128)}):
        with pytest.raises(ProgramInvalid, match=f"{next(iter(change))}.* is (64|128), but the program needs 256"):
            check_device_memory(msgspec.structs.replace(promised, **change), raw)
    with pytest.raises(ProgramInvalid, match="does not say what the target takes"):
        check_device_memory(None, raw)


def test_all_of_a_program_is_typed() -> None:
    program = read_program(toy_program())
    assert isinstance(program, GpuProgram) and program.launches[3].arguments[-1].kind == "size"
