"""The elementary functions of the CPU target, run on this machine and measured against float64."""

from __future__ import annotations

import ctypes
import math
import re
import struct
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from llvmlite import binding, ir
from numpy.typing import NDArray

from tessera_compiler.targets.cpu.object_code import CPU_CLASSES, emit_relocatable
from tessera_compiler.targets.cpu.vector_math import FLOATS, FUNCTION_NAMES, LANES, UnknownVectorFunction, VectorMath

Singles = NDArray[np.float32]
Doubles = NDArray[np.float64]


def singles(*numbers: float) -> Singles:
    return np.array(numbers, np.float32)


SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 1e-45, -1e-45, 1e-38, 3e38, -3e38, np.inf, -np.inf, np.nan],
    np.float32,
)
SMALLEST_NORMAL = 2.0**-126


def _normal_tail(values: Doubles) -> Doubles:
    return np.array([0.5 * math.erfc(value / math.sqrt(2.0)) for value in values.tolist()])


def _sigmoid(values: Doubles) -> Doubles:
    return 1.0 / (1.0 + np.exp(-values))


# Reference, the interval it is compared on, and the greatest error in units in the last place of the exact result.
ACCURACY: dict[str, tuple[Callable[[Doubles], Doubles], float, float, float]] = {
    "cos": (np.cos, -1.0e6, 1.0e6, 1.6),
    "erf": (lambda values: np.array([math.erf(value) for value in values.tolist()]), -10.0, 10.0, 1.9),
    "exp": (np.exp, -110.0, 95.0, 0.9),
    "expm1": (np.expm1, -110.0, 95.0, 1.7),
    "floor": (np.floor, -1.0e9, 1.0e9, 0.0),
    "gelu": (lambda values: values * _normal_tail(-values), -5.0, 20.0, 6.0),
    "gelu_tanh": (
        lambda values: values * _sigmoid(math.sqrt(8.0 / math.pi) * (values + 0.044715 * values**3)),
        -5.0,
        20.0,
        32.0,
    ),
    "log": (np.log, 1e-45, 3.4e38, 0.9),
    "reciprocal": (lambda values: 1.0 / values, -3.4e38, 3.4e38, 0.5),
    "round": (np.rint, -1.0e9, 1.0e9, 0.0),
    "rsqrt": (lambda values: 1.0 / np.sqrt(values), 1e-45, 3.4e38, 1.5),
    "sigmoid": (_sigmoid, -87.0, 110.0, 2.5),
    "silu": (lambda values: values * _sigmoid(values), -87.0, 110.0, 3.2),
    "sin": (np.sin, -1.0e6, 1.0e6, 1.6),
    "softplus": (lambda values: np.maximum(values, 0.0) + np.log1p(np.exp(-np.abs(values))), -87.0, 200.0, 1.9),
    "sqrt": (np.sqrt, 0.0, 3.4e38, 0.5),
    "tanh": (np.tanh, -20.0, 20.0, 1.6),
}

# What NumPy in float32 says of `SPECIAL`, but for the limits at -infinity, where it has infinity times zero.
LIMITS_AT_MINUS_INFINITY = {"gelu": 0.0, "gelu_tanh": 0.0, "silu": 0.0}


def _kernels() -> str:
    module = ir.Module("kernels")
    mathematics = VectorMath(module)
    pointer, word = ir.FloatType().as_pointer(), ir.IntType(64)
    for name in FUNCTION_NAMES:
        function = mathematics.function(name)
        signature = ir.FunctionType(ir.VoidType(), [pointer] * (len(function.args) + 1) + [word])
        kernel = ir.Function(module, signature, f"run_{name}")
        set.add(kernel.attributes, '"no-builtins"')
        *inputs, output, count = kernel.args
        entry, loop, done = (kernel.append_basic_block(label) for label in ("entry", "loop", "done"))
        builder = ir.IRBuilder(entry)
        builder.branch(loop)
        builder.position_at_end(loop)
        index = builder.phi(word)

        def at(array: ir.Value, builder: ir.IRBuilder = builder, index: ir.Value = index) -> ir.Value:
            return builder.bitcast(builder.gep(array, [index]), FLOATS.as_pointer())

        result = builder.call(function, [builder.load(at(array), align=4) for array in inputs])
        builder.store(result, at(output), align=4)
        following = builder.add(index, word(LANES))
        index.add_incoming(word(0), entry)
        index.add_incoming(following, loop)
        builder.cbranch(builder.icmp_unsigned("<", following, count), loop, done)
        builder.position_at_end(done)
        builder.ret_void()
    return str(module)


