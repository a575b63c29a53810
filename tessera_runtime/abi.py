"""The ABIs of programs that this runtime runs (docs/spec/program.md, docs/spec/program-gpu.md)."""

from __future__ import annotations

from collections.abc import Sequence

from tessera_runtime.errors import AbiMismatch

SUPPORTED_ABIS = (1, 2, 3)
"""Of programs for CPUs: its own and the two before it."""

GPU_ABIS = (2,)
"""Of programs for GPUs, which are counted apart."""


def require_supported(abi: object, supported: Sequence[int] = SUPPORTED_ABIS) -> None:
    """Raises AbiMismatch if a program's ABI is none of `supported`."""
    if abi not in supported:
        raise AbiMismatch(
            f"The program is of ABI {abi}, and this runtime reads {', '.join(map(str, supported))}.",
            hint="Update Tessera, or pack the model again.",
        )
