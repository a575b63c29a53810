"""The CPU target: one shared object per CPU class, and the program that says how to run it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llvmlite import ir

from tessera_compiler.module import CompiledTarget
from tessera_compiler.targets.cpu.kernel_lowering import KernelLowering
from tessera_compiler.targets.cpu.object_code import CPU_CLASSES, CpuClass, compile_ir
from tessera_compiler.targets.cpu.probes import PROBE, add_probe
from tessera_compiler.targets.cpu.row_draws import DRAW, add_draws
from tessera_compiler.targets.cpu.step_driver import StepDriver
from tessera_compiler.targets.cpu.step_protocol import EXPORTS, StepProtocol
from tessera_compiler.targets.cpu.vector_math import VectorMath
from tessera_compiler.targets.cpu.weighing import WEIGH, add_weigh
from tessera_compiler.targets.program import ABI
from tessera_compiler.tile import dialect as tile
from tessera_compiler.tile.lowering.lower import LoweredGroup, LoweredProgram

CLASSES = tuple(CPU_CLASSES)
SYMBOLS = (*EXPORTS, PROBE, WEIGH, DRAW)
"""All that an object exports."""


def compile_cpu(
    description: dict[str, Any], lowered: LoweredProgram, classes: tuple[str, ...] = CLASSES
) -> CompiledTarget:
    texts = {name: emit_module(description, lowered, CPU_CLASSES[name]) for name in classes}
    with ThreadPoolExecutor() as pool:
        objects = dict(
            zip(
                classes,
                pool.map(lambda name: compile_ir(texts[name], CPU_CLASSES[name], SYMBOLS), classes),
                strict=True,
            )
        )
    program = dict(description)
    program["target"] = "cpu"
    program["exports"] = list(SYMBOLS)
    program["groups"] = {
        name: {"kind": group.kind, "tuned": None if group.tuned is None else list(group.tuned), "source": group.source}
        for name, group in lowered.groups.items()
    }
    program["classes"] = {
        name: {
            "object": f"{name}.so",
            "features": list(CPU_CLASSES[name].required_flags),
            "kernels": {group.name: _variants(group, name) for group in lowered.groups.values()},
        }
        for name in classes
    }
    return CompiledTarget("cpu", program, {f"{name}.so": objects[name] for name in classes})


def emit_module(description: dict[str, Any], lowered: LoweredProgram, cpu_class: CpuClass) -> str:
    """The LLVM IR of one class: its kernels, the step that launches them, and the exports."""
    module = ir.Module(name="tessera")
    functions = VectorMath(module)
    lowering = KernelLowering(module, functions, cpu_class)
    kernels: dict[str, ir.Function] = {}
    for group in lowered.groups.values():
        for variant in group.variants[cpu_class.name]:
            for kernel in variant.kernels:
                if kernel.symbol not in kernels:
                    kernels[kernel.symbol] = lowering.lower(kernel)
    protocol = StepProtocol(module, cpu_class.machine)
    body = StepDriver(protocol, kernels, cpu_class.name).emit(description, lowered)
    protocol.finish(body, ABI, add_draws(module, functions, protocol))
    add_probe(module, cpu_class)
    add_weigh(module, functions)
    return str(module)


def _variants(group: LoweredGroup, cpu_class: str) -> list[dict[str, Any]]:
    return [
        {
            "max_tokens": variant.max_tokens or None,
            "symbol": variant.kernel.symbol,
            "grid": variant.kernel.grid_entries,
            "tile": [variant.blocking.rows, variant.blocking.panels * 16] if variant.blocking else None,
            **({"min_width": variant.min_width} if variant.min_width else {}),
            **({"then": _kernel(variant.then)} if variant.then is not None else {}),
        }
        for variant in group.variants[cpu_class]
    ]


def _kernel(kernel: tile.KernelOp) -> dict[str, Any]:
    return {"symbol": kernel.symbol, "grid": kernel.grid_entries}
