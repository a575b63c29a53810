"""A run keeps what it has, whatever becomes of its parts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import gpu_run
from benchmarks.gpu_measure import GroupTime, ServingTime, StepTime
from benchmarks.gpu_mixed import MixedTime
from benchmarks.gpu_models import GpuModel
from benchmarks.gpu_page import page
from benchmarks.gpu_parts import HUNG, Parts
from benchmarks.gpu_quantized import UsersTime
from benchmarks.gpu_results import Results
from benchmarks.gpu_run import OtherDevice, Run, RunOptions, by_size
from benchmarks.gpu_sampling import WayTime

A_HUNG_PART = """
import signal, sys, time
from pathlib import Path
from benchmarks.gpu_models import GpuModel
from benchmarks.gpu_parts import Parts
from benchmarks.gpu_results import Results
def deaf():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(60)
results = Results()
parts = Parts(results, Path(sys.argv[1]), grace=0.2)
parts.run("first", 5, lambda: results.note("decode tiny", 0.5))
parts.run("second", 0.1, deaf)
"""


def fails() -> None:
    raise ValueError("no such number")


def test_what_is_known_is_written_after_every_part(tmp_path: Path) -> None:
    results, out = Results(), tmp_path / "results.json"
    parts = Parts(results, out)
    assert parts.run("first", 5, lambda: results.note("decode tiny", 0.5))
    assert Results.read(out).figures == {"decode tiny": 0.5}
    assert not parts.run("second", 5, fails)
    assert Results.read(out).failures == {"second": "ValueError: no such number"}
    assert parts.run("second", 5, lambda: None)
    assert Results.read(out) == Results(figures={"decode tiny": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_part_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    results = Results()
    parts = Parts(results, tmp_path / "results.json")
    assert not parts.run("first", 0.05, lambda: time.sleep(60))
    assert results.failures == {"first": "PartTooLong: stopped after 0 s"}
    assert parts.run("second", 5, lambda: None)


def test_a_part_that_hears_nothing_ends_the_run(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "-c", A_HUNG_PART, str(out)]
    done = subprocess.run(command, cwd=gpu_run.ROOT, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == HUNG
    assert "second hung" in done.stderr
    results = Results.read(out)
    assert results.figures == {"decode tiny": 0.5}
    assert results.failures["second"].startswith("hung")


class Executor:
    """Knows only that it can be closed."""

    opened = 0
    limits = SimpleNamespace(vocab_size=40)

    def __init__(self) -> None:
        Executor.opened += 1

    def allocate_cache(self, blocks: int) -> None:
        pass

    def close(self) -> None:
        raise RuntimeError("something is still queued")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No device: what is measured is made up. The models that were opened, in order."""
    order: list[str] = []
    Executor.opened = 0

    def opened(model: Any, *_: Any) -> Executor:
        order.append(model.name)
        return Executor()

    def replace(name: str, value: Callable[..., Any]) -> None:
        monkeypatch.setattr(gpu_run, name, value)

    one = SimpleNamespace(name="one", capability=(9, 0), driver_version=13000, memory_bytes=1 << 30)
    model = {"step_bytes": 1000, "bytes_per_position": 1, "layers": 2, "built": {"dtype": "bf16"}, "config": {}}
    replace("open_cuda_driver", lambda: SimpleNamespace(device=one, close=lambda: None))
    replace("open_model", opened)
    replace("blocks_of", lambda *_: 1)
    replace("_torch", lambda _: None)
    replace("time_decoding", lambda *_: StepTime(1e-6, 1e-6))
    replace("launch_times", lambda *_: (1e-3, [GroupTime("linear_0", "matmul", (64, 32), 2, 1e-4)]))
    replace("kernel_times", lambda *_: fails())
    replace("time_serving", lambda *_: ServingTime(4.0, 2.0, 10, 100, 7))
    replace("time_sampling", lambda *_: [WayTime("greedy", 1e-3, 0.0, None), WayTime("warm", 2e-3, 1e-3, 30)])
    replace("time_mixed", lambda *_: MixedTime(1e-3, (4e-3, 5e-3), 0.02, 700, 9e-4, (3e-3, 4e-3)))
    replace("time_users", lambda *_: {1: UsersTime(2e-3, 1e-3, 8e5, 8e-4), 64: UsersTime(4e-3, 3e-3, 2e6, 2e-3)})
    monkeypatch.setattr(GpuModel, "read", lambda folder: SimpleNamespace(name=folder.name, **model))
    monkeypatch.setattr(Run, "_bounds", lambda self: self.results.note("copy bandwidth", 1e9))
    return order


