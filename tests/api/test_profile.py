"""`tessera bench --profile`: every kernel, its time and its bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tessera.benchmarking.launch_costs import LaunchCost, StepShape, launch_cost
from tessera.benchmarking.profile import bounds_of
from tessera.cli.main import main
from tessera_runtime.executor.cpu.peaks import MachinePeaks
from tessera_runtime.package.reader import open_package

SHAPE = ("--tokens", "6", "--context", "20", "--sequences", "3")


def test_kernels_are_timed(compiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(compiled), "--profile", "--threads", "1", *SHAPE, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (step,) = found["steps"]
    assert (step["tokens"], step["context"], step["sequences"]) == (6, 20, 3)
    program = open_package(compiled).program("cpu")
    assert sum(kernel["calls"] for kernel in step["kernels"]) == len(program["launches"])
    assert {kernel["group"] for kernel in step["kernels"]} == set(program["groups"])
    assert step["seconds"] > 0 and step["bound_seconds"] > 0
    assert sum(kernel["seconds"] for kernel in step["kernels"]) == pytest.approx(step["seconds"], rel=0.5)
    products = {kernel["element"] for kernel in step["kernels"] if kernel["kind"] == "linear"}
    assert products == {"f32"}
    assert step["peaks"]["memory_bytes_s"] > 0 and set(step["peaks"]["multiply_adds_s"]) == {"f32", "bf16", "u8"}


def test_three_steps_by_default_and_a_table_for_people(compiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(compiled), "--profile", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 tokens of 1 sequences at context 128" in out and "64 tokens of 64 sequences" in out
    assert "256 tokens of 1 sequences at context 0" in out  # what a package of that context takes of 512
    assert "(default)" in out and "of bound" in out and "GB/s" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--profile", "--tokens", "5", "--sequences", "2"), "cannot be shared out"),
        (("--profile", "--tokens", "513"), "at most 512"),
        (("--profile", "--tokens", "2", "--context", "255"), "do not fit 256"),
        (("--profile", "--target", "reference"), "timed on the target cpu"),
        (("--tokens", "2"), "are for --profile"),
    ],
)
def test_what_cannot_be_profiled(
    compiled: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    assert main(["bench", str(compiled), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_url_has_no_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "http://127.0.0.1:1", "--profile"]) == 2
    assert "--profile is for a package" in capsys.readouterr().err


def weight(name: str, shape: list[int], dtype: str = "u8", layout: str = "panels_k4") -> dict[str, Any]:
    return {"name": name, "shape": shape, "dtype": dtype, "layout": layout}


PROGRAM = {
    "groups": {"linear_0": {"kind": "linear"}, "rows_0": {"kind": "rows"}, "attention_0": {"kind": "attention"}},
    "weights": [weight("matrix", [100, 64]), weight("scales", [100], "f32", "rows")],
    "buffers": [
        {"dtype": "i8", "shape": [64], "rows": "T"},
        {"dtype": "f32", "shape": [100], "rows": "T"},
        {"dtype": "f32", "shape": [4, 8], "rows": "T"},
    ],
    "cache": {"layers": [{"heads": 2, "key_dim": 8, "value_dim": 8, "dtype": "bf16"}]},
}
SIZES = {"matrix": 112 * 64, "scales": 4 * 112}


def cost(group: str, args: list[str], grid: list[str | int], shape: StepShape, reads: list[int]) -> LaunchCost:
    return launch_cost(PROGRAM, {"group": group, "args": args, "reads_cache": reads}, grid, SIZES, shape)


def test_what_a_product_costs() -> None:
    found = cost("linear_0", ["buffer:0", "weight:0", "weight:1", "buffer:1"], ["T/4", 7], StepShape(10, 0, 1), [])
    assert found == LaunchCost(112 * 64 + 4 * 112, 10 * (64 + 400), 0, 10 * 6400, "u8")
    logits = cost("linear_0", ["weight:0"], ["L/4", 7], StepShape(10, 0, 2), [])
    assert logits.multiply_adds == 2 * 6400


def test_what_a_lookup_costs() -> None:
    found = cost("rows_0", ["input:token_ids", "weight:0", "weight:1", "buffer:1"], ["T"], StepShape(10, 0, 1), [])
    assert found.weight_bytes == 112 * 64 // 10 + 4 * 112 // 10 and not found.multiply_adds


def test_what_attention_costs() -> None:
    shape = StepShape(6, 20, 3)  # two tokens each, at positions 20 and 21
    args = ["buffer:2", "cache_key:0", "cache_value:0", "buffer:2"]
    found = cost("attention_0", args, ["T", 4], shape, [0])
    assert found.cache_bytes == 3 * 22 * 2 * (8 + 8) * 2
    assert found.multiply_adds == 3 * (21 + 22) * 4 * (8 + 8) and found.element == "bf16"


def test_the_better_of_two_measurements() -> None:
    peaks = MachinePeaks(1.0, 5.0, {"f32": 1.0, "u8": 4.0}).or_better(MachinePeaks(2.0, 3.0, {"f32": 2.0, "u8": 3.0}))
    assert peaks == MachinePeaks(2.0, 5.0, {"f32": 2.0, "u8": 4.0})


def test_the_largest_limit_binds() -> None:
    peaks = MachinePeaks(1e9, 1e10, {"f32": 1e9, "bf16": 2e9, "u8": 4e9})
    bounds = bounds_of(LaunchCost(1000, 20000, 1000, 4000, "u8"), peaks)
    assert bounds == {"memory": 2e-6, "cache": 2e-6, "u8": 1e-6}
    assert "f32" not in bounds_of(LaunchCost(0, 0, 0, 0, None), peaks)
