"""Requests through transformers' continuous batching: `python -m benchmarks.gpu_transformers WORK` (`Work` as JSON).

Prints what became of them as lines of JSON, until all are done or the time is up, and ends by itself in any case.
`gpu_rival` starts it, one process for each of `SETTINGS`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

TALK_SECONDS = 0.5
STOP_SECONDS = 10.0
BLOCK_TOKENS = 256
"""Of transformers' cache, by default."""


@dataclass(frozen=True)
class Setting:
    """How transformers is asked to serve."""

    label: str
    requests: int | None = None
    """In one step; None leaves all of this to transformers, as the rest of these."""
    step_tokens: int | None = None
    graphs: bool | None = None

    def options(self, longest: int) -> dict[str, Any]:
        """Of transformers' `ContinuousBatchingConfig`; `longest` is a request's prompt and answer together."""
        # No two prompts begin alike, and looking for what they share takes time.
        chosen: dict[str, Any] = {"allow_block_sharing": False}
        if self.requests is not None:
            # Graphs are first recorded for the largest step, over the whole cache: it must not be larger than needed.
            # A fifth more, for transformers holds prompts back when less than 15% are free.
            each = -(-longest // BLOCK_TOKENS) + 1
            chosen |= {"max_requests_per_batch": self.requests, "num_blocks": -(-self.requests * each * 6 // 5)}
        if self.step_tokens is not None:
            chosen["max_batch_tokens"] = self.step_tokens
        if self.graphs is not None:
            chosen["use_cuda_graph"] = self.graphs
        return chosen


OWN = Setting("its own settings")
SETTINGS = (
    Setting("64 requests and 256 tokens a step, CUDA graphs", 64, 256, True),
    Setting("32 requests and 256 tokens a step, CUDA graphs", 32, 256, True),
    Setting("64 requests and 512 tokens a step, no graphs", 64, 512, False),
    OWN,
)
"""Without a flash-attention package, transformers attends to the keys of all requests of a step and masks those of
others: the work of a step grows with the square of its requests, so fewer than all at once are faster. With one, its
own settings are the best it has, and nothing else is tried."""


@dataclass(frozen=True)
class Work:
    """What a process is to do."""

    config: dict[str, Any]
    """Of the model, whose weights are random."""
    lengths: list[tuple[int, int]]
    """Of prompts and answers."""
    seed: int
    setting: dict[str, Any]
    seconds: float
    """For serving; what is not done then is left."""
    device: str = "cuda"


@dataclass
class Progress:
    """Since the first request was handed over."""

    seconds: float = 0.0
    done: int = 0
    tokens: int = 0
    """Generated, those of unfinished requests included."""
    complete: bool = False
    failed: str | None = field(default=None)
    """Why a request was given up."""


Tell = Callable[[dict[str, Any]], None]


def serve(
    manager: Any,
    prompts: list[list[int]],
    answers: list[int],
    seconds: float,
    tell: Callable[[Progress], None],
    name: str = "request",
) -> Progress:
    """Hands all requests over at once and waits, for so long at most; `tell` hears of it twice a second."""
    progress = Progress()
    finished_tokens = 0
    began = told = time.perf_counter()
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        manager.add_request(prompt, request_id=f"{name} {number}", max_new_tokens=answer)
    while True:
        result = manager.get_result(timeout=TALK_SECONDS / 5)
        now = time.perf_counter()
        progress.seconds = now - began
        if result is not None and result.is_finished():
            if result.error is not None:
                progress.failed = f"{result.request_id}: {result.error}"
            progress.done += 1
            finished_tokens += len(result.generated_tokens)
            progress.tokens = finished_tokens
        if progress.failed is None and progress.done == len(prompts):
            progress.complete = True
        elif result is None and not manager.is_running() and progress.failed is None:
            progress.failed = "transformers stopped generating"
        if progress.complete or progress.failed is not None or progress.seconds > seconds:
            progress.tokens = finished_tokens + (0 if progress.complete else _unfinished_tokens(manager))
            return progress
        if now - told >= TALK_SECONDS:
            told = now
            progress.tokens = finished_tokens + _unfinished_tokens(manager)
            tell(progress)


def _unfinished_tokens(manager: Any) -> int:
    """Of requests at work. transformers tells nobody; where it keeps them elsewhere, only finished requests count."""
    scheduler = getattr(manager.batch_processor, "scheduler", None)
    for _ in range(5):
        try:
            return sum(
                len(state.generated_tokens) for state in list(getattr(scheduler, "active_requests", {}).values())
            )
        except RuntimeError:
            # Its thread took one in or out just then.
            continue
    return 0


def run(work: Work, tell: Tell) -> None:
    """Makes the model, serves, and stops what it started."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
    from transformers.generation.continuous_batching.utils import WorkloadHints

    torch.manual_seed(work.seed)
    with torch.device(work.device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**work.config), dtype=torch.bfloat16).eval()
    prompts_to, answers = [prompt for prompt, _ in work.lengths], [answer for _, answer in work.lengths]
    generation = GenerationConfig(
        do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=max(answers), use_cache=True
    )
    setting = Setting(**work.setting)
    hints = WorkloadHints(max(prompts_to), max(answers), len(answers))
    manager = model.init_continuous_batching(
        generation_config=generation,
        continuous_batching_config=ContinuousBatchingConfig(**setting.options(max(prompts_to) + max(answers))),
        workload_hints=hints,
    )
    resolved = manager.continuous_batching_config
    tell(
        {
            "event": "settings",
            "transformers": transformers.__version__,
            "attention": str(model.config._attn_implementation),
            "graphs": str(resolved.use_cuda_graph),
            "asynchronous": bool(resolved.use_async_batching),
        }
    )
    manager.warmup()
    manager.start()
    try:
        generator = torch.Generator(device="cpu").manual_seed(work.seed)
        vocabulary = min(10_000, int(work.config["vocab_size"]))
        draw = [torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in prompts_to]
        # What happens once in a process is not timed.
        first = serve(manager, [draw[0][:64]], [4], work.seconds, lambda _: None, "first")
        if not first.complete:
            raise RuntimeError(first.failed or f"not one request of 4 tokens was done in {work.seconds:.0f} s")
        tell({"event": "begin"})
        last = serve(manager, draw, answers, work.seconds, lambda each: tell({"event": "progress", **asdict(each)}))
        tell({"event": "end", **asdict(last)})
    finally:
        manager.stop(block=True, timeout=STOP_SECONDS, hard_stop=True)


def main(arguments: list[str]) -> int:
    raw = json.loads(arguments[0])
    work = Work(**{**raw, "lengths": [(prompt, answer) for prompt, answer in raw["lengths"]]})
    out = os.fdopen(os.dup(1), "w")
    # Others print too; only lines of this module go where the answers are read.
    os.dup2(2, 1)

    def tell(event: dict[str, Any]) -> None:
        try:
            out.write(json.dumps(event) + "\n")
            out.flush()
        except BrokenPipeError:
            # Nobody listens any more.
            os._exit(2)

    code = 0
    try:
        run(work, tell)
    except Exception as error:
        traceback.print_exc()
        tell({"event": "failed", "message": f"{type(error).__name__}: {error}"})
        code = 1
    sys.stderr.flush()
    if any(thread is not threading.current_thread() and not thread.daemon for thread in threading.enumerate()):
        # transformers' thread does not always end when it is told to, and the interpreter would wait for it.
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
