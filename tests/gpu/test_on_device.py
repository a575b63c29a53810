"""What only a GPU can show: `pytest -m gpu`. With `--gpu-programs`, neither compiler nor Triton has to be there.

The model is tiny and its weights are random: a wrong stride, a missing barrier or a sum in another order shows there as
well as anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_gpu_executor import batch_of

from benchmarks.gpu_models import TINY, GpuModel, RandomSource, prepare
from tessera_runtime.executor.drawing import GREEDY, LOGPROBS, idle_draws
from tessera_runtime.executor.gpu.executor import GpuExecutor
from tessera_runtime.executor.gpu.opening import open_driver
from tessera_runtime.executor.gpu.targets import FAMILIES
from tessera_runtime.executor.interface import StepBatch
from tessera_runtime.sampling.logprobs import token_logprobs
from tessera_runtime.sampling.parameters import SamplingParameters
from tessera_runtime.sampling.sampler import sample
from tessera_runtime.sampling.sequence import SampledSequence

pytestmark = pytest.mark.gpu
DTYPES = ("bf16", "fp16", "int8", "int4", "fp8")
WHOLE_WEIGHTS = {"bf16": 0.03, "fp16": 0.01}
"""Weights that random bits are, and how far logits may be from those of float32."""
SEED = 5
BLOCKS = 200


def family() -> str:
    for name in FAMILIES:
        try:
            driver = open_driver(name)
        except Exception as error:
            reason = error
        else:
            driver.close()
            return name
    raise reason


@pytest.fixture(scope="module", params=DTYPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GpuModel:
    given = request.config.getoption("--gpu-programs")
    if given:
        return GpuModel.read(Path(given) / request.param / TINY)
    driver = open_driver(family())
    target = f"{driver.device.family}-{driver.device.architecture}"
    driver.close()
    folder = tmp_path_factory.mktemp("programs") / request.param
    prepare(TINY, target, folder, request.param)
    return GpuModel.read(folder / TINY)


def opened(model: GpuModel) -> GpuExecutor:
    executor = GpuExecutor(open_driver(family()), model.program, model.folder, RandomSource(model, SEED))
    executor.allocate_cache(BLOCKS)
    executor.allocate_seats(32)
    return executor


@pytest.fixture(scope="module")
def executor(model: GpuModel) -> Iterator[GpuExecutor]:
    with opened(model) as made:
        yield made


def tokens_of(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 1000, length).tolist()


def blocks_for(model: GpuModel, first: int, positions: int) -> list[int]:
    return list(range(first, first + -(-positions // model.program.cache.block_tokens)))


def alone(model: GpuModel, tokens: list[int], first: int = 0) -> StepBatch:
    return batch_of([(0, tokens, blocks_for(model, first, len(tokens)))], every_row=True)


def reference(model: GpuModel, tokens: list[int]) -> NDArray[np.float32]:
    """The same weights in transformers, in float32 on the host."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model.config), dtype=torch.float32).eval()
    state = theirs.state_dict()
    source = RandomSource(model, SEED)
    recipes = json.loads((model.folder / "recipes.json").read_text(encoding="utf-8"))
    for entry in model.raw["weights"]:
        raw = np.empty(entry["bytes"], np.uint8)
        source.read_into(raw, entry["name"], 0)
        values = raw.view(np.float32) if entry["dtype"] == "f32" else raw
        if entry["dtype"] == "bf16":
            values = (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        elif entry["dtype"] == "f16":
            values = raw.view(np.float16).astype(np.float32)
        shape = entry["shape"]
        # Rows are padded to 16 elements, and there may be more of them than the model has.
        padded = -(-shape[-1] // 16) * 16 if len(shape) == 2 else len(values)
        values = values.reshape(-1, padded)[: shape[0] if len(shape) == 2 else 1, : shape[-1]]
        done = 0
        for name in recipes[entry["name"]]:  # constants have no source
            target = state[name]
            count = target.shape[0] if target.ndim == 2 else 1
            target.copy_(torch.from_numpy(np.ascontiguousarray(values[done : done + count])).reshape(target.shape))
            done += count
    with torch.no_grad():
        return np.asarray(theirs(torch.tensor([tokens])).logits[0].numpy())


def test_logits_are_those_of_transformers(model: GpuModel, executor: GpuExecutor) -> None:
    tokens = tokens_of(1, 200)
    dtype = model.folder.parent.name
    found = executor.step(alone(model, tokens))
    assert np.isfinite(found).all()
    if dtype in WHOLE_WEIGHTS:
        expected = reference(model, tokens)
        error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        most = WHOLE_WEIGHTS[dtype]
        assert float(error.max()) < most, f"should stay within {most} of float32; the worst row is off by {error.max()}"


def test_nothing_beside_a_sequence_changes_its_bits(model: GpuModel, executor: GpuExecutor) -> None:
    tokens = tokens_of(2, 700)
    whole = executor.step(alone(model, tokens))
    for cut in (1, 17, 64, 513):
        parts = [tokens[:cut], tokens[cut:]]
        places = blocks_for(model, 20, len(tokens))
        first = executor.step(batch_of([(0, parts[0], places)], every_row=True))
        second = executor.step(batch_of([(cut, parts[1], places)], every_row=True))
        np.testing.assert_array_equal(np.concatenate([first, second]), whole, err_msg=f"cut at {cut}")
    others = [(0, tokens_of(10 + n, 3 + 40 * n), blocks_for(model, 40 + 4 * n, 3 + 40 * n)) for n in range(5)]
    crowded = executor.step(batch_of([*others, (0, tokens, blocks_for(model, 80, len(tokens)))], every_row=True))
    np.testing.assert_array_equal(crowded[-len(tokens) :], whole)


def test_decoding_gives_the_bits_of_the_prompt_whatever_the_batch(model: GpuModel, executor: GpuExecutor) -> None:
    tokens = tokens_of(3, 90)
    whole = executor.step(alone(model, tokens))
    for users in (1, 2, 5, 16, 31):
        size = len(blocks_for(model, 0, len(tokens)))
        for position in range(60, 64):
            parts = [
                (position, [tokens[position]], blocks_for(model, user * size, position + 1)) for user in range(users)
            ]
            if position == 60:
                for user in range(users):
                    executor.step(batch_of([(0, tokens[:60], blocks_for(model, user * size, 60))]))
            found = executor.step(batch_of(parts))
            for row in found:
                np.testing.assert_array_equal(row, whole[position], err_msg=f"{users} users, position {position}")


def test_a_restart_changes_nothing(model: GpuModel, executor: GpuExecutor) -> None:
    batch = alone(model, tokens_of(4, 150))
    before = executor.step(batch)
    with opened(model) as again:
        np.testing.assert_array_equal(again.step(batch), before)


def test_graphs_give_the_bits_of_launches(model: GpuModel, executor: GpuExecutor) -> None:
    batch = alone(model, tokens_of(6, 33))
    runs = [executor.step(batch) for _ in range(4)]
    for run in runs[1:]:
        np.testing.assert_array_equal(run, runs[0])


def test_tokens_drawn_on_the_device_are_the_likeliest(model: GpuModel, executor: GpuExecutor) -> None:
    assert executor.draws, "the program leaves drawing to the host"
    tokens = tokens_of(7, 20)
    batch = batch_of([(0, tokens, blocks_for(model, 0, 40))])
    expected = executor.step(batch).argmax(axis=1)
    draws = idle_draws(1)
    draws["seat"] = 3
    first = executor.submit(batch, draws)
    second = executor.submit(batch_of([(20, [-4], blocks_for(model, 0, 40))]), draws)
    token = executor.collect(first).ids
    np.testing.assert_array_equal(token, expected)
    known = batch_of([(20, token.tolist(), blocks_for(model, 0, 40))])
    assert executor.collect(second).ids[0] == executor.step(known).argmax()


class Fixed(SampledSequence):
    """A sequence whose next random number is given."""

    def __init__(self, parameters: SamplingParameters, uniform: float) -> None:
        super().__init__(parameters)
        self._uniform = uniform

    def draw(self, ahead: int = 0) -> float:
        return self._uniform


def test_tokens_drawn_on_the_device_are_those_of_the_sampler(model: GpuModel, executor: GpuExecutor) -> None:
    """The same logits, draws and seats, once on the host and once on the device."""
    random = np.random.default_rng(11)
    rows = 16
    batch = batch_of([(0, tokens_of(20 + row, 9), blocks_for(model, row, 9)) for row in range(rows)])
    logits = executor.step(batch)
    for chosen in (
        *({}, {"temperature": 0.5}, {"top_k": 7}, {"top_p": 0.9}, {"min_p": 0.1}),
        *({"top_k": 40, "top_p": 0.8, "min_p": 0.02, "temperature": 2.0}, {"logit_bias": {3: 5.0, 7: -100.0}}),
    ):
        draws = idle_draws(rows)
        draws["seat"], draws["flags"], draws["top"] = np.arange(rows), LOGPROBS, 5
        draws["uniform"] = random.random(rows)
        biases = chosen.get("logit_bias", {})
        for name, value in chosen.items():
            if name != "logit_bias":
                draws[name] = value
        if biases:
            draws["flags"] |= 4
            draws["biases"] = len(biases)
            for row in range(rows):
                executor.begin_seat(row, None, list(biases.items()))
        fields = {name: float(draws[name][0]) for name in ("temperature", "top_p", "min_p")}
        parameters = SamplingParameters(**fields, top_k=int(draws["top_k"][0]), logit_bias=biases)
        drawn = executor.collect(executor.submit(batch, draws))
        expected = sample(logits, [Fixed(parameters, float(each)) for each in draws["uniform"]])
        np.testing.assert_array_equal(drawn.ids, expected, err_msg=str(chosen))
        value, likeliest = drawn.logprob(0, 5)
        wanted, wanted_likeliest = token_logprobs(logits[0], int(drawn.ids[0]), 5)
        assert abs(value - wanted) < 1e-5
        assert [token for token, _ in likeliest] == [token for token, _ in wanted_likeliest]
    draws["flags"] = GREEDY | LOGPROBS
    np.testing.assert_array_equal(executor.collect(executor.submit(batch, draws)).ids, logits.argmax(axis=1))
