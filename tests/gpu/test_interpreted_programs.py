"""A compiled model on the shared executor, end to end, against transformers: the tests of a GPU, without one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from interpreted import prepared
from test_gpu_executor import batch_of
from test_on_device import SEED, alone, blocks_for, reference, tokens_of

from benchmarks.gpu_models import TINY, GpuModel, RandomSource
from tessera_runtime.engine.core import EngineCore, EngineLimits
from tessera_runtime.engine.pipeline import PipelinedCore, open_core
from tessera_runtime.engine.protocol import Submit
from tessera_runtime.executor.gpu.executor import GpuExecutor
from tessera_runtime.sampling.parameters import SamplingParameters

pytestmark = pytest.mark.slow
Opened = tuple[GpuModel, GpuExecutor]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    with pytest.MonkeyPatch.context() as patch:
        model, driver = prepared(TINY, "cuda-sm90", tmp_path_factory.mktemp("programs"), patch)
    with GpuExecutor(driver(), model.program, model.folder, RandomSource(model, SEED)) as executor:
        executor.allocate_cache(12)
        yield model, executor


def test_logits_are_those_of_transformers(opened: Opened) -> None:
    model, executor = opened
    tokens = tokens_of(1, 70)
    expected = reference(model, tokens)
    found = executor.step(alone(model, tokens, 3))
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert float(error.max()) < 0.03


def test_chunks_and_decoding_are_near_the_whole(opened: Opened) -> None:
    """Near only: the interpreter adds in whatever order NumPy likes."""
    model, executor = opened
    tokens = tokens_of(2, 70)
    whole = executor.step(alone(model, tokens))
    places = blocks_for(model, 5, 70)
    executor.step(batch_of([(0, tokens[:66], places)]))
    found = [executor.step(batch_of([(66, tokens[66:68], places), (0, tokens[:3], [9])], every_row=True))[:2]]
    found += [executor.step(batch_of([(at, [tokens[at]], places)])) for at in (68, 69)]
    np.testing.assert_allclose(np.concatenate(found), whole[66:], atol=0.02 * float(np.abs(whole).max()))


def test_greedy_answers_are_those_of_the_host(opened: Opened) -> None:
    """The pipelined engine, whose tokens never leave the device, and the engine that reads every logit."""
    _, executor = opened
    limits = EngineLimits(max_batch_tokens=64, max_sequences=4, max_model_len=64, cache_blocks=12, lane_seats=(4, 4, 4))
    answers = []
    for core in (EngineCore(executor, limits), open_core(executor, limits)):
        found: dict[str, list[int]] = {"a": [], "b": []}
        for name, prompt, most in (("a", tokens_of(3, 20), 4), ("b", tokens_of(4, 3), 3)):
            sampling = SamplingParameters(temperature=0)
            core.submit(Submit(request_id=name, prompt_ids=prompt, max_tokens=most, sampling=sampling))
        while core.has_work:
            for output in core.step():
                assert output.error is None
                found[output.request_id] += output.ids
        answers.append(found)
    assert isinstance(core, PipelinedCore)
    assert answers[0] == answers[1] and [len(each) for each in answers[0].values()] == [4, 3]
