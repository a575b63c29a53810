"""Measures how far a package's logits are from those of transformers in fp32 on the same weights.

The package runs on the fastest target that this machine has, exactly as it will be served.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tessera_pack.checkpoint import Checkpoint
from tessera_pack.errors import EvidenceFailed, OptionInvalid
from tessera_pack.prompts import evidence_prompts, prompt_digest
from tessera_runtime.package.manifest import Evidence
from tessera_runtime.package.reader import Package
from tessera_runtime.package.sizes import readable_size

if TYPE_CHECKING:
    import torch

    from tessera_runtime.executor.interface import Executor, StepBatch

Floats = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

BUDGETS: dict[str, dict[str, float]] = {
    "fp32": {"relative_logit_error": 1e-4, "kl": 1e-5, "perplexity_delta": 1e-3},
    "bf16": {"relative_logit_error": 0.1, "kl": 0.01, "perplexity_delta": 0.01},
    "int8": {"relative_logit_error": 0.5, "kl": 0.1, "perplexity_delta": 0.05},
    "int4": {"relative_logit_error": 1.0, "kl": 0.5, "perplexity_delta": 0.25},
}
"""What a dtype may cost: the largest logit error relative to the largest logit, the mean KL divergence, the relative
change of perplexity."""

LAYER_TOLERANCE = {"fp32": 1e-4, "bf16": 0.05, "int8": 0.3, "int4": 0.6}
"""The relative error of a layer's output from which on it counts as astray."""


_ROWS_AT_ONCE = 32
"""Rows turned into float64 together: a large vocabulary takes megabytes a row."""


@dataclass
class _Totals:
    tokens: int = 0
    scored: int = 0
    largest_error: float = 0.0
    largest_logit: float = 0.0
    error: float = 0.0
    entries: int = 0
    kl: float = 0.0
    agreements: int = 0
    nll: float = 0.0
    reference_nll: float = 0.0

    worst: NDArray[np.int64] | None = None
    """The prompt with the largest error."""

    def add(self, ids: NDArray[np.int64], logits: Floats, reference: Floats) -> None:
        # Not a number is worse than any number.
        largest = float(np.nan_to_num(np.max(np.abs(logits - reference)), nan=np.inf))
        if self.worst is None or largest > self.largest_error:
            self.worst = ids
        self.largest_error = max(self.largest_error, largest)
        self.tokens += len(ids)
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            self._add_rows(ids[start + 1 : start + 1 + _ROWS_AT_ONCE], logits[rows], reference[rows])

    def _add_rows(self, following: NDArray[np.int64], logits: Floats, reference: Floats) -> None:
        self.largest_logit = max(self.largest_logit, float(np.abs(reference).max()))
        self.error += float(np.abs(logits - reference).sum(dtype=np.float64))
        self.entries += logits.size
        ours, theirs = _log_softmax(logits), _log_softmax(reference)
        self.kl += float((np.exp(theirs) * (theirs - ours)).sum())
        self.agreements += int((logits.argmax(axis=1) == reference.argmax(axis=1)).sum())
        # The last token of a prompt has none that follows.
        scored = np.arange(len(following))
        self.nll -= float(ours[scored, following].sum())
        self.reference_nll -= float(theirs[scored, following].sum())
        self.scored += len(following)

    def measures(self) -> dict[str, float]:
        scored = max(1, self.scored)
        return {
            "relative_logit_error": self.largest_error / max(self.largest_logit, 1e-30),
            "kl": max(0.0, self.kl / self.tokens),
            "perplexity_delta": float(np.exp((self.nll - self.reference_nll) / scored)) - 1,
        }


def collect_evidence(package: Package, checkpoint: Path, progress: Progress) -> Evidence:
    """Compares a package with the checkpoint it was made from. Raises `EvidenceFailed` beyond the budget of
    the dtype.
    """
    from tokenizers import Tokenizer

    manifest = package.manifest
    tokenizer = Tokenizer.from_file(str(package.file("tokenizer/tokenizer.json")))
    # Some are saved with the padding and truncation of their training.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    prompts = evidence_prompts(tokenizer, manifest.model.vocab_size, manifest.memory.max_model_len)
    totals = _Totals()
    with _reference(checkpoint, manifest.memory.max_model_len) as (model, name), _executor(package) as executor:
        for done, ids in enumerate(prompts):
            progress("verify", done, len(prompts))
            totals.add(ids, _package_logits(executor, ids), _reference_logits(model, ids))
        progress("verify", len(prompts), len(prompts))
        measures = totals.measures()
        coarser = coarser_dtype(manifest.dtype, manifest.kv_cache.dtype)
        budget = BUDGETS[coarser]
        beyond = {key: value for key, value in measures.items() if not abs(value) <= budget[key]}
        if beyond:
            ids = prompts[0] if totals.worst is None else totals.worst
            layer = first_layer_astray(executor, model, ids, LAYER_TOLERANCE[coarser])
            raise EvidenceFailed(_failure(coarser, beyond, budget, layer), hint=_advice(manifest.dtype, coarser))
        return Evidence(
            reference=name,
            measured_on=executor.description,
            prompts=tuple(prompt_digest(ids) for ids in prompts),
            tokens=totals.tokens,
            max_logit_error=_short(totals.largest_error),
            mean_logit_error=_short(totals.error / totals.entries),
            kl=_short(measures["kl"]),
            top1_agreement=_short(totals.agreements / totals.tokens),
            perplexity_delta=_short(measures["perplexity_delta"]),
            budget=budget,
        )