class Machine:
    """All functions, compiled for this machine in one way."""

    def __init__(self, cpu: str, features: str, optimize: bool) -> None:
        binding.initialize_all_targets()
        binding.initialize_all_asmprinters()
        target = binding.Target.from_triple(binding.get_process_triple())
        machine = target.create_target_machine(cpu=cpu, features=features, opt=3 if optimize else 0, jit=True)
        module = binding.parse_assembly(_kernels())
        module.verify()
        if optimize:
            builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
            builder.getModulePassManager().run(module, builder)
        self._engine = binding.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()

    def run(self, name: str, *arrays: Singles) -> Singles:
        size = len(arrays[0])
        padded = [np.pad(array.astype(np.float32), (0, -size % LANES)) for array in arrays]
        result = np.empty_like(padded[0])
        pointers = [array.ctypes.data for array in (*padded, result)]
        signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(pointers), ctypes.c_int64)
        signature(self._engine.get_function_address(f"run_{name}"))(*pointers, len(result))
        return result[:size]


@lru_cache(maxsize=1)
def native() -> Machine:
    return Machine(binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten(), optimize=True)


def run(name: str, *arrays: Singles) -> Singles:
    return native().run(name, *arrays)


@lru_cache(maxsize=1)
def every_magnitude() -> Singles:
    """Random bits, so that all exponents and both signs occur alike."""
    bits = np.random.default_rng(1).integers(0, 2**32, 120_000, dtype=np.uint32)
    values = bits.view(np.float32)
    return values[np.isfinite(values)]


def arguments(low: float, high: float) -> Singles:
    generator = np.random.default_rng(2)
    dense = np.concatenate(
        [
            np.linspace(max(low, -20.0), min(high, 20.0), 40_000),
            generator.uniform(low, high, 40_000),
            generator.normal(0.0, 3.0, 20_000),
            every_magnitude().astype(np.float64),
        ]
    ).astype(np.float32)
    return np.unique(dense[(dense >= low) & (dense <= high)])


def errors_in_ulp(result: Singles, exact: Doubles) -> Doubles:
    with np.errstate(over="ignore"):
        rounded = np.abs(exact).astype(np.float32)
    overflows = np.isinf(rounded)
    assert np.array_equal(np.isinf(result), overflows)
    with np.errstate(invalid="ignore"):
        unit = np.spacing(np.where(overflows, np.float32(1.0), rounded)).astype(np.float64)
        return np.where(overflows, 0.0, np.abs(result - exact) / unit)


@pytest.mark.parametrize("name", sorted(ACCURACY))
def test_the_error_is_within_its_bound(name: str) -> None:
    reference, low, high, bound = ACCURACY[name]
    values = arguments(low, high)
    values = values[values != 0.0] if name == "reciprocal" else values
    with np.errstate(over="ignore", divide="ignore"):
        exact = reference(values.astype(np.float64))
    errors = errors_in_ulp(run(name, values), exact)
    assert len(values) > 50_000
    assert errors.max() <= bound, f"{errors.max():.3f} ulp at {values[errors.argmax()]!r}"


