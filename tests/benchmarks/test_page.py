"""The page says what was measured, and what was not."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cpu.page import LARGE, SMALL, page
from benchmarks.cpu.results import ModelResults, Results, Shape, load, save
from benchmarks.cpu.tables import rate, table


def some_results() -> Results:
    small = ModelResults(
        "Small model",
        samples={
            "Tessera int8": {"decode-1": [300.0, 310.0], "prefill-512": [5000.0, 5200.0]},
            "llama.cpp Q8_0": {"decode-1": [150.0, 160.0]},
            "OpenVINO int8": {"prefill-512": [3400.0, 3600.0]},
        },
        choices={
            "Tessera int8": {"decode-1": "int8 KV", "prefill-512": "bf16 KV"},
            "llama.cpp Q8_0": {"decode-1": "flash attention"},
        },
        tuning={
            "Tessera int8": {"bf16 KV": {"decode-1": 290.0}, "int8 KV": {"decode-1": 300.0}},
            "llama.cpp Q8_0": {"flash attention": {"decode-1": 151.0}, "none": {"decode-1": 149.0}},
        },
        qualities={"Tessera int8": {"bf16 KV": "Tessera int8", "int8 KV": "Tessera int8-kv8"}},
        bandwidths={"Tessera int8": [40e9, 62e9]},
        perplexity={"Tessera int8": 23.7, "Tessera int8-kv8": 23.9, "Tessera bf16": 23.6},
        bytes={"Tessera int8": 100_000_000 - 192_000},
        context_bytes={"Tessera int8": 1000},
        shape=Shape(100_000_000, 0),
        left_out={"OpenVINO int4": "no such file"},
    )
    large = ModelResults(
        "Large model", samples={"Tessera int8": {"decode-1": [30.0]}, "llama.cpp Q8_0": {"decode-1": [20.0]}}
    )
    return Results(
        "2026-11-20",
        "a machine",
        2,
        versions={"llama-cpp-python": "0.3.36"},
        peaks={"read": [40e9, 42e9], "int8": [1e12, 1e12]},
        disturbance=[0.001, 0.004],
        models={SMALL: small, LARGE: large},
        steps={"Tessera int8": {1: 0.003, 2: 0.008, 4: 0.005}},
        neighbour={"Tessera int8": 100.0, "llama.cpp Q8_0": 15.0},
    )


def row(text: str, *starts: str) -> str:
    """The first line that begins with these cells."""
    return next(line for line in text.splitlines() if line.startswith("| " + " | ".join(starts)))


def test_targets_have_figures_ratios_and_verdicts() -> None:
    text = page(some_results(), "cpu.png", 0.03)
    found = row(text, "decode, 1 user, 8-bit")
    assert found == (
        "| decode, 1 user, 8-bit | Tessera int8: int8 KV | 305 | 23.90 | llama.cpp Q8_0: flash attention | 155 | – "
        "| 1.97× | 1.94–2.00 | 1.50× | 2.00× | must met |"
    )
    assert row(text, "decode, 1 user, bf16").endswith("| not measured |")


def test_bounds_are_shares_of_what_the_machine_can_do() -> None:
    text = page(some_results(), "cpu.png", 0.03)
    # 30 of 40 GB/s in the first round, 31 of 62 in the second: 192 tokens are attended to on the average.
    assert "| 51 GB/s |  | 62% |  | 75% | 90% | missed |" in row(text, "bytes read, 1 user", "Tessera int8: int8 KV")
    assert "| 51% |  | 45% | 65% | must met |" in row(text, "int8 multiply-adds, prefill 512")


def test_the_page_names_versions_limits_and_what_is_missing() -> None:
    text = page(some_results(), "cpu.png", 0.03)
    assert "llama-cpp-python 0.3.36" in text
    assert "At most 0.4% of the processor time" in text
    assert "above 3% the sample" in text
    assert "- Left out: OpenVINO int4: no such file" in text
    assert "![Tokens per second by engine](cpu.png)" in text


def test_cliffs_neighbours_and_the_larger_model_are_judged() -> None:
    text = page(some_results(), "cpu.png", 0.03)
    assert "is the step of 2 tokens, 2.18×; allowed are 1.3×: a cliff." in text
    assert row(text, "Tessera int8", "305", "100") == "| Tessera int8 | 305 | 100 | 33% | missed |"
    assert row(text, "decode, 1 user, 8-bit", "1.97×", "1.50×").endswith("| lower |")


def test_quality_stands_beside_the_settings() -> None:
    text = page(some_results(), "cpu.png", 0.03)
    assert row(text, "Tessera int8: int8 KV") == "| Tessera int8: int8 KV | – | 300 | 23.90 |"
    assert "- Tessera int8: decode-1: int8 KV; prefill-512: bf16 KV" in text
    assert row(text, "Tessera int8-kv8") == "| Tessera int8-kv8 | 23.90 | – | missed |"
    assert row(text, "Tessera int8", "23.70").endswith("| met |")


def test_a_quick_run_says_which_settings_it_had() -> None:
    results = some_results()
    results.models[SMALL].tuning = {"Tessera int8": {"bf16 KV": {}}}
    text = page(results, "cpu.png", 0.03)
    assert "better ones were not looked for.\n\n- Tessera int8: bf16 KV" in text


def test_every_sample_is_in_the_raw_numbers() -> None:
    text = page(some_results(), "cpu.png", 0.03)
    assert row(text, "llama.cpp Q8_0, decode-1") == "| llama.cpp Q8_0, decode-1 | 150.0 | 160.0 | 6% |"
    assert row(text, "read", "40.0", "42.0")
    assert row(text, "Tessera int8", "40.0", "62.0")


def test_nothing_measured_still_makes_a_page() -> None:
    text = page(Results("2026-11-20", "a machine", 2, models={SMALL: ModelResults("Small model")}), "cpu.png", 0.03)
    assert text.count("| not measured |") == 12


def test_results_survive_the_file(tmp_path: Path) -> None:
    save(some_results(), tmp_path / "results.json")
    assert load(tmp_path / "results.json") == some_results()


def test_tables_and_rates() -> None:
    assert table(["", "a"], [["x", "1"]]) == "|  | a |\n| --- | ---: |\n| x | 1 |"
    assert [rate(value) for value in (None, 12.34, 3456.7)] == ["–", "12.3", "3,457"]
