"""What tests of a device's products share: programs against their schedule, and operands whose sums are exact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from device_machine import DeviceMachine, DevicePlan, logical_weight, run_in_numpy
from numpy.typing import NDArray
from programs import tiny_model
from test_device_programs import FOR_THE_EVALUATOR, TARGET, TOLERANCE, Conversation, packed, run

from tessera_compiler.schedule.evaluator import Cache, evaluate_program
from tessera_compiler.tile.dialect import KernelOp
from tessera_compiler.tile.types import element_name, numpy_dtype

Array = NDArray[Any]
Parts = Sequence[tuple[int, int]]
"""How many tokens of which sequence a step has."""


def launched_as_scheduled(plan: DevicePlan, model: str, dtype: str, steps: Sequence[Parts], folder: Path) -> list[str]:
    """The symbols of all kernels that some steps launch, whose logits are those of the schedule."""
    tensors = packed(plan, model, folder)
    machine, cache = DeviceMachine(plan, TARGET, tensors, run_in_numpy), Cache(64)
    conversation = Conversation(tiny_model(model).vocab_size)
    for parts in steps:
        step = conversation.step(*parts)
        found = run(machine, step)
        inputs = {**step, "block_tables": FOR_THE_EVALUATOR}
        wanted = evaluate_program(
            plan.module, lambda op: logical_weight(plan, tensors, op.weight_name.data), inputs, cache
        )
        assert np.abs(found - wanted).max() <= TOLERANCE[dtype] * np.abs(wanted).max()
    return machine.launched


def whole_numbers(kernel: KernelOp, tokens: int) -> list[Array]:
    """Whole numbers so small that every sum of products is exact, in any order."""
    random = np.random.default_rng(3)
    made = []
    for buffer in kernel.buffers:
        shape = [tokens if size < 0 else size for size in buffer.type.get_shape()]  # type: ignore[attr-defined]
        made.append(random.integers(-3, 4, shape).astype(numpy_dtype(element_name(buffer.type))))
    return made
