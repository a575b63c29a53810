"""Tiny random models, packed whole and run, against transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import (
    ODD,
    VOCABULARY,
    draw_ids,
    in_chunks,
    mixed,
    opened,
    pack_checkpoint,
    reference_logits,
    relative_error,
    relative_noise,
    save_checkpoint,
)
from tiny_models import ARCHITECTURES, VARIANTS, Case, rope

PROMPT = 37
CHUNKS = (1, 5, 16)
LENGTHS = (PROMPT, 21, 9)
LARGEST_ERROR = 1e-4
NOISE = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.05}
"""Rounding to n bits is noise; in random models of two layers it stands out more than in trained ones."""
WINDOWS = {"sliding_window": 11, "layer_types": ["sliding_attention", "full_attention"]}
GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 72, "n_head": 3, "n_positions": 256}


def odd(kind: str, name: str = "", **options: Any) -> Case:
    return Case(kind, {**ODD, **options}, name)


NAMED = [
    odd("llama", head_dim=24),
    odd("mistral", sliding_window=11, num_attention_heads=6, num_key_value_heads=2, head_dim=12),
    odd("qwen2", num_attention_heads=6, num_key_value_heads=3, tie_word_embeddings=True),
    odd("qwen3", head_dim=20),
    odd("gemma", head_dim=40),
    odd("gemma2", head_dim=24, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, **WINDOWS),
    odd("gemma3_text", head_dim=24, query_pre_attn_scalar=30, **WINDOWS),
    odd("phi3"),
    Case("gpt2", GPT2),
    odd("granite", embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=2.0, attention_multiplier=0.1),
    odd("olmo2"),
    odd("starcoder2", sliding_window=11),
]
LONGROPE = rope("longrope", short_factor=[1.0 + 0.1 * i for i in range(12)], long_factor=[2.0 + i for i in range(12)])
ROPES = [
    odd("llama", "linear", **rope("linear", factor=4.0)),
    odd(
        "llama",
        "llama3",
        **rope("llama3", factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=64),
    ),
    odd("qwen2", "yarn", **rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    odd("llama", "dynamic", **rope("dynamic", factor=2.0)),
    odd("phi3", "longrope", **LONGROPE, original_max_position_embeddings=64),
    odd("phi3", "partial", **rope("default", partial_rotary_factor=0.5)),
]


def check(case: Case, folder: Path, dtype: str = "fp32", vocabulary: int = VOCABULARY, **options: Any) -> None:
    """Packs with verification, and compares every way of computing a prompt with transformers."""
    model = save_checkpoint(case, folder / "checkpoint", **options)
    report = pack_checkpoint(folder / "checkpoint", folder / "model.tspkg", dtype)
    evidence = report.manifest.evidence
    assert evidence is not None and len(evidence.prompts) >= 8 and evidence.tokens > 900
    sequences = [draw_ids(length, vocabulary, seed) for seed, length in enumerate(LENGTHS)]
    expected = [reference_logits(model, ids) for ids in sequences]
    with opened(report.out) as executor:
        whole = in_chunks(executor, sequences[0], PROMPT)
        for size in CHUNKS:
            assert np.array_equal(in_chunks(executor, sequences[0], size), whole), f"in chunks of {size}"
        together = mixed(executor, sequences)
        assert np.array_equal(together[0], whole)
        for found, wanted in zip(together, expected, strict=True):
            print(str(case), dtype, relative_noise(found, wanted), relative_error(found, wanted))
            assert relative_noise(found, wanted) <= NOISE[dtype]
            assert dtype != "fp32" or relative_error(found, wanted) <= LARGEST_ERROR


@pytest.mark.parametrize("case", NAMED, ids=str)
def test_an_architecture_computes_what_transformers_does(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.parametrize(("kind", "dtype"), [("llama", "bf16"), ("gemma2", "int8"), ("gpt2", "int8")])
def test_narrow_dtypes_stay_close(kind: str, dtype: str, tmp_path: Path) -> None:
    check(next(case for case in NAMED if case.kind == kind), tmp_path, dtype)


@pytest.mark.parametrize("case", [ROPES[1], ROPES[4]], ids=str)
def test_scaled_rotary_embeddings(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def test_a_checkpoint_in_shards(tmp_path: Path) -> None:
    check(odd("llama", tie_word_embeddings=True), tmp_path, max_shard_size="60KB")
    assert len(list((tmp_path / "checkpoint").glob("*.safetensors"))) > 3


@pytest.mark.slow
@pytest.mark.parametrize("case", [ROPES[0], *ROPES[2:4], ROPES[5]], ids=str)
def test_other_rotary_embeddings(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [*ARCHITECTURES, *VARIANTS], ids=str)
def test_every_architecture_that_exports(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, vocabulary=160)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("case", NAMED, ids=str)
def test_every_named_architecture_in_narrow_dtypes(case: Case, dtype: str, tmp_path: Path) -> None:
    check(case, tmp_path, dtype)