@pytest.mark.parametrize("name", sorted(ACCURACY))
def test_special_values(name: str) -> None:
    reference = ACCURACY[name][0]
    with np.errstate(all="ignore"):
        expected = reference(SPECIAL.astype(np.float64)).astype(np.float32)
    if name in LIMITS_AT_MINUS_INFINITY:
        expected[np.isneginf(SPECIAL)] = LIMITS_AT_MINUS_INFINITY[name]
    compared = np.abs(SPECIAL) < 1e6 if name in ("sin", "cos") else np.ones(len(SPECIAL), bool)
    compared |= ~np.isfinite(SPECIAL)
    np.testing.assert_allclose(run(name, SPECIAL)[compared], expected[compared], rtol=4e-7, atol=2e-45)


@pytest.mark.parametrize("name", ["tanh", "erf", "expm1", "floor", "round", "sqrt"])
def test_the_sign_of_zero_is_kept(name: str) -> None:
    assert np.signbit(run(name, singles(0.0, -0.0))).tolist() == [False, True]


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_odd_functions_are_exactly_odd(name: str) -> None:
    values = every_magnitude()
    assert np.array_equal(run(name, -values), -run(name, values))


def test_exp_at_its_edges() -> None:
    below = singles(-104.0, -105.0, -1e3, -3e38, -np.inf)
    assert np.array_equal(run("exp", below), np.zeros(5, np.float32))
    assert np.array_equal(run("exp", singles(0.0, -0.0)), np.ones(2, np.float32))
    assert np.array_equal(run("exp", singles(88.73, 89.0, 3e38)), np.full(3, np.inf, np.float32))
    assert np.isfinite(run("exp", singles(88.72)))[0]
    # Gradual underflow: the subnormal results are there, and correctly rounded but for one unit.
    subnormal = np.linspace(-103.9, -87.4, 5_000, dtype=np.float32)
    assert errors_in_ulp(run("exp", subnormal), np.exp(subnormal.astype(np.float64))).max() <= 1.0


@pytest.mark.parametrize("name", ["silu", "sigmoid", "gelu", "gelu_tanh", "softplus"])
def test_far_negative_arguments_vanish_without_cancelling(name: str) -> None:
    reference = ACCURACY[name][0]
    values = np.linspace(-140.0, 0.0, 60_000, dtype=np.float32)
    result = run(name, values).astype(np.float64)
    with np.errstate(over="ignore"):
        exact = reference(values.astype(np.float64))
    assert np.abs(result - exact).max() <= 1e-6
    seen = np.abs(exact) > 100.0 * SMALLEST_NORMAL
    relative = np.abs(result - exact)[seen] / np.abs(exact)[seen]
    assert relative.max() <= 1e-5
    assert not result[np.abs(exact) < 2.0**-150].any()


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_waves_keep_their_phase_at_large_positions(name: str) -> None:
    reference = ACCURACY[name][0]
    positions = np.arange(0.0, 1_048_576.0, 97.0)
    frequencies = 10_000.0 ** (-np.arange(0.0, 32.0) / 32.0)
    angles = np.concatenate([np.outer(positions, frequencies).ravel(), np.arange(-1e6, 1e6, 37.3)]).astype(np.float32)
    assert np.abs(run(name, angles) - reference(angles.astype(np.float64))).max() <= 1.2e-7
    assert np.abs(run(name, every_magnitude())).max() <= 1.0


def test_pow_follows_numpy_where_it_is_special() -> None:
    more = singles(1.5, -1.5, 1e10, 16777215.0, -16777215.0, 16777216.0, 0.99999994, -1.0000001)
    values = np.concatenate([SPECIAL, more])
    base, exponent = (grid.ravel() for grid in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        expected = np.power(base.astype(np.float64), exponent.astype(np.float64)).astype(np.float32)
    result = run("pow", base, exponent)
    np.testing.assert_allclose(result, expected, rtol=1.3e-7, atol=2e-45)
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.signbit(result[numbers]), np.signbit(expected[numbers]))


