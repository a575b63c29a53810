"""What attention stores itself, rounded or quantized, has the bits that a kernel of its own gives it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from head_programs import VOCABULARY, HeadProgram
from native_kernels import NATIVE_CLASSES, Array
from programs import make_batch, open_executor, packed_weights, slow_from
from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.driver import CompileOptions, compile_planned, schedule_passes
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.module import CompiledModule
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.passes.join_rounding import JoinRounding
from tessera_compiler.tile.lowering.chunk_sizes import CHUNK_POSITIONS, MOST_TOKENS
from tessera_runtime.executor.reference.executor import ReferenceExecutor

LENGTH = CHUNK_POSITIONS + 50
BLOCKS = -(-LENGTH // 16)
STEPS = (
    [64] * 5,
    [CHUNK_POSITIONS - 20, *[1] * 12, MOST_TOKENS, 3, 7, 2, 1, 5, MOST_TOKENS + 1, 16, 17],
)
"""In full tiles, and in tiles of few tokens on either side of where several instances begin to share a context."""

GROUPED = HeadProgram(width=64, rotated=64, queries=6, keys=2)
PROGRAMS = {
    "a head in two pieces": (HeadProgram(width=128, queries=2, keys=1), "int8", "auto"),
    "a head is two groups": (GROUPED, "int4", "auto"),
    "a head is a group": (GROUPED, "int8", "auto"),
    "pieces of different widths": (HeadProgram(width=96, queries=4, keys=2), "int4", "auto"),
    "rounded": (GROUPED, "bf16", "auto"),
    "rounded, in pieces": (HeadProgram(width=80, queries=3, keys=1), "bf16", "auto"),
    "with a window": (HeadProgram(width=64, queries=4, keys=2, window=40), "int8", "auto"),
    "through a cache of bytes": (GROUPED, "int8", "int8"),
    "through a cache of bytes, with a window": (HeadProgram(width=128, queries=4, keys=1, window=70), "int4", "int8"),
    "through a cache of float32": (HeadProgram(width=64, queries=5, keys=1), "int8", "fp32"),
    "one head, alone": (HeadProgram(width=64, queries=1, keys=1), "int8", "auto"),
}
CASES = [
    *((name, NATIVE_CLASSES[0]) for name in PROGRAMS),
    *((name, other) for other in NATIVE_CLASSES[1:] for name in ("a head is a group", "pieces of different widths")),
]


def planned(module: ModuleOp, options: CompileOptions, *, joined: bool) -> tuple[CompiledModule, list[str]]:
    """The compiled program, and the ops of each group, but for views."""
    for each in schedule_passes(options):
        if joined or not isinstance(each, JoinRounding):
            each.apply(module)
    module.verify()
    bodies = [
        " ".join(
            op.name.split(".")[1] for op in group.body.block.ops if op.name not in ("graph.reshape", "graph.slice")
        )
        for group in entry_function(module).body.block.ops
        if isinstance(group, schedule.GroupOp)
    ]
    return compile_planned(module, options), bodies


def weights_of(program: HeadProgram) -> dict[str, Array]:
    """So that a token attends to many."""
    weights = program.weights()
    return {**weights, "qkv": weights["qkv"] * np.float32(0.2)}


def options_of(dtype: str, kv_dtype: str, cpu_class: str) -> CompileOptions:
    return CompileOptions(
        dtype, BLOCKS * 16, VOCABULARY, max_tokens=CHUNK_POSITIONS, classes=(cpu_class,), kv_dtype=kv_dtype
    )


def run(executor, ids: Sequence[int], sizes: Sequence[int]) -> Array:  # type: ignore[no-untyped-def]
    executor.allocate_cache(BLOCKS + 3)
    table = (np.random.default_rng(1).permutation(BLOCKS + 3)[:BLOCKS]).tolist()
    found: list[Array] = []
    start = 0
    while start < LENGTH:
        size = min(sizes[len(found)], LENGTH - start)
        found.append(executor.step(make_batch([(ids[p], p, 0) for p in range(start, start + size)], table)))
        start += size
    return np.concatenate(found)


@pytest.mark.parametrize(("name", "cpu_class"), slow_from(2, CASES))
def test_results_are_those_of_a_kernel_of_its_own(name: str, cpu_class: str, tmp_path: Path) -> None:
    program, dtype, kv_dtype = PROGRAMS[name]
    ids = np.random.default_rng(4).integers(0, VOCABULARY, LENGTH).tolist()
    ending = "round" if dtype == "bf16" else "quantize"
    found = []
    for joined in (True, False):
        folder = tmp_path / str(joined)
        folder.mkdir()
        result, bodies = planned(program.module(), options_of(dtype, kv_dtype, cpu_class), joined=joined)
        assert (f"attend {ending} yield" in bodies) == joined
        with open_executor(
            result, packed_weights(result, weights_of(program), folder), cpu_class, folder, 2
        ) as executor:
            found += [run(executor, ids, sizes) for sizes in STEPS]
    assert np.isfinite(found[0]).all() and len(np.unique(found[0], axis=0)) > 0.9 * LENGTH
    assert len({each.tobytes() for each in found}) == 1


def test_the_reference_target_stores_the_same(tmp_path: Path) -> None:
    program, dtype, kv_dtype = PROGRAMS["a head is a group"]
    (cpu_class, *_) = NATIVE_CLASSES
    ids = np.random.default_rng(4).integers(0, VOCABULARY, 40).tolist()
    batch = make_batch([(token, p, 0) for p, token in enumerate(ids)], [2, 0, 1])
    result, _ = planned(program.module(), options_of(dtype, kv_dtype, cpu_class), joined=True)
    tensors = packed_weights(result, weights_of(program), tmp_path)
    reference = next(target for target in result.targets if target.name == "reference")
    found = []
    with open_executor(result, tensors, cpu_class, tmp_path) as native:
        for executor in (native, ReferenceExecutor(reference.program, tensors)):
            executor.allocate_cache(3)
            found.append(executor.step(batch))
    # A sum in another order may fall on the other side of the edge of a byte, and then a whole step of it apart.
    np.testing.assert_allclose(found[0], found[1], atol=2e-2 * np.abs(found[0]).max())
