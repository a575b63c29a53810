"""Rotary scaling of a GGUF file, which transformers' GGUF reader leaves out of the configuration it rebuilds.

llama.cpp writes it in two ways: `<architecture>.rope.scaling.*` keys (linear, yarn), and a tensor `rope_freqs.weight`
of divisors per rotary frequency (Llama 3.1 and later). A model read without them is right for short prompts only, so
what cannot be expressed is refused.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_pack.errors import GgufInvalid

_LLAMA3_ORIGINAL_CONTEXT = 8192
_LLAMA3_LOW, _LLAMA3_HIGH = 1.0, 4.0


def llama3_divisors(
    theta: float, dimensions: int, factor: float, original_context: int = _LLAMA3_ORIGINAL_CONTEXT
) -> NDArray[np.float64]:
    """What Llama 3's rule divides each of the `dimensions // 2` rotary frequencies by."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, dimensions, 2, dtype=np.float64) / dimensions)
    blend = (original_context / wavelengths - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
    divisors = 1.0 / ((1.0 - blend) / factor + blend)
    divisors = np.where(wavelengths > original_context / _LLAMA3_LOW, factor, divisors)
    return np.where(wavelengths < original_context / _LLAMA3_HIGH, 1.0, divisors)


def rope_parameters(
    metadata: dict[str, Any], divisors: NDArray[np.float32] | None, theta: float, dimensions: int
) -> dict[str, Any] | None:
    """The `rope_parameters` to put into the configuration, or None where the file asks for plain rotary embeddings.

    `metadata` holds the file's keys, `divisors` its `rope_freqs.weight` where it has one.
    """
    if divisors is not None and not np.allclose(divisors, 1.0):
        return _from_divisors(divisors, theta, dimensions)
    prefix = f"{metadata['general.architecture']}.rope.scaling."
    scaling = {key[len(prefix) :]: value for key, value in metadata.items() if key.startswith(prefix)}
    kind = scaling.get("type", "none")
    factor = float(scaling.get("factor", 1.0))
    if kind == "none" or (factor == 1.0 and kind in ("linear", "yarn")):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if kind == "yarn" and "original_context_length" in scaling:
        return {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": factor,
            "original_max_position_embeddings": int(scaling["original_context_length"]),
        }
    raise GgufInvalid(
        f"The GGUF file scales rotary embeddings with '{kind}' {sorted(scaling)}, which cannot be carried over to a "
        "Hugging Face configuration.",
        hint="Pack the original checkpoint with --from-hf.",
    )


def _from_divisors(divisors: NDArray[np.float32], theta: float, dimensions: int) -> dict[str, Any]:
    factor = float(np.max(divisors))
    expected = llama3_divisors(theta, dimensions, factor)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise GgufInvalid(
            f"The GGUF file's 'rope_freqs.weight' is not Llama 3's rule for theta {theta:g} and factor {factor:g}.",
            hint="Pack the original checkpoint with --from-hf.",
        )
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_ORIGINAL_CONTEXT,
    }
