"""The ABIs of programs that this runtime runs (docs/spec/program.md, docs/spec/program-gpu.md)."""

from __future__ import annotations

from tessera_runtime.errors import AbiMismatch

SUPPORTED_ABIS = (1, 2, 3)
"""Of programs for CPUs: its own and the two before it."""

GPU_ABIS = (2,)
"""Of programs for GPUs, which are counted apart."""


def require_supported(abi: object) -> None:
    """Raises AbiMismatch if this runtime does not run programs for CPUs of this ABI."""
    if abi not in SUPPORTED_ABIS:
        raise AbiMismatch(
            f"The program is of ABI {abi}, and this runtime reads {', '.join(map(str, SUPPORTED_ABIS))}.",
            hint="Update Tessera, or pack the model again.",
        )