def coarser_dtype(dtype: str, kv_dtype: str | None) -> str:
    """The one that says how far off a package may be, of its weights' and its KV cache's."""
    order = list(BUDGETS)
    return max(dtype, kv_dtype or dtype, key=order.index)


def first_layer_astray(
    executor: Executor, model: torch.nn.Module, ids: NDArray[np.int64], tolerance: float
) -> tuple[str, float] | None:
    """The first module whose output differs from the reference's by more than `tolerance`, and by how much."""
    import torch

    captured: dict[str, Floats] = {}
    modules = dict(model.named_modules())

    def keep(path: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            captured[path] = value.detach().float().reshape(len(ids), -1).numpy()

        return hook

    traced = executor.trace(_whole(executor, ids))
    hooks = [modules[path].register_forward_hook(keep(path)) for path, _ in traced if path in modules]
    try:
        with torch.inference_mode():
            model(input_ids=torch.from_numpy(ids)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for path, ours in traced:
        theirs = captured.get(path)
        if theirs is None or theirs.shape != ours.shape:
            continue
        error = float(np.abs(ours - theirs).max() / max(float(np.abs(theirs).max()), 1e-30))
        if not error <= tolerance:
            return path, error
    return None


def _failure(dtype: str, beyond: dict[str, float], budget: dict[str, float], layer: tuple[str, float] | None) -> str:
    found = ", ".join(f"{key} is {value:.3g} where {budget[key]:.3g} is allowed" for key, value in beyond.items())
    where = (
        f"the first layer astray is {layer[0]}, with a relative error of {layer[1]:.3g}"
        if layer
        else "no layer on its own is astray, so look at what follows the last one, or at many small errors"
    )
    return f"The package does not compute what the model computes in {dtype}: {found}; {where}."


def _advice(dtype: str, coarser: str) -> str:
    if coarser != dtype:
        return "Pack with --kv-dtype auto, or with --no-verify if you know better."
    if dtype == "fp32":
        return "This is a defect of Tessera: please report the model's config.json."
    wider = {"int4": "int8 or bf16", "int8": "bf16 or fp32"}.get(dtype, "fp32")
    return f"Pack with --dtype {wider}, or with --no-verify if you know better."


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


@contextmanager
def _executor(package: Package) -> Iterator[Executor]:
    from tessera_runtime.loading import load_executor

    with load_executor(package) as executor:
        executor.allocate_cache(-(-256 // executor.limits.block_tokens) + 1)
        yield executor


def _whole(executor: Executor, ids: NDArray[np.int64]) -> StepBatch:
    """All of a prompt in one step, with logits of every token."""
    from tessera_runtime.executor.interface import StepBatch

    count = len(ids)
    blocks = -(-count // executor.limits.block_tokens)
    return StepBatch(
        token_ids=ids.astype(np.int32),
        positions=np.arange(count, dtype=np.int32),
        sequences=np.zeros(count, np.int32),
        block_tables=np.arange(blocks, dtype=np.int32)[None, :],
        logit_rows=np.arange(count, dtype=np.int32),
    )


def _package_logits(executor: Executor, ids: NDArray[np.int64]) -> Floats:
    return executor.step(_whole(executor, ids))


@contextmanager
def _reference(checkpoint: Path, max_model_len: int) -> Iterator[tuple[torch.nn.Module, str]]:
    """The model in transformers, fp32, with rotary frequencies fixed as the package has them."""
    import torch
    import transformers

    from tessera_compiler.frontends.buffers import fix_rotary_embeddings

    needed = 4 * Checkpoint(checkpoint).parameters() + 2**30
    available = _available_memory()
    if available is not None and needed > available:
        raise OptionInvalid(
            f"Comparing with transformers takes {readable_size(needed)} of memory; {readable_size(available)} is free.",
            hint="Pack with --no-verify here, and run `tessera verify --reference` on a larger machine.",
        )
    with _quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(checkpoint), dtype=torch.float32, trust_remote_code=False, attn_implementation="eager"
        ).eval()
    fix_rotary_embeddings(model, max_model_len)
    yield model, f"transformers {transformers.__version__}, torch {torch.__version__}, fp32, {platform.machine()}"


def _reference_logits(model: torch.nn.Module, ids: NDArray[np.int64]) -> Floats:
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0]
    result: Floats = logits.float().numpy()
    return result


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


def _available_memory() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    line = next((line for line in text.splitlines() if line.startswith("MemAvailable:")), "")
    return int(line.split()[1]) * 1024 if line else None
