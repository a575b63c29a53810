"""Whoever changes the kernels of products is asked whether what was measured of them still holds."""

from __future__ import annotations

import hashlib

import pytest
from device_machine import plan_for
from golden_files import Golden

from tessera_compiler.schedule.device_tuned_cache import KERNELS
from tessera_compiler.targets.triton.emission import emit_source

CASES = [
    ("cuda-sm80", "bf16"),
    *(("cuda-sm90", dtype) for dtype in ("bf16", "int8", "int4", "fp8")),
    ("hip-gfx942", "bf16"),
]


@pytest.mark.parametrize(("target", "dtype"), CASES)
def test_changed_kernels_are_noticed(target: str, dtype: str, golden: Golden) -> None:
    """Fails when the kernels of products, or how they are blocked by default, are not those of the golden file.

    If another blocking may be the fastest now, add one to `KERNELS` (autotune_cache/README.md). Then, or if not, run
    this test with --update-golden.
    """
    lowered = plan_for("llama", dtype, (target,)).lowered
    products = {
        variant.kernel.symbol: emit_source(variant.kernel).text
        for group in lowered.groups.values()
        if group.kind == "linear"
        for stage in group.stages
        for variant in stage.variants[target]
        if variant.kernel is not None
    }
    assert products
    digest = hashlib.sha256("".join(products[name] for name in sorted(products)).encode()).hexdigest()
    golden.check(f"products_{target}_{dtype}.txt", f"kernels {KERNELS}: {digest[:16]}\n")
