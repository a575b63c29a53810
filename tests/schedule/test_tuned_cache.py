"""The autotune cache: what is found there is used and marked as tuned, what is broken there is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tessera_compiler.schedule.passes.plan_tiles import Blocking, default_blocking, schedule_key
from tessera_compiler.schedule.tuned_cache import InvalidTuning, load_tuned, shipped_cache


def write(cache: Path, entries: object) -> None:
    (cache / "cpu").mkdir()
    (cache / "cpu" / "some.json").write_text(json.dumps(entries))


def test_entries_become_blockings(tmp_path: Path) -> None:
    key = schedule_key("x86-64-v4", "u8", 576, 1536)
    write(tmp_path, {key: [[1, 1, 64], [None, 6, 32]]})
    assert load_tuned(tmp_path, "cpu") == {key: (Blocking(1, 1, 4), Blocking(0, 6, 2))}


def test_a_missing_cache_is_empty(tmp_path: Path) -> None:
    assert load_tuned(tmp_path, "cpu") == {}


@pytest.mark.parametrize(
    "entries", [[], {"k": [[1, 1, 64]]}, {"k": []}, {"k": [[None, 0, 64]]}, {"k": [[None, 1, 24]]}]
)
def test_a_broken_file_is_named(tmp_path: Path, entries: object) -> None:
    write(tmp_path, entries)
    with pytest.raises(InvalidTuning, match="some.json"):
        load_tuned(tmp_path, "cpu")


def test_the_shipped_cache_is_there_and_sound() -> None:
    assert shipped_cache().is_dir()
    load_tuned(shipped_cache(), "cpu")


@pytest.mark.parametrize("outputs", [1, 16, 48, 100, 320, 576, 50257])
def test_default_blockings_cover_every_panel(outputs: int) -> None:
    for name in ("x86-64-v4", "x86-64-v3", "aarch64"):
        for element in ("f32", "bf16", "u8"):
            blockings = default_blocking(name, element, outputs)
            panels = -(-outputs // (64 if outputs > 256 else 16)) * (4 if outputs > 256 else 1)
            assert blockings[-1].max_tokens == 0
            assert all(panels % blocking.panels == 0 for blocking in blockings)
