"""The programs whose kernels are tuned for a device, as far as the lowering. Nothing here needs what compiles for
processors, which a host that tunes for its GPU may lack."""

from __future__ import annotations

from pathlib import Path

from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.device_driver import DeviceOptions, device_passes
from tessera_compiler.frontends.huggingface import import_checkpoint
from tessera_compiler.graph.pipeline import simplify
from tessera_compiler.targets.program import ProgramLimits


def planned_for_device(directory: Path, dtype: str, target: str) -> ModuleOp:
    """A Hugging Face checkpoint, planned for a device. Its weights are not read, nor need they be there."""
    imported = import_checkpoint(directory, None)
    module: ModuleOp = imported.module
    simplify(module)
    limits = ProgramLimits(imported.max_model_len, imported.max_model_len, imported.vocab_size)
    for each in device_passes(DeviceOptions((target,), dtype, limits, imported.layer_paths)):
        each.apply(module)
    module.verify()
    return module
