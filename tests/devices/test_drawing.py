"""Tokens that a device draws, by its kernels in Triton's interpreter, against the sampler of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing_machine import Array, DrawingMachine, SeatMemory, drawn_by_host, set_flags
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tessera_compiler.targets.triton.drawing.layout import DrawingLayout
from tessera_runtime.executor.drawing import GREEDY, IN_PROMPT, LOGPROBS, MOST_COUNTED, idle_draws
from tessera_runtime.sampling.logprobs import token_logprobs

INFINITY = float("inf")
NARROW = 1e-6
"""Of the whole: how near to the border of a token or of the nucleus the host, which adds in float32, may be wrong."""
LAST = 1.0 - 2.0**-53


def layout_of(vocabulary: int, **fields: int) -> DrawingLayout:
    # Rows that are a little longer than the vocabulary, as buffers have them.
    stride = -(-vocabulary // 16) * 16
    return DrawingLayout(vocabulary, stride, **{"chunk": 64, "list_length": 64, "lists": 8, "bins": 32, **fields})


def draws_of(*rows: dict[str, Any]) -> Array:
    draws = idle_draws(len(rows))
    draws["flags"] = 0
    for number, row in enumerate(rows):
        draws["seat"][number] = number
        for name, value in row.items():
            draws[name][number] = value
    return draws


def is_near(token: int, row: Array, draw: Array, memory: SeatMemory) -> bool:
    """Whether the host draws tokens before and behind it, or it, a hair beside the draw: tokens are drawn in order."""
    for factor in (1.0, 1.0 - NARROW, 1.0 + NARROW):
        ends = []
        for shift in (-NARROW, NARROW):
            other = draw.copy()
            other["top_p"] = min(draw["top_p"] * factor, 1.0) if draw["top_p"] < 1.0 else 1.0
            other["uniform"] = min(max(float(draw["uniform"]) + shift, 0.0), LAST)
            ends.append(drawn_by_host(row, other, memory))
        # In float32 the sum of all may be less than that of the parts, and then the host never comes to the last.
        last = ends[1] if draw["uniform"] < 1.0 - NARROW else len(row)
        if 0 <= ends[0] <= token <= last:
            return True
    return False


VALUES = st.lists(
    st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, 20.0, -INFINITY, -30.0, 3.0e38, -3.0e38]),
        st.floats(-40, 40, width=32),
    ),
    min_size=1,
    max_size=6,
)
ROWS = st.fixed_dictionaries(
    {
        "values": VALUES,
        "spread": st.sampled_from([0.0, 0.0, 0.001, 0.3, 1.0, 4.0]),
        "wrong": st.sampled_from([None] * 8 + [float("nan"), INFINITY]),
        "seed": st.integers(0, 99),
        "draw": st.fixed_dictionaries(
            {
                "temperature": st.sampled_from([1e-6, 0.01, 0.7, 1.0, 1.0, 2.0]),
                "top_k": st.sampled_from([0, 0, 0, 1, 2, 7, 40, 69, 70, 1000]),
                "top_p": st.sampled_from([1.0, 1.0, 1e-7, 0.3, 0.5, 0.9, 0.99999]),
                "min_p": st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
                "repetition_penalty": st.sampled_from([1.0, 1.3, 0.5]),
                "frequency_penalty": st.sampled_from([0.0, 0.4, -0.5]),
                "presence_penalty": st.sampled_from([0.0, 0.7]),
                "uniform": st.one_of(st.sampled_from([0.0, 0.5, LAST]), st.floats(0, LAST)),
                "top": st.sampled_from([0, 3, 20]),
            }
        ),
        "flags": st.sampled_from([0, 0, 0, 2, 4, 8, 14, 16, 30, 31, 17, 7]),
    }
)


def made(vocabulary: int, given: dict[str, Any]) -> tuple[Array, SeatMemory]:
    random = np.random.default_rng(given["seed"])
    row = random.choice(np.array(given["values"], np.float32), vocabulary)
    row = row + given["spread"] * random.standard_normal(vocabulary)
    # The device takes logits for equal that are nearer than this to each other and far from the highest.
    row = (np.round(row * 4096) / 4096).astype(np.float32)
    if given["wrong"] is not None:
        row[random.integers(vocabulary)] = given["wrong"]
    counts = random.choice(np.array([0, 0, 0, 1, 5, IN_PROMPT, IN_PROMPT | 2], np.int16), vocabulary)
    some = random.permutation(vocabulary)[:5].tolist()
    biases = dict(zip(some, random.choice([-100.0, -1.5, 3.0, 100.0], 5).tolist(), strict=True))
    return row, SeatMemory(counts, biases, random.random(vocabulary) < random.choice([0.02, 0.5]))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    vocabulary=st.sampled_from([17, 64, 70, 130]),
    rows=st.lists(ROWS, min_size=2, max_size=4),
    list_length=st.sampled_from([8, 16, 64]),
    lists=st.sampled_from([1, 8]),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_tokens_are_those_of_the_host(
    tmp_path: Path, vocabulary: int, rows: list[dict[str, Any]], list_length: int, lists: int
) -> None:
    machine = DrawingMachine(layout_of(vocabulary, list_length=list_length, lists=lists), tmp_path)
    logits, memories = zip(*(made(vocabulary, row) for row in rows), strict=True)
    draws = draws_of(*({**row["draw"], "flags": row["flags"]} for row in rows))
    for number, memory in enumerate(memories):
        set_flags(draws[number : number + 1], memory)
        machine.begin(number, memory)
    before = machine.counts.copy()
    drawn = machine.draw(np.stack(logits), draws)
    for number, (row, memory) in enumerate(zip(logits, memories, strict=True)):
        token, draw = int(drawn.ids[number]), draws[number]
        assert token == drawn_by_host(row, draw, memory) or is_near(token, row, draw, memory)
        assert machine.feedback[number, 0] == token
        added = machine.counts[number] - before[number]
        assert added.sum() == (1 if draw["flags"] & 2 and token >= 0 else 0)
        assert token < 0 or added[token] == added.sum()
        if draw["flags"] & LOGPROBS and token >= 0 and np.isfinite(row.max()):
            check_logprobs(row, token, min(int(draw["top"]), vocabulary), drawn, number)


def check_logprobs(row: Array, token: int, top: int, drawn: Any, number: int) -> None:
    value, likeliest = drawn.logprob(number, top)
    wanted, wanted_likeliest = token_logprobs(row, token, top)
    assert [each for each, _ in likeliest] == [each for each, _ in wanted_likeliest]
    # The device reports float32, in which some are infinite.
    found = [value, *(each for _, each in likeliest)]
    with np.errstate(over="ignore"):
        expected = np.array([wanted, *(each for _, each in wanted_likeliest)]).astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


EXACT: list[tuple[list[float], dict[str, Any]]] = [
    ([1.0] * 8, {"top_p": 0.5}),
    ([1.0] * 8, {"top_k": 3}),
    ([1.0] * 8, {"top_k": 6, "top_p": 0.5}),
    ([0.0, 5.0, 5.0, 0.0, 5.0, 5.0], {"top_k": 3, "top_p": 0.3}),
    ([0.0, 5.0, 5.0, 0.0, 5.0, 5.0], {"top_k": 1}),
    ([0.0, 5.0, 5.0, 0.0, 5.0, 5.0], {"min_p": 1.0}),
    ([0.0, 5.0, 5.0, 0.0, 5.0, 5.0], {"top_p": 1e-9}),
    ([0.0, 5.0, 5.0, 0.0, 5.0, 5.0], {"temperature": 1e-6}),
    ([0.0, 5.0, 5.0, 0.0, 5.0, 5.0], {"temperature": 1e-6, "top_k": 5, "top_p": 0.6, "min_p": 0.9}),
]


@pytest.mark.parametrize("lists", [0, 8])
def test_of_equal_tokens_the_first_are_kept(tmp_path: Path, lists: int) -> None:
    """With weights that are powers of two or nothing nobody rounds, so every token is exactly the host's."""
    vocabulary = 70
    machine = DrawingMachine(layout_of(vocabulary, lists=lists), tmp_path)
    for values, draw in EXACT:
        row = np.full(vocabulary, -INFINITY, np.float32)
        row[np.linspace(3, 69, len(values)).astype(int)] = values
        draws = draws_of(*({**draw, "uniform": uniform} for uniform in (0.0, 0.3, 0.5, LAST)))
        found = machine.draw(np.stack([row] * 4), draws).ids
        np.testing.assert_array_equal(found, [drawn_by_host(row, each, SeatMemory()) for each in draws], str(draw))


