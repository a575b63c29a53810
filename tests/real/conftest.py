"""SmolLM2, packed once per dtype, and what transformers computes with it in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from prompts import PROMPTS
from smollm2_runs import Floats, ForcedText, Packages, Packed, greedy, open_executor, pack_real
from tokenizers import Tokenizer


@pytest.fixture(scope="session")
def packages(smollm2_checkpoint: Path, smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Packages by name: a dtype, made of the checkpoint, or `gguf`, which is fp32 made of the GGUF file."""
    folder = tmp_path_factory.mktemp("packages")

    @lru_cache
    def package(name: str) -> Packed:
        out = folder / f"{name}.tspkg"
        if name == "gguf":
            return pack_real(out, from_gguf=smollm2_gguf, dtype="fp32", name="smollm2")
        return pack_real(out, from_hf=str(smollm2_checkpoint), dtype=name, name="smollm2")

    return package


@pytest.fixture(scope="session")
def tokenizer(smollm2_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2_checkpoint / "tokenizer.json"))


@pytest.fixture(scope="session")
def reference(smollm2_checkpoint: Path) -> Callable[[list[int]], Floats]:
    """The logits of transformers in float32 at all positions of one sequence."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(smollm2_checkpoint), dtype=torch.float32).eval()

    def logits(ids: list[int]) -> Floats:
        with torch.inference_mode():
            result: Floats = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
        return result

    return logits


@pytest.fixture(scope="session")
def forced_texts(
    packages: Packages, tokenizer: Tokenizer, reference: Callable[[list[int]], Floats]
) -> list[ForcedText]:
    """All prompts; what transformers says to them is computed once."""
    texts = []
    with open_executor(packages("gguf").path) as executor:
        for name, prompt in PROMPTS.items():
            ids = tokenizer.encode(prompt).ids
            whole = ids + greedy(executor, ids)
            texts.append(ForcedText(name, whole, len(ids), reference(whole)))
    return texts
