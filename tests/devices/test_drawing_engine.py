"""A model whose tokens are drawn on the device, all of it interpreted, against the engine that draws on the host."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interpreting import ELEMENTS, run_source

HERE = Path(__file__).resolve().parent
for folder in ("gpu", "engine"):
    sys.path.insert(0, str(HERE.parent / folder))

from interpreted import prepared  # noqa: E402

from benchmarks.gpu_models import TINY, RandomSource  # noqa: E402
from tessera_compiler.targets.triton.emission import Source  # noqa: E402
from tessera_runtime.engine.core import EngineCore, EngineLimits  # noqa: E402
from tessera_runtime.engine.pipeline import PipelinedCore, open_core  # noqa: E402
from tessera_runtime.engine.protocol import Submit, TokenLogprob  # noqa: E402
from tessera_runtime.executor.gpu.executor import GpuExecutor  # noqa: E402
from tessera_runtime.sampling.parameters import SamplingParameters  # noqa: E402

REQUESTS = [
    Submit(
        request_id="a",
        prompt_ids=[5, 6, 7, 8, 9],
        max_tokens=3,
        sampling=SamplingParameters(top_p=0.5, temperature=0.25, seed=1),
        logprobs=3,
    ),
    Submit(
        request_id="b",
        prompt_ids=[500, 600],
        max_tokens=4,
        sampling=SamplingParameters(
            top_k=50, repetition_penalty=1.5, frequency_penalty=0.5, logit_bias={7: 5.0, 500: 2.0}, seed=2
        ),
    ),
    Submit(request_id="c", prompt_ids=[1, 2, 3], max_tokens=3, sampling=SamplingParameters(min_p=0.25, seed=3)),
    Submit(request_id="d", prompt_ids=[4, 4], max_tokens=3, sampling=SamplingParameters(temperature=0), logprobs=2),
]


def by_hand(folder: Path) -> Callable[[Source], Callable[..., None]]:
    """Runs a source on the device's memory, of which it may reach what was allocated."""

    def action(source: Source) -> Callable[..., None]:
        def run(memory: Any, values: list[int], grid: tuple[int, int, int]) -> None:
            arrays = []
            for (name, kind), address in zip(source.signature, values, strict=False):
                size = memory.room(address) // 8 * 8
                arrays.append(memory.view(address, size, name).view(ELEMENTS[kind]))
            run_source(source, arrays, grid, folder)

        return run

    return action


def answers(core: EngineCore) -> tuple[dict[str, list[int]], dict[str, list[TokenLogprob]]]:
    ids: dict[str, list[int]] = {each.request_id: [] for each in REQUESTS}
    logprobs: dict[str, list[TokenLogprob]] = {each.request_id: [] for each in REQUESTS}
    for each in REQUESTS:
        core.submit(each)
    while core.has_work:
        for output in core.step():
            assert output.error is None, output.error
            ids[output.request_id] += output.ids
            logprobs[output.request_id] += output.logprobs
    return ids, logprobs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_answers_are_those_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, driver = prepared(TINY, "cuda-sm80", tmp_path, monkeypatch, by_hand(tmp_path))
    limits = EngineLimits(max_batch_tokens=64, max_sequences=4, max_model_len=64, cache_blocks=12, lane_seats=(4, 4, 4))
    with GpuExecutor(driver(), model.program, model.folder, RandomSource(model, 5)) as executor:
        executor.allocate_cache(12)
        core = open_core(executor, limits)
        assert isinstance(core, PipelinedCore)
        ids, logprobs = answers(core)
        wanted, wanted_logprobs = answers(EngineCore(executor, limits))
    assert ids == wanted and [len(each) for each in ids.values()] == [each.max_tokens for each in REQUESTS]
    for name, found in logprobs.items():
        for mine, theirs in zip(found, wanted_logprobs[name], strict=True):
            assert mine.token_id == theirs.token_id
            assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]
            np.testing.assert_allclose(mine.logprob, theirs.logprob, rtol=1e-5)