@pytest.mark.parametrize("step", [0.5, 0.6])
def test_the_last_token_that_is_kept_is_listed(tmp_path: Path, step: float) -> None:
    """Likelier tokens first, at the upper ends of their levels or not, so the last of the kept has the highest id."""
    machine = DrawingMachine(layout_of(70), tmp_path)
    row = (np.arange(70) * -step).astype(np.float32)
    chosen = [{"top_k": k} for k in (1, 2, 3, 9)] + [{"top_p": p} for p in (0.3, 0.6, 0.9, 0.99, 0.9999)]
    draws = draws_of(*({**each, "uniform": LAST} for each in chosen))
    draws["seat"] %= 4
    found = machine.draw(np.stack([row] * len(draws)), draws).ids
    np.testing.assert_array_equal(found, [drawn_by_host(row, each, SeatMemory()) for each in draws])


WAYS: list[tuple[float, dict[str, Any], str]] = [
    (1.0, {"top_p": 0.95}, "narrowed listed"),
    (0.2, {"top_p": 0.9, "min_p": 0.9}, "narrowed listed"),
    (1.0, {"top_k": 100}, "narrowed listed"),
    (0.2, {"top_p": 0.9, "top_k": 10, "min_p": 0.9}, "narrowed listed"),
    (1.0, {"top_p": 0.9, "top_k": 99}, "narrowed read"),
    (1.0, {"top_k": 10}, "listed"),
    (3.0, {"top_p": 0.7, "top_k": 20}, "listed"),
    (0.0, {"top_p": 0.7}, "narrowed read"),
    (0.0, {"top_k": 77, "top_p": 0.6}, "narrowed read"),
]
"""How far logits spread, the filters, and how the kernels find what these keep."""


