"""transformers is followed as far as it comes, and never longer than it may."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import gpu_rival
from benchmarks.gpu_models import CONFIGS, TINY
from benchmarks.gpu_rival import Rival, Tried, best_of, time_transformers
from benchmarks.gpu_transformers import OWN, SETTINGS, Progress, Setting, Work, run, serve

LENGTHS = [(10, 20)] * 4
A_PROCESS = """
import json, sys, time
label = json.loads(sys.argv[1])["setting"]["label"]
def tell(**event): print(json.dumps(event), flush=True)
def at(seconds, done, tokens, event="progress", failed=None):
    tell(event=event, seconds=seconds, done=done, tokens=tokens, complete=done == 4, failed=failed)
if label == "breaks":
    raise OSError("no such thing")
tell(event="settings", attention="paged")
if label == "never ready":
    time.sleep(60)
tell(event="begin")
if label == "loses one":
    at(1, 1, 20, failed="request 2: out of memory")
at(1, 0, 10)
at(3, 0, 20 if label == "slow" else 40)
at(5, 2, 30 if label == "slow" else 60)
if label == "hangs":
    time.sleep(60)
at(6, 4, 80, "end")
"""


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same limits, sooner."""
    for name, value in {"START": 1.5, "LATE": 0.3, "SETTLED": 2.0, "TRIAL": 4.0}.items():
        monkeypatch.setattr(gpu_rival, f"{name}_SECONDS", value)


def tried(*labels: str, total: float = 100) -> list[Tried]:
    settings = [Setting(label) for label in labels]
    command = (sys.executable, "-c", A_PROCESS)
    return time_transformers({}, LENGTHS, 1, 0.3, total, settings, command=command)


def test_a_run_to_the_end_counts_as_such() -> None:
    (found,) = tried("all")
    assert (found.seconds, found.done, found.tokens, found.complete, found.note) == (6, 4, 80, True, "")
    assert found.facts == {"attention": "paged"}
    assert found.trial == 10


def test_one_that_hangs_is_ended_and_counts_with_what_it_had() -> None:
    began = time.perf_counter()
    (found,) = tried("hangs")
    assert time.perf_counter() - began < 30
    assert (found.done, found.tokens, found.complete) == (2, 60, False)
    assert found.note == "did not end by itself"
    assert 5.2 < found.seconds < 7


@pytest.mark.parametrize(
    ("label", "note"),
    [
        ("breaks", "OSError: no such thing"),
        ("never ready", "not ready within 2 s"),
        ("loses one", "request 2: out of memory"),
    ],
)
def test_one_that_fails_says_how(label: str, note: str) -> None:
    (found,) = tried(label)
    assert (found.note, found.complete) == (note, False)


def test_a_slower_setting_is_given_up_and_does_not_win() -> None:
    found = tried("all", "slow")
    assert [each.note for each in found] == ["", "slower than another: given up after 5 s"]
    assert best_of(found) is found[0]


def test_no_setting_is_begun_that_could_not_be_tried() -> None:
    assert [each.setting for each in tried("all", "slow", total=1)] == ["all"]


def test_the_best_is_the_fastest_of_those_that_went_on() -> None:
    given_up = Tried("given up", 10, 1, 1000, note="slower")
    whole, part = Tried("whole", 10, 4, 500, True), Tried("part", 10, 2, 600)
    assert best_of([given_up, whole, part]) is part
    assert best_of([given_up]) is given_up
    with pytest.raises(Rival, match="broken: no room"):
        best_of([Tried("broken", note="no room")])


def test_its_own_choice_comes_first_where_there_is_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert gpu_rival.settings_here()[-1] == OWN
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    assert gpu_rival.settings_here()[0] == OWN
    assert sorted(map(str, gpu_rival.settings_here())) == sorted(map(str, SETTINGS))


class Manager:
    """Generates a token of each of two requests at a time when it is asked for results."""

    def __init__(self, stops_after: int | None = None, failing: str | None = None) -> None:
        self.states: dict[str, SimpleNamespace] = {}
        self.left: dict[str, int] = {}
        self.calls = 0
        self._stops_after, self._failing = stops_after, failing
        self.batch_processor = SimpleNamespace(scheduler=SimpleNamespace(active_requests=self.states))

    def add_request(self, ids: Sequence[int], request_id: str, max_new_tokens: int) -> None:
        self.left[request_id] = max_new_tokens

    def is_running(self) -> bool:
        return self._stops_after is None or self.calls < self._stops_after

    def get_result(self, timeout: float) -> Any:
        self.calls += 1
        if not self.is_running():
            return None
        for name in list(self.left)[:2]:
            state = self.states.setdefault(name, SimpleNamespace(generated_tokens=[]))
            state.generated_tokens.append(1)
            if len(state.generated_tokens) == self.left[name]:
                del self.left[name], self.states[name]
                error = "out of memory" if name == self._failing else None
                tokens = list(state.generated_tokens)
                return SimpleNamespace(request_id=name, generated_tokens=tokens, error=error, is_finished=lambda: True)
        return None


def served(manager: Manager, seconds: float = 10, tell: Callable[[Progress], None] = lambda _: None) -> Progress:
    return serve(manager, [[1, 2]] * 3, [4, 5, 6], seconds, tell)


def test_all_tokens_are_counted() -> None:
    found = served(Manager())
    assert (found.done, found.tokens, found.complete, found.failed) == (3, 15, True, None)


def test_a_run_whose_time_is_up_counts_tokens_of_unfinished_requests() -> None:
    found = served(Manager(), seconds=-1)
    assert (found.done, found.tokens, found.complete, found.failed) == (0, 2, False, None)


def test_a_manager_that_stops_and_a_request_that_fails_are_failures() -> None:
    assert served(Manager(stops_after=3)).failed == "transformers stopped generating"
    found = served(Manager(failing="request 1"))
    assert (found.failed, found.complete) == ("request 1: out of memory", False)


def test_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu_transformers.TALK_SECONDS", 0)
    told: list[tuple[int, int]] = []
    served(Manager(), tell=lambda each: told.append((each.done, each.tokens)))
    assert told[0] == (0, 2)
    assert told[-1][0] == 2


def test_the_cache_holds_all_requests_of_a_step_and_no_more() -> None:
    options = Setting("", requests=64, step_tokens=256, graphs=True).options(2048)
    assert options["num_blocks"] == 64 * 9 * 6 / 5 + 0.8
    assert (options["max_batch_tokens"], options["use_cuda_graph"]) == (256, True)
    assert OWN.options(2048) == {"allow_block_sharing": False}


def test_transformers_itself_serves() -> None:
    events: list[dict[str, Any]] = []
    setting = {"label": "", "requests": 4, "step_tokens": 32, "graphs": None}
    lengths = [(5, 3), (40, 6), (7, 2)]
    run(Work(CONFIGS[TINY] | {"vocab_size": 300}, lengths, 1, setting, 60, "cpu"), events.append)
    assert [each["event"] for each in events if each["event"] != "progress"] == ["settings", "begin", "end"]
    assert (events[-1]["done"], events[-1]["tokens"], events[-1]["complete"]) == (3, 11, True)
