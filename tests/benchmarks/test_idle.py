"""Who used the processor while something was measured?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cpu import idle
from benchmarks.cpu.idle import LIMIT, Moment, busy_seconds, others_share
from benchmarks.cpu.rounds import ATTEMPTS, DriverFailed, Runner
from benchmarks.cpu.settings import LLAMA, Candidate

STAT = "cpu  100 20 30 9000 5 1 2 47 11 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"


def test_busy_time_has_no_idle_time_and_no_guest_time_in_it() -> None:
    assert busy_seconds(STAT, ticks=100) == pytest.approx((100 + 20 + 30 + 1 + 2 + 47) / 100)


def test_what_is_not_ours_was_taken_by_others() -> None:
    before = Moment(wall=10.0, machine=100.0, own=5.0)
    after = Moment(wall=20.0, machine=121.0, own=24.0)
    assert others_share(before, after, cores=2) == pytest.approx(2.0 / 20)


def test_clock_ticks_do_not_make_a_negative_share() -> None:
    assert others_share(Moment(0.0, 0.0, 0.0), Moment(1.0, 0.99, 1.0), cores=2) == 0.0
    assert others_share(Moment(1.0, 0.0, 0.0), Moment(1.0, 1.0, 0.0), cores=2) == 0.0


def test_a_busy_process_of_others_is_seen() -> None:
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert idle.watch(0.5) > LIMIT
    finally:
        loop.kill()
        loop.wait()


def runner(tmp_path: Path, shares: list[float]) -> Runner:
    """Its drivers are a program that says these shares, one after another."""
    left = tmp_path / "left"
    left.write_text("\n".join(map(str, shares)))
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, pathlib\n"
        f"left = pathlib.Path({str(left)!r})\n"
        "first, *rest = left.read_text().split()\n"
        "left.write_text('\\n'.join(rest))\n"
        'print(\'{"work": "decode-1", "tok_s": 7}\')\n'
        "print('{\"others\": ' + first + '}')\n"
    )
    return Runner(Path("python"), {}, 2, tmp_path / "scratch", under=(sys.executable, str(program)), pause=0)


def test_a_disturbed_measurement_is_taken_again(tmp_path: Path) -> None:
    runs = runner(tmp_path, [0.5, 0.01])
    assert runs.run(LLAMA, Candidate("", Path("model"))) == [{"work": "decode-1", "tok_s": 7}]
    assert (runs.repeated, runs.disturbance) == (1, [0.01])


def test_a_machine_that_stays_busy_ends_the_run(tmp_path: Path) -> None:
    runs = runner(tmp_path, [0.5] * ATTEMPTS)
    with pytest.raises(idle.MachineBusy, match="50.0%.*while model was measured"):
        runs.run(LLAMA, Candidate("", Path("model")))
    assert runs.disturbance == []


def test_a_wanted_neighbour_is_no_disturbance(tmp_path: Path) -> None:
    runs = runner(tmp_path, [0.5])
    assert runs.run(LLAMA, Candidate("", Path("model")), must_be_idle=False)
    assert runs.disturbance == []


def test_a_driver_that_ends_early_failed(tmp_path: Path) -> None:
    broken = (sys.executable, "-c", "import sys; sys.exit('no such model')")
    with pytest.raises(DriverFailed, match="no such model"):
        Runner(Path("python"), {}, 2, tmp_path, under=broken).run(LLAMA, Candidate("", Path("model")))