def test_many_possible_tokens_are_narrowed_down(tmp_path: Path) -> None:
    """The same tokens and log-probabilities as where all of a row is listed."""
    vocabulary, random = 200, np.random.default_rng(4)
    logits = np.stack([random.standard_normal(vocabulary).astype(np.float32) * np.float32(each[0]) for each in WAYS])
    draws = draws_of(*({"flags": LOGPROBS, "top": 2, **each[1]} for each in WAYS))
    draws["seat"] %= 4
    draws["uniform"] = np.where(np.arange(len(WAYS)) % 2, 0.4, LAST)
    many = DrawingMachine(layout_of(vocabulary, chunk=32, list_length=32, lists=len(WAYS), bins=128), tmp_path)
    whole = DrawingMachine(layout_of(vocabulary, chunk=256, list_length=256, lists=len(WAYS)), tmp_path)
    drawn, wanted = many.draw(logits, draws), whole.draw(logits, draws)
    assert many.ways() == [each[2] for each in WAYS] and set(whole.ways()) == {"listed"}
    np.testing.assert_array_equal(drawn.ids, wanted.ids)
    assert drawn.logprobs is not None and wanted.logprobs is not None
    np.testing.assert_array_equal(drawn.logprobs[:, :3], wanted.logprobs[:, :3])
    for row, draw, token in zip(logits, draws, drawn.ids.tolist(), strict=True):
        assert token == drawn_by_host(row, draw, SeatMemory()) or is_near(token, row, draw, SeatMemory())


