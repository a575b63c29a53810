"""Random weights of every form are as large as others, so that what is measured with them is work."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

TESTS = Path(__file__).resolve().parent.parent
for folder in ("gpu", "engine"):
    sys.path.insert(0, str(TESTS / folder))

from test_compiled_programs import stand_ins  # noqa: E402

from benchmarks import gpu, gpu_models  # noqa: E402
from benchmarks.gpu_models import TINY, GpuModel, RandomSource, prepare  # noqa: E402
from tessera_compiler.targets.triton import target as triton_target  # noqa: E402

LINEAR = "model.layers.0.self_attn.q_proj+k_proj+v_proj.weight"
BITS = {"bf16": 16, "int8": 8, "int4": 4, "fp8": 8}


@pytest.fixture(autouse=True)
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_target, "compile_all", stand_ins)


def read(source: RandomSource, name: str) -> NDArray[np.uint8]:
    raw = np.empty(source.size(name), np.uint8)
    # In pieces, as they are loaded.
    for start in range(0, len(raw), 4096):
        source.read_into(raw[start : start + 4096], name, start)
    return raw


def floats_of_eight_bits(raw: NDArray[np.uint8]) -> NDArray[np.float64]:
    exponents, mantissas = (raw >> 3 & 15).astype(int), (raw & 7) / 8.0
    assert not (raw & 127 == 127).any(), "no number"
    values = np.where(exponents == 0, mantissas * 2.0**-6, (1 + mantissas) * 2.0 ** (exponents - 7.0))
    return np.where(raw & 128, -values, values)


def weights_of(model: GpuModel) -> NDArray[np.float64]:
    """What a linear map multiplies with."""
    source = RandomSource(model, 3)
    names = [entry["name"] for entry in model.raw["weights"]]

    def numbers(end: str) -> NDArray[np.float64]:
        return read(source, LINEAR + end).view(np.float32).astype(np.float64)

    if f"{LINEAR}.matrix4" in names:
        both = read(source, f"{LINEAR}.matrix4")
        steps = read(source, f"{LINEAR}.scales.columns4").astype(np.float64)
        zeros = read(source, f"{LINEAR}.zeros.columns4") / 16.0
        factors = numbers(".factors")
        assert all(len(np.unique(each)) == 1 for each in (steps, zeros, factors))
        return (np.concatenate([both & 15, both >> 4]) - zeros[0]) * steps[0] * factors[0]
    if f"{LINEAR}.scales" not in names:
        bits = read(source, f"{LINEAR}.matrix").view(np.uint16).astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).astype(np.float64)
    scale = numbers(".scales")[0]
    if LINEAR in names:
        return floats_of_eight_bits(read(source, LINEAR)) * scale
    return read(source, f"{LINEAR}.matrix_signed").view(np.int8).astype(np.float64) * scale


@pytest.mark.parametrize("dtype", BITS)
def test_random_weights_are_as_large_in_every_form(dtype: str, tmp_path: Path) -> None:
    prepare(TINY, "cuda-sm90", tmp_path, dtype)
    model = GpuModel.read(tmp_path / TINY)
    weights = weights_of(model)
    assert weights.std() == pytest.approx(0.02, rel=0.05)
    assert abs(weights.mean()) < 0.001
    # The head is wider than the rest with int4 and with fp8, and what is multiplied is counted once.
    config = model.config
    heads, key_heads, inner = (
        config[name] for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    )
    per_layer = ((heads + 2 * key_heads) * 64 + 2 * inner) * 256 + (heads * 64 + inner) * 256
    head = config["vocab_size"] * 256
    assert model.matrix_elements == 3 * per_layer + head
    head_bits = {"int4": 8, "fp8": 16}.get(dtype, BITS[dtype])
    least = (3 * per_layer * BITS[dtype] + head * head_bits) / 8
    assert least <= model.step_bytes < 1.2 * least


def test_quantized_programs_lie_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "SERVED", (TINY,))
    command = ["prepare", "--models", TINY, "--out", str(tmp_path)]
    assert gpu.main([*command, "--target", "cuda-sm80", "--quantized", "int8", "fp8"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [TINY, f"{TINY}-int8"]
    assert f"{TINY}-fp8: left out. The matrix units of cuda-sm80" in capsys.readouterr().out
    built = {each: GpuModel.read(tmp_path / each).built["dtype"] for each in (TINY, f"{TINY}-int8")}
    assert built == {TINY: "bf16", f"{TINY}-int8": "int8"}


@pytest.mark.parametrize("options", [["--quantized"], ["--dtype", "int8"]])
def test_quantized_programs_can_be_left_out(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def prepared(_name: str, _target: str, _folder: Path, dtype: str, called: str | None) -> int:
        asked.append((dtype, called))
        return 0

    monkeypatch.setattr(gpu, "prepare", prepared)
    name = gpu_models.MEASURED[0]
    assert gpu.main(["prepare", "--models", name, "--out", str(tmp_path), *options]) == 0
    assert asked == [(options[-1] if "--dtype" in options else "bf16", name)]