def test_pow_is_all_but_correctly_rounded() -> None:
    generator = np.random.default_rng(3)
    base = np.exp(generator.uniform(-80.0, 80.0, 100_000)).astype(np.float32)
    reach = 110.0 / np.maximum(np.abs(np.log(base.astype(np.float64))), 1e-3)
    exponent = (generator.uniform(-1.0, 1.0, len(base)) * reach).astype(np.float32)
    with np.errstate(over="ignore"):
        exact = np.power(base.astype(np.float64), exponent.astype(np.float64))
    assert errors_in_ulp(run("pow", base, exponent), exact).max() <= 0.501


@lru_cache(maxsize=1)
def other_machines() -> dict[str, Machine]:
    host = binding.get_host_cpu_features()
    name = binding.get_host_cpu_name()
    machines = {"unoptimized": Machine(name, host.flatten(), optimize=False)}
    if host.get("avx2") and host.get("fma"):
        machines["x86-64-v3"] = Machine("x86-64-v3", "", optimize=True)
    return machines


@pytest.mark.parametrize("name", FUNCTION_NAMES)
def test_the_bits_depend_on_neither_optimization_nor_vector_width(name: str) -> None:
    values = np.concatenate([SPECIAL, every_magnitude(), np.linspace(-20.0, 20.0, 20_000, dtype=np.float32)])
    operands = (np.abs(values), np.roll(values, 1)) if name == "pow" else (values,)
    expected = run(name, *operands)
    for how, machine in other_machines().items():
        result = machine.run(name, *operands)
        numbers = ~np.isnan(expected)
        assert np.array_equal(np.isnan(result), ~numbers), how
        assert np.array_equal(result[numbers].view(np.uint32), expected[numbers].view(np.uint32)), how


def undefined_symbols(relocatable: bytes) -> list[str]:
    table_offset = struct.unpack_from("<Q", relocatable, 40)[0]
    entry_size, count = struct.unpack_from("<HH", relocatable, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", relocatable, table_offset + entry_size * i) for i in range(count)]
    (symbols,) = (section for section in sections if section[1] == 2)
    names = sections[symbols[6]][4]
    found = []
    for offset in range(symbols[4] + 24, symbols[4] + symbols[5], 24):
        name, _, _, section = struct.unpack_from("<IBBH", relocatable, offset)
        if section == 0:
            found.append(relocatable[names + name : relocatable.index(b"\0", names + name)].decode())
    return found


@pytest.mark.parametrize("name", sorted(CPU_CLASSES))
def test_no_cpu_class_calls_a_library(name: str) -> None:
    assert undefined_symbols(emit_relocatable(_kernels(), CPU_CLASSES[name])) == []


def test_the_check_for_undefined_symbols_sees_one() -> None:
    calls_libm = (
        "declare float @llvm.exp.f32(float)\n"
        "define float @f(float %x) {\n  %y = call float @llvm.exp.f32(float %x)\n  ret float %y\n}\n"
    )
    assert undefined_symbols(emit_relocatable(calls_libm, CPU_CLASSES["x86-64-v3"])) == ["expf"]


def test_the_ir_leaves_nothing_to_the_compiler() -> None:
    text = _kernels()
    assert not re.search(r"\b(fast|nnan|ninf|nsz|arcp|contract|afn|reassoc)\b", text)
    intrinsics = set(re.findall(r"@\"?llvm\.(\w+)\.", text))
    assert intrinsics == {"copysign", "fabs", "floor", "fma", "roundeven", "sqrt"}
    # Their result on NaN or on numbers out of range is undefined.
    assert "fptosi" not in text and "fptoui" not in text


def test_a_function_is_defined_once_and_stays_internal() -> None:
    module = ir.Module("twice")
    mathematics = VectorMath(module)
    function = mathematics.function("silu")
    assert mathematics.function("silu") is function
    assert str(module).count('@"vm_silu"') == 1
    assert 'define internal <16 x float> @"vm_silu"(<16 x float>' in str(module)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UnknownVectorFunction, match=r"an elementary function .*exp, exp2, expm1.*, found 'erfinv'"):
        VectorMath(ir.Module("unknown")).function("erfinv")
