"""Tiny random models, packed whole and run, against transformers in float32."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import slow_from
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

from tessera_compiler.errors import UnsupportedOperation

ROOT = Path(__file__).resolve().parent.parent.parent

PROMPT = 37
CHUNKS = (1, 5, 16)
LENGTHS = (PROMPT, 21, 9)
LARGEST_ERROR = 1e-4
NOISE = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.05, "int4": 0.35, "fp32+int8": 0.02}
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


REFUSED = {
    "diffllama": r"\(model\.layers\.0\.self_attn.*\): graph\.reduce_sum of weights is not lowered",
}
"""What exports, but has operations that are not lowered to kernels."""


QUICK = {"llama", "gemma2", "gpt2"}
"""One of each kind; the others run in `make test`."""


def check(case: Case, folder: Path, dtype: str = "fp32", vocabulary: int = VOCABULARY, **options: Any) -> None:
    """Packs with verification, and compares every way of computing a prompt with transformers. `dtype` is that of the
    weights, or of these and the KV cache."""
    model = save_checkpoint(case, folder / "checkpoint", **options)
    weights, _, kept = dtype.partition("+")
    report = pack_checkpoint(folder / "checkpoint", folder / "model.tspkg", weights, kv_dtype=kept or "auto")
    assert report.manifest.kv_cache.dtype == kept or not kept
    evidence = report.manifest.evidence
    assert evidence is not None and len(evidence.prompts) >= 8 and evidence.tokens > 400
    sequences = [draw_ids(length, vocabulary, seed) for seed, length in enumerate(LENGTHS)]
    expected = [reference_logits(model, ids) for ids in sequences]
    with opened(report.out) as executor:
        whole = in_chunks(executor, sequences[0], PROMPT)
        for size in CHUNKS:
            assert np.array_equal(in_chunks(executor, sequences[0], size), whole), f"in chunks of {size}"
        together = mixed(executor, sequences)
        assert np.array_equal(together[0], whole)
        for found, wanted in zip(together, expected, strict=True):
            assert relative_noise(found, wanted) <= NOISE[dtype]
            assert dtype != "fp32" or relative_error(found, wanted) <= LARGEST_ERROR


@pytest.mark.parametrize("case", slow_from(3, sorted(NAMED, key=lambda case: case.kind not in QUICK)), ids=str)
def test_an_architecture_computes_what_transformers_does(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), [("gemma2", "int8"), ("qwen2", "int4"), ("gemma", "fp32+int8")])
def test_narrow_dtypes_stay_close(kind: str, dtype: str, tmp_path: Path) -> None:
    check(next(case for case in NAMED if case.kind == kind), tmp_path, dtype)


def test_a_checkpoint_in_shards(tmp_path: Path) -> None:
    check(odd("llama", tie_word_embeddings=True), tmp_path, max_shard_size="60KB")
    assert len(list((tmp_path / "checkpoint").glob("*.safetensors"))) > 3


@pytest.mark.slow
@pytest.mark.parametrize("case", ROPES, ids=str)
def test_scaled_rotary_embeddings(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in [*ARCHITECTURES, *VARIANTS] if str(case) not in REFUSED], ids=str)
def test_every_architecture_that_exports(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, vocabulary=160)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_kernel_is_named(name: str, tmp_path: Path) -> None:
    save_checkpoint(next(case for case in [*ARCHITECTURES, *VARIANTS] if str(case) == name), tmp_path / "checkpoint")
    with pytest.raises(UnsupportedOperation, match=REFUSED[name]):
        pack_checkpoint(tmp_path / "checkpoint", tmp_path / "model.tspkg")


@pytest.mark.slow
def test_two_packs_are_equal_byte_for_byte(tmp_path: Path) -> None:
    """In processes that hash and schedule differently."""
    save_checkpoint(odd("gemma3_text", head_dim=24, **WINDOWS), tmp_path / "checkpoint")
    made = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        command = [
            sys.executable,
            "-m",
            "tessera",
            "pack",
            "--from-hf",
            str(tmp_path / "checkpoint"),
            "--out",
            str(out),
        ]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed})
        made.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert len(made[0]) > 10 and made[0] == made[1]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "int8", "fp32+int8"])
@pytest.mark.parametrize("case", NAMED, ids=str)
def test_every_named_architecture_in_narrow_dtypes(case: Case, dtype: str, tmp_path: Path) -> None:
    check(case, tmp_path, dtype)
