"""The planned programs whose kernels are tuned."""

from __future__ import annotations

from pathlib import Path

from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.driver import CompileOptions, parse_ir, pipeline
from tessera_compiler.frontends.huggingface import import_checkpoint


def planned_checkpoint(directory: Path, dtype: str, cpu_class: str) -> ModuleOp:
    """A Hugging Face checkpoint, compiled up to the lowering. Its weights are not read."""
    imported = import_checkpoint(directory, None)
    options = CompileOptions(
        dtype=dtype,
        max_model_len=imported.max_model_len,
        vocab_size=imported.vocab_size,
        layer_paths=imported.layer_paths,
        classes=(cpu_class,),
    )
    module: ModuleOp = imported.module
    for each in pipeline(options):
        each.apply(module)
    module.verify()
    return module


def planned_text(schedule_ir: str) -> ModuleOp:
    """The program of a package, from its `schedule_ir.tssa`; raises InvalidGraph."""
    return parse_ir(schedule_ir)
