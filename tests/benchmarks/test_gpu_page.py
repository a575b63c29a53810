"""A GPU's page says what was measured, what was missed, and how far the others came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import gpu
from benchmarks.gpu_page import page
from benchmarks.gpu_results import GOALS, Results


def step(microseconds: float, *groups: tuple[str, int, float]) -> dict[str, Any]:
    return {
        "context": 512,
        "step": microseconds * 1e-6,
        "groups": [
            {"group": name, "source": f"work of {name}", "shape": [64, 32], "launches": count, "seconds": each * 1e-6}
            for name, count, each in groups
        ],
    }


def some_results() -> Results:
    results = Results(
        environment={
            **{"device": "NVIDIA H200", "capability": [9, 0], "memory": 141 << 30, "driver": 13000, "seed": 1},
            **{"when": "2026-11-20", "host": "a host", "python": "3.12.3", "versions": {"torch": "2.11.0"}},
            "programs": {"qwen3-0.6b": {"dtype": "bf16", "target": "cuda-sm90", "products": 5, "tuned": 4}},
        },
        figures={
            **{"copy bandwidth": 4.2e12, "cublas bf16": 790e12, "decode qwen3-0.6b": 0.34, "layer qwen3-0.6b": 12e-6},
            **{"serving qwen3-0.6b": 0.75, "idle qwen3-0.6b": 0.02, "matmul": 0.8, "start qwen2.5-1.5b": 0.9},
            "against transformers qwen3-0.6b": 11.5,
        },
        failures={"kernels qwen3-8b": "PartTooLong: stopped\nafter 90 s", "open qwen3-8b": "no room"},
    )
    results.raw = {
        "decode qwen3-0.6b": {"wall": 0.001, "device": 0.0009, "bytes": 1.25e9, "bound": 0.00034},
        "launches qwen3-0.6b": {
            "layers": 10,
            "users": {
                "1": step(700, ("linear_0", 10, 50), ("singles", 10, 25), ("head", 1, 70)),
                "256": step(5000, ("linear_0", 10, 90), ("tiles", 10, 400), ("head", 1, 170)),
            },
        },
        "kernels qwen3-0.6b": [
            {"group": "linear_0", "kind": "linear", "shape": [2048, 4096, 1024], "seconds": 40e-6}
            | {"flops_per_second": 430e12, "torch": 32e-6},
            {"group": "tiles", "kind": "attention", "shape": [2048, 16, 128], "seconds": 80e-6}
            | {"flops_per_second": 210e12, "torch": 60e-6},
        ],
        "serving qwen3-0.6b": {
            **{"seconds": 6.0, "bound": 4.5, "steps": 1081, "prompt_tokens": 148156, "answer_tokens": 144000},
            "tokens_per_second": 24000.0,
        },
        "idle qwen3-0.6b": {"wall": 0.009, "device": 0.00882},
        "against transformers qwen3-0.6b": {
            **{"ratio_of": "generated tokens a second", "requests": 256, "setting": "64 a step", "complete": False},
            **{"done": 200, "seconds": 60.0, "times_of_seconds": 10.0},
            "facts": {"transformers": "5.17.0", "attention": "paged|sdpa"},
            "tried": [
                {"setting": "64 a step", "seconds": 60.0, "done": 200, "tokens": 125000, "complete": False, "note": ""},
                {"setting": "own", "seconds": 0.0, "done": 0, "tokens": 0, "complete": False, "note": "no | memory"},
            ],
        },
        "start qwen2.5-1.5b": {"driver": 0.2, "weights": 0.3},
    }
    return results


def with_later_parts(results: Results) -> Results:
    """Results of a run that has the parts that older ones lack."""

    def of_users(wall: float, size: float) -> dict[str, float]:
        return {"wall": wall, "device": wall * 0.9, "bytes": size, "bound": size / 4e12}

    def way(label: str, step: float, beyond: float, left: int | None) -> dict[str, Any]:
        return {"label": label, "step": step, "beyond": beyond, "left": left}

    return Results(
        results.environment,
        results.figures,
        {
            **results.raw,
            "quantized qwen3-0.6b-bf16": {"model": "qwen3-0.6b", "dtype": "bf16"}
            | {"users": {"1": of_users(0.001, 1.2e9), "64": of_users(0.002, 4.8e9)}},
            "quantized qwen3-0.6b-int4": {"model": "qwen3-0.6b", "dtype": "int4"}
            | {"users": {"1": of_users(0.0005, 0.4e9), "64": of_users(0.0016, 4e9)}},
            "quantized qwen3-8b-fp8": {"model": "qwen3-8b", "dtype": "fp8"} | {"users": {"1": of_users(0.0025, 8e9)}},
            "mixed qwen3-8b": {
                **{"users": 64, "prompt": 2048, "chunk": 512, "alone": 0.008, "carrying": [0.02, 0.021, 0.022, 0.024]},
                **{"first_token": 0.095, "device_alone": 0.0075, "device_carrying": [0.019, 0.02, 0.021, 0.023]},
            },
            "sampling qwen3-0.6b": {
                **{"context": 512, "vocabulary": 151936},
                "users": {
                    "1": [way("greedy", 0.001, 0, None), way("warm", 0.00102, 20e-6, 130000)],
                    "64": [way("greedy", 0.002, 0, None), way("warm", 0.0021, 100e-6, 130000)],
                },
            },
        },
        results.failures,
    )


def row(text: str, *starts: str) -> str:
    """The first line that begins with these cells."""
    return next(line for line in text.splitlines() if line.startswith("| " + " | ".join(starts)))


def test_goals_are_judged_and_what_was_missed_is_marked() -> None:
    text = page(some_results())
    assert row(text, "decode of one user, share of bound", "qwen3-0.6b").endswith("| 34.0% | 35.0% | 52.0% | missed |")
    assert row(text, "time per layer beyond streaming its weights", "qwen3-0.6b").endswith("| must met |")
    assert row(text, "256 requests, share of bound", "qwen3-0.6b").endswith("| aim met |")
    assert row(text, "products of a prompt of 2,048, against cuBLAS, the worst", "all").endswith("| missed |")


def test_what_is_missing_says_why() -> None:
    text = page(some_results())
    assert row(text, "decode of one user, share of bound", "qwen3-8b").endswith("| open qwen3-8b: no room |")
    assert row(text, "attention of a prompt").endswith("| kernels qwen3-8b: PartTooLong: stopped after 90 s |")
    assert row(text, "decode of one user, share of bound", "qwen2.5-1.5b").endswith("| not measured |")
    assert "- kernels qwen3-8b: PartTooLong: stopped after 90 s" in text


def test_machine_versions_and_bounds_stand_on_top() -> None:
    text = page(some_results())
    assert text.startswith("# Tessera on one NVIDIA H200\n")
    assert (
        "NVIDIA H200, capability 9.0, 141 GiB, driver for CUDA 13.0. Host: a host. Python 3.12.3, torch 2.11.0." in text
    )
    assert "- qwen3-0.6b: bf16, cuda-sm90, 4 of 5 products tuned" in text
    assert "4.20 TB/s copied within the device, 790 TFLOP/s of cuBLAS" in text


def test_launches_of_a_layer_stand_before_those_of_a_step_and_are_summed() -> None:
    text = page(some_results())
    assert row(text, "linear_0: work of linear_0") == "| linear_0: work of linear_0 | 64×32 | 10 | 5.00 | 9.00 |"
    assert row(text, "singles").endswith("| 2.50 | – |")
    assert text.index("| tiles:") < text.index("| head:")
    assert row(text, "a layer, sum of its launches").endswith("| 7.50 | 49.00 |")
    assert row(text, "a step on the device").endswith("| 70.00 | 500.00 |")


def test_others_stand_beside_the_same_shapes() -> None:
    text = page(some_results())
    assert row(text, "qwen3-0.6b", "2048×4096×1024") == "| qwen3-0.6b | 2048×4096×1024 | 40.0 | 430 | 32.0 | 80% |"
    assert row(text, "qwen3-0.6b", "2048×16×128").endswith("| 80.0 | 210 | 60.0 | 75% |")
    assert row(text, "qwen3-0.6b", "148,156").endswith("| 6.00 | 4.50 | 75% | 1,081 | 24,000 | 9.000 | 2.0% |")
    assert row(text, "the interpreter, and its end") == "| the interpreter, and its end | 0.40 |"


def test_a_run_of_transformers_that_had_to_end_is_called_one() -> None:
    results = some_results()
    text = page(results)
    assert "the fastest of its settings is 64 a step. The ratio is of generated tokens a second so far" in text
    assert "200 of 256 requests in 60 s, and would have needed more than 10.00× the time in all." in text
    assert row(text, "transformers: 64 a step") == "| transformers: 64 a step | 200 | 60.0 | 2,083 | its time was up |"
    assert row(text, "transformers: own").endswith("| – | no / memory |")
    results.raw["against transformers qwen3-0.6b"]["complete"] = True
    assert "all requests done; in time, transformers took 10.00× as long." in page(results)


def test_weights_of_fewer_bits_stand_beside_the_whole_ones() -> None:
    text = page(with_later_parts(some_results()))
    start = "| qwen3-0.6b, int4 | 1 | 0.500 | 0.450 | 0.100 | 0.40 | 20% | 2,000 | 2.00× |"
    assert row(text, "qwen3-0.6b, int4", "1") == start
    assert row(text, "qwen3-0.6b, int4", "64").endswith("| 1.600 | 1.440 | 1.000 | 4.00 | 62% | 40,000 | 1.25× |")
    assert row(text, "qwen3-0.6b, bf16", "1").endswith("| 1.00× |")
    assert row(text, "qwen3-8b, fp8").endswith("| 400 | – |"), "nothing to compare with"


def test_a_long_prompt_and_drawing_have_sections() -> None:
    text = page(with_later_parts(some_results()))
    mixed = row(text, "qwen3-8b, 64 users, 2,048 tokens by 512")
    assert mixed.endswith("| 8.000 | 20.000 | 24.000 | 3.00× | 7.500 | 19.000 | 23.000 | 55.0 | 95.0 |")
    assert row(text, "greedy", "–") == "| greedy | – | 1.000 | +0.0 | 2.000 | +0.0 |"
    assert row(text, "warm") == "| warm | 130,000 | 1.020 | +20.0 | 2.100 | +100.0 |"
    for part in ("quantized", "mixed", "sampling"):
        assert text.count(f"\n- *{part}*: ") == 1


def test_what_older_runs_lack_is_left_out() -> None:
    old, new = page(some_results()), page(with_later_parts(some_results()))
    for part in ("quantized", "mixed", "sampling", "Weights of fewer", "A long prompt", "## Drawing"):
        assert part not in old and part in new
    results = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "h200.json"
    assert page(Results.read(results)) == results.with_suffix(".md").read_text(encoding="utf-8")


def test_nothing_measured_still_makes_a_page() -> None:
    text = page(Results())
    assert text.count("| not measured |") == len(GOALS)
    assert "## Products" not in text


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    some_results().write(tmp_path / "results.json")
    assert gpu.main(["page", "--results", str(tmp_path / "results.json"), "--out", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page(some_results())
