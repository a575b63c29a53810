"""Prompts that no engine can remember."""

from __future__ import annotations

import pytest

from benchmarks.cpu.drivers.protocol import prompts as from_job
from benchmarks.cpu.run import prompts
from benchmarks.cpu.work import ALL


class Letters:
    """A tokenizer of letters."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(letter) for letter in text]


def test_there_is_one_for_every_user_and_for_every_time_that_one_is_computed() -> None:
    found = prompts(Letters())  # type: ignore[arg-type]
    for work in ALL:
        wanted = 1 + work.repeats if work.prefill else work.users
        assert len(found[work.prompt]) >= wanted
    for length, texts in found.items():
        assert {len(text) for text in texts} == {length}
        assert len({tuple(text[:8]) for text in texts}) == len(texts), "no two begin alike"


def test_a_job_without_enough_of_them_is_refused() -> None:
    job = {"prompts": {"4": [[1, 2, 3, 4]]}}
    assert from_job(job, 4, 1) == [[1, 2, 3, 4]]
    with pytest.raises(SystemExit, match="2 prompts of 4 tokens are needed, and the job has 1"):
        from_job(job, 4, 2)
