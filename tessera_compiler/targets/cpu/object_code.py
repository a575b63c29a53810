"""From LLVM IR text to the bytes of a native object, for every CPU class.

`compile_ir(text, CPU_CLASSES["x86-64-v4"])` verifies, optimises, emits and links, without any tool outside this
process. Equal text gives equal bytes. It keeps no state and may be called from several threads; llvmlite runs one call
into LLVM at a time, so only processes make it faster.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from llvmlite import binding

from tessera_compiler.targets.cpu.elf_linker import link
from tessera_compiler.targets.cpu.step_protocol import EXPORTS


class ObjectCodeError(Exception):
    """The code generator produced LLVM IR that LLVM refuses; a defect of Tessera, never of a model."""


@dataclass(frozen=True)
class CpuClass:
    """A set of processors that run the same object."""

    name: str
    machine: str
    """As `uname -m` prints it."""
    triple: str
    cpu: str
    llvm_features: tuple[str, ...]
    required_flags: tuple[str, ...]
    """What /proc/cpuinfo must list (`flags`, on aarch64 `Features`); the class's `features` in program.json."""
    vector_bits: int
    function_attributes: tuple[str, ...] = ()


_X86_64_V3_FLAGS = (
    "avx",
    "avx2",
    "bmi1",
    "bmi2",
    "cx16",
    "f16c",
    "fma",
    "abm",
    "lahf_lm",
    "movbe",
    "popcnt",
    "sse4_2",
    "ssse3",
)
_X86_64_V4_FLAGS = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni")

CPU_CLASSES: dict[str, CpuClass] = {
    entry.name: entry
    for entry in (
        CpuClass(
            name="x86-64-v4",
            machine="x86_64",
            triple="x86_64-unknown-linux-gnu",
            cpu="x86-64-v4",
            llvm_features=("+avx512vnni", "+avx512bf16", "-prefer-256-bit"),
            required_flags=_X86_64_V3_FLAGS + _X86_64_V4_FLAGS,
            vector_bits=512,
            function_attributes=('"prefer-vector-width"="512"',),
        ),
        CpuClass(
            name="x86-64-v3",
            machine="x86_64",
            triple="x86_64-unknown-linux-gnu",
            cpu="x86-64-v3",
            llvm_features=(),
            required_flags=_X86_64_V3_FLAGS,
            vector_bits=256,
        ),
        CpuClass(
            name="aarch64",
            machine="aarch64",
            triple="aarch64-unknown-linux-gnu",
            cpu="generic",
            llvm_features=("+v8.2a", "+neon", "+dotprod", "+bf16", "+i8mm"),
            required_flags=("asimd", "asimddp", "asimdrdm", "atomics", "bf16", "crc32", "i8mm"),
            vector_bits=128,
        ),
    )
}
"""Best class of a machine first."""

# LLVM must neither turn loops into calls of memset or memcpy nor take a function for one of libm's.
_COMMON_ATTRIBUTES = ('"no-builtins"', "nounwind", '"frame-pointer"="none"')

FUNCTION_ALIGNMENT = 64
"""How fast a loop runs depends on where it lies in the lines that a processor fetches: the gate of SmolLM2 in four bits
takes a quarter longer in an unlucky place. So no function's place depends on what stands before it."""
_DEFINITION = re.compile(r"^([ \t]*define\b[^\n]*?)\s*\{\s*$", re.MULTILINE)


def compile_ir(text: str, cpu_class: CpuClass, exports: Sequence[str] = EXPORTS) -> bytes:
    """The shared object made of `text`, whose dynamic symbols are exactly `exports`.

    The IR must be vectorised as it should run: only scalar clean-up, inlining and unrolling are done here. Target
    triple, data layout and the attributes of every function are set here, whatever the text says.
    """
    return link([emit_relocatable(text, cpu_class)], exports)


def emit_relocatable(text: str, cpu_class: CpuClass) -> bytes:
    """The relocatable object LLVM makes of `text`, before linking."""
    machine = _target_machine(cpu_class)
    attributes = " ".join(_COMMON_ATTRIBUTES + cpu_class.function_attributes)
    marked = _DEFINITION.sub(rf"\1 {attributes} align {FUNCTION_ALIGNMENT} {{", text)
    try:
        module = binding.parse_assembly(marked)
        module.triple = cpu_class.triple
        module.data_layout = str(machine.target_data)
        module.name = "tessera"
        module.verify()
    except RuntimeError as error:
        raise ObjectCodeError(f"LLVM refused the IR generated for {cpu_class.name}: {error}") from error
    options = binding.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_interleaving = False
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


@lru_cache(maxsize=1)
def _initialize() -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()


def _target_machine(cpu_class: CpuClass) -> binding.TargetMachine:
    # One per call: a target machine must not be used from two threads at once.
    _initialize()
    return binding.Target.from_triple(cpu_class.triple).create_target_machine(
        cpu=cpu_class.cpu,
        features=",".join(cpu_class.llvm_features),
        opt=3,
        reloc="pic",
        codemodel="default",
    )