def options(tmp_path: Path, *parts: str, add: bool = False) -> RunOptions:
    models = ("qwen3-8b", "qwen3-0.6b")
    return RunOptions(tmp_path, 1, models, parts or gpu_run.PARTS, 2048, 1.0, tmp_path / "results.json", add)


def test_small_models_come_first() -> None:
    assert by_size(["qwen3-8b", "qwen2.5-1.5b", "qwen3-0.6b"]) == ["qwen3-0.6b", "qwen2.5-1.5b", "qwen3-8b"]


def test_a_model_is_opened_once_and_again_after_a_part_that_failed(device: list[str], tmp_path: Path) -> None:
    results = Run(options(tmp_path)).measure()
    assert device == ["qwen3-0.6b"] * 2 + ["qwen3-8b"] * 2
    failed = {name: why for name, why in results.failures.items() if not name.startswith("quantized ")}
    assert failed == {f"kernels {name}": "ValueError: no such number" for name in ("qwen3-0.6b", "qwen3-8b")}
    assert results.figures["serving qwen3-8b"] == 0.5
    assert results.raw["launches qwen3-0.6b"]["users"]["1"]["groups"][0]["launches"] == 2
    assert Results.read(tmp_path / "results.json").figures == results.figures


def test_parts_can_be_added_to_what_there_is(device: list[str], tmp_path: Path) -> None:
    Run(options(tmp_path, "serving")).measure()
    again = Run(options(tmp_path, "decode", add=True)).measure()
    assert {"serving qwen3-0.6b", "decode qwen3-0.6b"} <= set(again.figures)
    assert "serving qwen3-0.6b" not in Run(options(tmp_path, "decode")).measure().figures


def test_quantized_programs_that_are_there_are_measured(device: list[str], tmp_path: Path) -> None:
    results = Run(options(tmp_path, "quantized")).measure()
    assert results.failures.keys() == {"quantized qwen3-0.6b", "quantized qwen3-8b"}
    assert "holds none of qwen3-8b-int8, qwen3-8b-int4, qwen3-8b-fp8" in results.failures["quantized qwen3-8b"]
    for name in ("qwen3-8b-int8", "qwen3-8b-fp8"):
        (tmp_path / name).mkdir()
    results = Run(options(tmp_path, "quantized", add=True)).measure()
    assert results.failures.keys() == {"quantized qwen3-0.6b"}
    measured = [name for name in results.figures if name.startswith("quantized ")]
    assert measured == ["quantized qwen3-8b-bf16", "quantized qwen3-8b-int8", "quantized qwen3-8b-fp8"]
    assert results.figures["quantized qwen3-8b-fp8"] == pytest.approx(0.4)
    assert results.raw["quantized qwen3-8b-int8"]["users"]["64"]["wall"] == 4e-3
    assert "qwen3-8b-int8" in results.environment["programs"]
    assert not device, "the model was opened for nothing"


def test_a_run_makes_a_page_of_every_part(device: list[str], tmp_path: Path) -> None:
    (tmp_path / "qwen3-0.6b-int4").mkdir()
    Run(options(tmp_path)).measure()
    text = page(Results.read(tmp_path / "results.json"))
    for title in ("Weights of fewer bits", "A long prompt beside answers", "Drawing"):
        assert f"## {title}\n" in text
    assert "qwen3-0.6b, int4" in text and "qwen3-8b, int4" not in text


def test_results_of_another_device_are_not_mixed(device: list[str], tmp_path: Path) -> None:
    Results(environment={"device": "another"}).write(tmp_path / "results.json")
    with pytest.raises(OtherDevice, match="results of another, and this is one"):
        Run(options(tmp_path, add=True)).measure()


def test_transformers_is_compared_by_tokens_a_second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import gpu_rival

    found = [gpu_rival.Tried("64 a step", seconds=30, done=100, tokens=60_000)]
    monkeypatch.setattr(gpu_rival, "time_transformers", lambda *_: found)
    run = Run(options(tmp_path))
    run.torch = SimpleNamespace(cuda=SimpleNamespace(empty_cache=lambda: None))
    run.results.raw["serving qwen3-0.6b"] = {"seconds": 6.0, "tokens_per_second": 24_000.0}
    run._rival()
    name = "against transformers qwen3-0.6b"
    assert run.results.figures[name] == 12
    raw = run.results.raw[name]
    assert (raw["ratio_of"], raw["complete"], raw["times_of_seconds"]) == ("generated tokens a second", False, 5)