def test_rows_from_which_nothing_can_be_drawn(tmp_path: Path) -> None:
    vocabulary = 70
    machine = DrawingMachine(layout_of(vocabulary), tmp_path)
    rows = np.zeros((4, vocabulary), np.float32)
    rows[0, 69] = np.nan
    rows[1, 3] = INFINITY
    rows[2] = -INFINITY
    machine.begin(3, SeatMemory(allowed=np.zeros(vocabulary, bool)))
    for others in ({}, {"top_k": 5}, {"top_p": 0.5, "flags": 16}, {"flags": GREEDY | LOGPROBS}):
        draws = draws_of(*[others] * 4)
        draws["flags"][3] |= 8
        assert machine.draw(rows, draws).ids.tolist() == [-1] * 4
        assert machine.feedback[:, 0].tolist() == [-1] * 4


def test_padding_is_left_alone(tmp_path: Path) -> None:
    machine = DrawingMachine(layout_of(40), tmp_path)
    draws = draws_of({"top_k": 3}, {"flags": GREEDY}, {})
    draws["seat"] = -1
    assert machine.draw(np.zeros((3, 40), np.float32), draws).ids.tolist() == [1234] * 3
    assert (machine.feedback == 77).all()


def test_counts_stay_within_their_bits(tmp_path: Path) -> None:
    machine = DrawingMachine(layout_of(40), tmp_path)
    counts = np.zeros(40, np.int16)
    counts[7], counts[8] = MOST_COUNTED, np.int16(MOST_COUNTED) | IN_PROMPT
    for token in (7, 8):
        machine.begin(0, SeatMemory(counts))
        row = np.full((1, 40), -INFINITY, np.float32)
        row[0, token] = 1.0
        assert machine.draw(row, draws_of({"flags": 2})).ids.tolist() == [token]
        np.testing.assert_array_equal(machine.counts[0, :40], counts)


def test_a_row_is_drawn_alike_whatever_is_beside_it_and_however_it_is_read(tmp_path: Path) -> None:
    vocabulary, random = 300, np.random.default_rng(3)
    row = (random.standard_normal(vocabulary) * 2).astype(np.float32)
    found = set()
    for fields in ({}, {"chunk": 256}, {"list_length": 8}, {"lists": 1}, {"chunk": 16, "list_length": 16}):
        machine = DrawingMachine(layout_of(vocabulary, **fields), tmp_path)
        for rows in (1, 3):
            logits = np.stack([*random.standard_normal((rows - 1, vocabulary)).astype(np.float32), row])
            draw = {"top_p": 0.93, "min_p": 0.01, "uniform": 0.777, "flags": LOGPROBS, "top": 4}
            drawn = machine.draw(logits, draws_of(*[draw] * rows))
            found.add((int(drawn.ids[-1]), drawn.logprobs[-1, [0, 1, 2, 3, 4, 21, 22, 23, 24]].tobytes()))
    assert len(found) == 1


@example(values=[float("nan"), 1.0], draw_rows=2)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=VALUES, draw_rows=st.integers(1, 3))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_highest_logit_is_that_of_the_host(tmp_path: Path, values: list[float], draw_rows: int) -> None:
    """`drawing.greedy`, which is Tile IR, in both interpreters."""
    for vocabulary in (40, 64, 150):
        random = np.random.default_rng(len(values))
        logits = random.choice(np.array(values, np.float32), (draw_rows, vocabulary))
        draws = draws_of(*[{"flags": GREEDY}] * draw_rows)
        wanted = [drawn_by_host(row, draw, SeatMemory()) for row, draw in zip(logits, draws, strict=True)]
        machine = DrawingMachine(layout_of(vocabulary), tmp_path)
        for in_triton in (False, True):
            assert machine.greedy(logits, draws, in_triton=in_triton).tolist() == wanted
            assert machine.feedback[:draw_rows, 0].tolist() == wanted
        draws["seat"] = -1
        assert machine.greedy(logits, draws, in_triton=True).tolist() == [1234] * draw_rows
