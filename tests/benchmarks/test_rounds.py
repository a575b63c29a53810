"""Which settings are best is found by trying; then everybody is measured in turn."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.cpu.rounds import Runner
from benchmarks.cpu.settings import (
    FLASH,
    LLAMA,
    OPENVINO,
    PACKAGES,
    Candidate,
    Contender,
    Files,
    contenders,
    worth_trying,
)
from benchmarks.cpu.work import DECODE_1, DECODE_8, PREFILL

# A driver whose speed is in its settings, by name of work; without the setting it cannot do that work at all.
DRIVER = """
import json, pathlib, sys
job = json.loads(pathlib.Path(sys.argv[-1]).read_text())
with open(sys.argv[1], "a") as log:
    log.write(" ".join(sorted(work["name"] for work in job["work"])) + "\\n")
if job["settings"].get("broken"):
    sys.exit("this engine does not start")
for work in job["work"]:
    if work["name"] in job["settings"]:
        row = {"work": work["name"], "tok_s": job["settings"][work["name"]]}
        print(json.dumps({**row, "read": 5e10} if job["peaks"] and work["name"] == "decode-1" else row))
print('{"others": 0.0}')
"""


def make_runner(tmp_path: Path) -> Runner:
    program = tmp_path / "driver.py"
    program.write_text(DRIVER)
    return Runner(Path("python"), {}, 2, tmp_path, under=(sys.executable, str(program), str(tmp_path / "log")))


def log(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().splitlines()


FAST_PROMPTS = Candidate("fast prompts", Path("model"), {"prefill-512": 900, "decode-1": 50})
FAST_STEPS = Candidate("fast steps", Path("model"), {"prefill-512": 700, "decode-1": 60, "decode-8": 200})
BROKEN = Candidate("broken", Path("model"), {"broken": True})


def silent(text: str) -> None:
    pass


def test_every_work_gets_the_settings_that_are_best_for_it(tmp_path: Path) -> None:
    contender = Contender("engine", OPENVINO, (FAST_PROMPTS, BROKEN, FAST_STEPS))
    best, tried = make_runner(tmp_path).look_for_best(contender, (PREFILL, DECODE_1, DECODE_8), silent)
    assert best == {"prefill-512": FAST_PROMPTS, "decode-1": FAST_STEPS, "decode-8": FAST_STEPS}
    assert tried["fast prompts"] == {"prefill-512": 900, "decode-1": 50}
    assert set(tried) == {"fast prompts", "fast steps"}


def test_without_a_choice_one_measurement_is_enough(tmp_path: Path) -> None:
    contender = Contender("engine", LLAMA, (FAST_STEPS,))
    best, _ = make_runner(tmp_path).look_for_best(contender, (PREFILL, DECODE_1), silent)
    assert best == {"prefill-512": FAST_STEPS, "decode-1": FAST_STEPS}
    assert log(tmp_path) == ["prefill-512"]


def test_an_engine_that_never_starts_has_no_settings(tmp_path: Path) -> None:
    best, tried = make_runner(tmp_path).look_for_best(Contender("engine", LLAMA, (BROKEN,)), (PREFILL,), silent)
    assert (best, tried) == ({}, {})


def test_a_round_starts_each_setting_once(tmp_path: Path) -> None:
    contender = Contender("engine", LLAMA, (FAST_PROMPTS, FAST_STEPS))
    choice = {"engine": {"prefill-512": FAST_PROMPTS, "decode-1": FAST_STEPS, "decode-8": FAST_STEPS}}
    samples = make_runner(tmp_path).round([contender], choice, (PREFILL, DECODE_1, DECODE_8))
    assert samples == {"engine": {"prefill-512": 900, "decode-1": 60, "decode-8": 200}}
    assert log(tmp_path) == ["prefill-512", "decode-1 decode-8"]


def test_what_memory_gave_beside_a_decode_is_kept(tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    runner.peaks = tmp_path / "peaks"
    contender = Contender("engine", LLAMA, (FAST_STEPS,))
    choice = {"engine": {"prefill-512": FAST_STEPS, "decode-1": FAST_STEPS}}
    runner.round([contender], choice, (PREFILL, DECODE_1))
    assert runner.bandwidths == {"engine": 5e10}


def test_only_what_was_prepared_competes() -> None:
    files = Files(gguf={"Q8_0": Path("q8")}, openvino={"int8": Path("ir")}, packages={"int8": Path("package")})
    found = {contender.name: contender for contender in contenders(files)}
    assert list(found) == ["Tessera int8", "llama.cpp Q8_0", "OpenVINO int8"]
    assert len(found["llama.cpp Q8_0"].candidates) == len(FLASH)
    assert {candidate.model for candidate in found["OpenVINO int8"].candidates} == {Path("ir"), Path("q8")}


def test_what_the_cache_holds_is_a_setting_of_a_package() -> None:
    found = contenders(Files(packages={name: Path(name) for name in PACKAGES}))
    tried = {each.name: {item.label: (item.model, item.quality) for item in each.candidates} for each in found}
    assert list(tried) == ["Tessera int4", "Tessera int8", "Tessera bf16"]
    assert tried["Tessera int8"] == {
        "bf16 KV": (Path("int8"), "Tessera int8"),
        "int8 KV": (Path("int8-kv8"), "Tessera int8-kv8"),
    }
    assert [item.label for item in found[1].candidates] == ["bf16 KV", "int8 KV"]


def test_settings_far_behind_on_one_model_are_not_tried_on_the_next() -> None:
    contender = Contender("engine", OPENVINO, (FAST_PROMPTS, BROKEN, FAST_STEPS))
    tried = {"fast prompts": {"prefill-512": 900.0, "decode-1": 50.0}, "fast steps": {"prefill-512": 700.0}}
    tried["fast steps"]["decode-1"] = 60.0
    assert worth_trying(contender, tried, (PREFILL, DECODE_1)).candidates == (FAST_PROMPTS, FAST_STEPS)
    assert worth_trying(contender, tried, (PREFILL,)).candidates == (FAST_PROMPTS,)
    assert worth_trying(contender, tried, (DECODE_8,)).candidates == contender.candidates
    assert worth_trying(contender, {}, (PREFILL,)).candidates == contender.candidates


def test_only_what_was_measured_claims_a_perplexity() -> None:
    files = Files(gguf={"Q4_0": Path("q4")}, openvino={"int4-row": Path("ir")})
    found = {each.name: {item.model: item.quality for item in each.candidates} for each in contenders(files)}
    assert found["llama.cpp Q4_0"] == {Path("q4"): "llama.cpp Q4_0"}
    assert found["OpenVINO int4"] == {Path("ir"): "OpenVINO int4-row", Path("q4"): ""}
