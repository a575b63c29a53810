"""The autotune cache: what is found there is used and marked as tuned, what is broken there is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tessera_compiler.schedule import tuned_cache
from tessera_compiler.schedule.passes.plan_tiles import Blocking, default_blocking, schedule_key
from tessera_compiler.schedule.tuned_cache import (
    InvalidTuning,
    TunedEntry,
    load_tuned,
    read_tuned,
    shipped_cache,
    tuned_text,
)

PRESENT = tuned_cache.KERNELS


@pytest.fixture(autouse=True)
def first_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries here are of the first kernels where they do not say."""
    monkeypatch.setattr(tuned_cache, "KERNELS", 1)


def write(cache: Path, entries: object) -> None:
    (cache / "cpu").mkdir()
    (cache / "cpu" / "some.json").write_text(json.dumps(entries))


def test_entries_become_blockings(tmp_path: Path) -> None:
    key = schedule_key("x86-64-v4", "u8", 576, 1536)
    write(tmp_path, {key: {"blockings": [[1, 1, 64], [None, 6, 32, 1]], "microseconds": {"1": 13.5}}})
    assert load_tuned(tmp_path, "cpu") == {key: (Blocking(1, 1, 4), Blocking(0, 6, 2, 1))}
    assert read_tuned(tmp_path / "cpu" / "some.json")[key].microseconds == {1: 13.5}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    entries = {
        schedule_key("x86-64-v4", "u8", outputs, 576, form): TunedEntry(
            (Blocking(1, 1, 4), Blocking(0, 6, 4)), {512: 1320.4, 1: 13.54}
        )
        for outputs, form in ((1536, "parts2-quantize64"), (576, "plain"), (3072, "peaks64"))
    }
    text = tuned_text(entries)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "x.json").write_text(text)
    assert tuned_text(read_tuned(tmp_path / "cpu" / "x.json")) == text
    assert load_tuned(tmp_path, "cpu") == {key: entry.blockings for key, entry in entries.items()}
    lines = text.splitlines()
    assert len(lines) == 5 and "/576x" in lines[1] and "/1536x" in lines[2] and "/3072x" in lines[3]
    assert '"microseconds": {"1": 13.5, "512": 1320.0}' in lines[1]


def test_what_was_measured_of_other_kernels_counts_as_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(outputs: int, **more: int) -> dict[str, object]:
        return {f"x86-64-v4/matmul/u8/{outputs}x1536/plain": {"blockings": [[None, 1, 64]], **more}}

    write(tmp_path, written(64) | written(128, kernels=1) | written(192, kernels=2))
    path = tmp_path / "cpu" / "some.json"
    assert [key.split("/")[3] for key in load_tuned(tmp_path, "cpu")] == ["64x1536", "128x1536"]
    assert tuned_text(read_tuned(path)).count('"kernels": 1') == 2
    monkeypatch.setattr(tuned_cache, "KERNELS", 2)
    assert [key.split("/")[3] for key in load_tuned(tmp_path, "cpu")] == ["192x1536"]
    assert tuned_text(read_tuned(path)).count('"kernels": 2') == 1


def test_a_missing_cache_is_empty(tmp_path: Path) -> None:
    assert load_tuned(tmp_path, "cpu") == {}


KEY = "x86-64-v4/matmul/u8/576x1536/plain"


@pytest.mark.parametrize(
    "entries",
    [
        [],
        {KEY: [[None, 1, 64]]},
        {KEY: {"blockings": []}},
        {KEY: {"blockings": [[1, 1, 64]]}},
        {KEY: {"blockings": [[None, 0, 64]]}},
        {KEY: {"blockings": [[None, 1, 24]]}},
        {KEY: {"blockings": [[None, 1, 80]]}},
        {KEY: {"blockings": [[None, 1]]}},
        {KEY: {"blockings": [[None, 1, 64, 0, 0]]}},
        {KEY: {"blockings": [[None, True, 64]]}},
        {KEY: {"blockings": [[8, 1, 64], [4, 4, 64], [None, 6, 64]]}},
        {KEY: {"blockings": [[None, 1, 64], [None, 6, 64]]}},
        {KEY: {"blockings": [[None, 1, 64]], "microseconds": {"one": 1}}},
        {KEY: {"blockings": [[None, 1, 64]], "kernels": "new"}},
        {"x86-64-v4/matmul/u8/576x1536/parts2": {"blockings": [[None, 1, 64]]}},
        {"x86-64-v4/matmul/u8/576x1536/quantize64": {"blockings": [[None, 1, 32]]}},
        {"some/key": {"blockings": [[None, 1, 64]]}},
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, entries: object) -> None:
    write(tmp_path, entries)
    with pytest.raises(InvalidTuning, match="some.json"):
        load_tuned(tmp_path, "cpu")


def test_the_shipped_cache_is_there_sound_and_of_the_present_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned_cache, "KERNELS", PRESENT)
    assert shipped_cache().is_dir()
    assert load_tuned(shipped_cache(), "cpu")


@pytest.mark.parametrize("outputs", [1, 16, 48, 100, 320, 576, 50257])
def test_default_blockings_cover_every_panel(outputs: int) -> None:
    for name in ("x86-64-v4", "x86-64-v3", "aarch64"):
        for element in ("f32", "bf16", "u8", "u4"):
            panels = -(-outputs // (64 if outputs > 256 else 16)) * (4 if outputs > 256 else 1)
            blockings = default_blocking(name, element, panels)
            assert blockings[-1].max_tokens == 0
            assert all(panels % blocking.panels == 0 for blocking in blockings)
