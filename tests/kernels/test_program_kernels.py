"""Every kernel that programs of real architectures contain, on the interpreter and on the processor.

A kernel without a dot and without a function that has an error budget agrees to the bit; the others to `BUDGET` of the
largest element of a row, and to one unit of what they are rounded to.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from cases import Array, Case, blank, generator
from native_kernels import NATIVE_CLASSES, NativeKernels, object_of
from programs import MODELS, slow_from, tiny_model

from tessera_compiler.driver import schedule_passes
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.schedule.dialect import GroupOp
from tessera_compiler.targets.cpu.object_code import CPU_CLASSES
from tessera_compiler.targets.program import SCRATCH, ProgramLimits, describe_program
from tessera_compiler.tile import dialect
from tessera_compiler.tile.functions import EXPENSIVE
from tessera_compiler.tile.lowering.chunk_sizes import MOST_TOKENS
from tessera_compiler.tile.lowering.lower import lower_groups
from tessera_compiler.tile.types import element_name, round_to_bfloat16
from tessera_runtime.executor.cpu.object_check import check_object

BUDGET = 2e-6
BUDGET_OF_LEVELS = 1e-4
"""Where weights of attention are whole numbers up to 65,535: one may be off by one."""
PROGRAMS = [
    ("llama", "fp32"),
    ("llama", "int8"),
    ("gemma2", "bf16"),
    ("cohere", "int8"),
    ("llama", "int4"),
    *((name, "fp32") for name in MODELS if name != "llama"),
    ("llama", "bf16"),
    ("gemma2", "int8"),
    ("gpt2", "bf16"),
    ("gpt2", "int8"),
    ("gpt2", "int4"),
    ("cohere", "int4"),
    ("llama", "fp32+int8"),
    ("gemma2", "int8+int8"),
    ("gpt2", "bf16+int8"),
]
FAST = 5
"""As many of them run in a fast run."""
CACHE_BLOCKS = 8
INPUTS: dict[str, list[int]] = {
    # Three sequences: one in its third block, one at the start, one that crosses from its first block to its second.
    "positions": [33, 34, 0, 1, 2, 15, 16],
    "sequences": [0, 0, 2, 2, 2, 1, 1],
    "token_ids": [3, 159, 0, 17, 16, 15, 64],
    "block_tables": [5, 1, 3, 0, 7, 7, 2, 6, 6],
    "logit_rows": [1, 4, 6],
    "tiles": [2, 3, 0, 2, 5, 2],
}


_SEEN: set[object] = set()


@cache
def program_cases(name: str, dtype: str) -> tuple[tuple[Case, frozenset[str]], ...]:
    """Every kernel of a program that no program before it has, on random buffers; and which classes use it."""
    model = tiny_model(name)
    module = model.graph()
    classes = tuple(CPU_CLASSES)
    for each in schedule_passes(model.options(dtype, classes)):
        each.apply(module)
    groups = [op for op in entry_function(module).body.block.ops if isinstance(op, GroupOp)]
    lowered = lower_groups(groups, classes)
    program = describe_program(module, lowered, ProgramLimits(128, 160, model.vocab_size)).description
    arguments = {launch["group"]: launch["args"] for launch in reversed(program["launches"])}
    users: dict[str, list[str]] = {}
    group_of = {}
    for group in lowered.groups.values():
        for cpu_class, variants in group.variants.items():
            for variant in variants:
                for kernel in variant.kernels:
                    users.setdefault(kernel.symbol, []).append(cpu_class)
                    group_of[kernel.symbol] = group.name
    cases = []
    for symbol, kernel in lowered.kernels().items():
        structure = _structure(kernel)
        if structure not in _SEEN:
            _SEEN.add(structure)
            cases.append((_case(kernel, arguments[group_of[symbol]], program), frozenset(users[symbol])))
    return tuple(cases)


def _structure(kernel: dialect.KernelOp) -> object:
    """Equal for kernels that are the same, or the same but for the sizes of a weight in panels."""
    if not any(isinstance(op, dialect.LoadPackedOp) for op in kernel.walk()):
        return str(kernel).replace(f'"{kernel.symbol}"', "")
    loads = (dialect.LoadOp, dialect.LoadPackedOp, dialect.ConstantIndexOp)
    parts = []
    for op in kernel.walk():
        function = str(op.attributes.get("function"))
        parts.append((op.name, function, "" if isinstance(op, loads) else [str(result.type) for result in op.results]))
    return repr(parts)


def cases_of(name: str, dtype: str, cpu_class: str) -> list[Case]:
    """Those that this class would launch."""
    return [case for case, users in program_cases(name, dtype) if cpu_class in users]


def _case(kernel: dialect.KernelOp, arguments: list[str], program: dict[str, Any]) -> Case:
    stored = {id(op.buffer) for op in kernel.walk() if isinstance(op, dialect.StoreOp | dialect.StorePanelOp)}
    buffers = []
    for parameter, argument in zip(kernel.buffers, arguments, strict=True):
        kind, _, which = argument.partition(":")
        random = generator(kernel.symbol, argument)
        shape = [size if size > 0 else -1 for size in parameter.type.get_shape()]  # type: ignore[attr-defined]
        if kind == "input":
            buffers.append(np.array(INPUTS[which], np.int32))
            continue
        rows = CACHE_BLOCKS
        if kind == "buffer":
            rows = {"T": len(INPUTS["positions"]), "L": len(INPUTS["logit_rows"])}[
                program["buffers"][int(which)]["rows"]
            ]
        if kind == SCRATCH:
            # Of one chunk, and no more heads than a model here has.
            rows = MOST_TOKENS * 4
        shape = [rows if size == -1 else size for size in shape]
        element = element_name(parameter.type)
        if id(parameter) in stored:
            buffers.append(blank(shape[0], shape[1], element))
        else:
            buffers.append(_random(random, shape, element))
            if kind.endswith("_scale"):
                buffers[-1] = np.abs(buffers[-1]) * np.float32(0.02)
            if kind == SCRATCH:
                buffers[-1][:, 1] = 1 + np.abs(buffers[-1][:, 1])  # a sum of weights
    return Case(kernel, buffers, len(INPUTS["positions"]), logit_rows=len(INPUTS["logit_rows"]), table_width=3, tiles=3)


def _random(random: np.random.Generator, shape: list[int], element: str) -> Array:
    if element == "i8":
        return random.integers(-127, 128, shape).astype(np.int8)
    if element in ("u8", "u4"):
        # Two numbers of u4 share a byte.
        return random.integers(1, 256, shape if element == "u8" else [*shape[:3], 4]).astype(np.uint8)
    if element == "i32":
        return random.integers(-5000, 5000, shape).astype(np.int32)
    values = random.standard_normal(shape).astype(np.float32)
    return round_to_bfloat16(values) if element == "bf16" else values


def is_exact(kernel: dialect.KernelOp) -> bool:
    for op in kernel.walk():
        if isinstance(op, dialect.DotOp) and element_name(op.result.type) == "f32":
            return False
        if isinstance(op, dialect.UnaryOp) and op.function.data in EXPENSIVE:
            return False
        if isinstance(op, dialect.BinaryOp) and op.function.data == "pow":
            return False
    return True


def has_dot(kernel: dialect.KernelOp, element: str) -> bool:
    return any(isinstance(op, dialect.DotOp) and element_name(op.left.type) == element for op in kernel.walk())


@cache
def results_of(name: str, dtype: str, cpu_class: str) -> dict[str, list[Array]]:
    """What the buffers of each kernel hold after it, by symbol."""
    cases = cases_of(name, dtype, cpu_class)
    if not cases:
        return {}
    kernels = NativeKernels([case.kernel for case in cases], cpu_class)
    return {
        case.kernel.symbol: kernels.run(
            case.kernel,
            case.buffers,
            tokens=case.tokens,
            logit_rows=case.logit_rows,
            table_width=case.table_width,
            tiles=case.tiles,
        )
        for case in cases
    }


@pytest.mark.parametrize("cpu_class", slow_from(1, NATIVE_CLASSES))
@pytest.mark.parametrize(("name", "dtype"), slow_from(FAST, PROGRAMS))
def test_cpu_computes_what_the_interpreter_does(name: str, dtype: str, cpu_class: str) -> None:
    results = results_of(name, dtype, cpu_class)
    for case in cases_of(name, dtype, cpu_class):
        found = results[case.kernel.symbol]
        for parameter, wanted, got in zip(case.kernel.buffers, case.expected(), found, strict=True):
            where = f"{case.kernel.symbol} {parameter.type}"
            if is_exact(case.kernel):
                assert wanted.tobytes() == got.tobytes(), where
                continue
            element = element_name(parameter.type)
            assert np.isfinite(wanted.astype(np.float64)).all(), where
            error = np.abs(wanted.astype(np.float64) - got.astype(np.float64))
            scale = np.abs(wanted.astype(np.float64)).max(axis=-1, keepdims=True) if wanted.ndim > 1 else 1.0
            budget = BUDGET_OF_LEVELS if has_dot(case.kernel, "u8") else BUDGET
            unit = {"bf16": 2.0**-8 * np.abs(wanted.astype(np.float64)), "i8": 1.0, "i32": 0.0, "u8": 0.0}
            if element == "i32" and "i8" in {element_name(other.type) for other in case.kernel.buffers}:
                unit["i32"] = wanted.shape[-1] / 4  # the sum of numbers that may each be off by one
            assert np.all(error <= budget * scale + unit.get(element, 0.0)), f"{where}: {error.max()}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), PROGRAMS)
def test_all_classes_give_the_same_bits(name: str, dtype: str) -> None:
    """All but products of bfloat16, for which only some classes have an instruction, with a rounding of its own."""
    first, *others = [results_of(name, dtype, cpu_class) for cpu_class in NATIVE_CLASSES]
    for case, users in program_cases(name, dtype):
        symbol = case.kernel.symbol
        for other in others:
            if {*NATIVE_CLASSES} <= users and not has_dot(case.kernel, "bf16"):
                assert all(a.tobytes() == b.tobytes() for a, b in zip(first[symbol], other[symbol], strict=True)), (
                    symbol
                )


@pytest.mark.parametrize(("name", "dtype"), slow_from(1, PROGRAMS))
def test_all_kernels_stand_alone_on_aarch64(name: str, dtype: str) -> None:
    kernels = [case.kernel for case in cases_of(name, dtype, "aarch64")]
    if kernels:
        data = object_of(kernels, CPU_CLASSES["aarch64"])
        check_object(data, "aarch64", [kernel.symbol for kernel in kernels], page_bytes=65536)


@pytest.mark.slow
def test_kernels_of_every_kind_occur() -> None:
    """The programs above are worth something only if they have what programs are made of."""
    cases = [case for name, dtype in PROGRAMS for case, _ in program_cases(name, dtype)]
    symbols = {case.kernel.symbol.partition("_")[0] for case in cases}
    assert symbols == {"rows", "linear", "attention"}
    used = {type(op) for case in cases for op in case.kernel.walk()}
    assert used == set(dialect.TILE_OPERATIONS)
    assert sum(is_exact(case.kernel) for case in cases) > 10
    assert len(cases) > 80
