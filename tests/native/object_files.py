"""Objects that do nothing in a step: for the exports beside those of a step."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from tessera_compiler.targets.cpu.object_code import CPU_CLASSES, CpuClass, compile_ir
from tessera_compiler.targets.cpu.step_protocol import EXPORTS, StepProtocol


def object_with(name: str, export: str, add: Callable[[ir.Module, CpuClass], None]) -> bytes:
    """The object of a CPU class with one export more, which `add` writes."""
    entry = CPU_CLASSES[name]
    module = ir.Module()
    protocol = StepProtocol(module, entry.machine)
    body = protocol.declare_body()
    ir.IRBuilder(body.append_basic_block()).ret_void()
    protocol.finish(body, 1)
    add(module, entry)
    return compile_ir(str(module), entry, [*EXPORTS, export])
