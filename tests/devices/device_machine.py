"""Runs a whole program for a device on the host: every launch through an interpreter of Tile IR or of Triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from programs import MAX_MODEL_LEN, tiny_model
from xdsl.dialects.builtin import ModuleOp

from tessera_compiler.device_driver import DeviceOptions, device_passes
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.module import WeightRecipe
from tessera_compiler.schedule.dialect import GroupOp
from tessera_compiler.targets.program import ProgramLimits, describe_program
from tessera_compiler.targets.triton.target import describe_launches
from tessera_compiler.tile import dialect
from tessera_compiler.tile.float8 import float8_values
from tessera_compiler.tile.lowering.device_context import BLOCK_TOKENS
from tessera_compiler.tile.lowering.device_lower import DeviceProgram, lower_for_devices
from tessera_compiler.tile.types import BYTES, numpy_dtype

Array = NDArray[Any]
Runner = Callable[..., Sequence[Array]]
"""(kernel, buffers, **counts) → the buffers afterwards."""
CACHE_BLOCKS = 12


@dataclass(frozen=True)
class DevicePlan:
    """A tiny model lowered for devices."""

    module: ModuleOp
    groups: list[GroupOp]
    lowered: DeviceProgram
    description: dict[str, Any]
    """What programs of all targets share."""
    program: dict[str, Any]
    """All of the program but its code."""
    recipes: tuple[WeightRecipe, ...]


def plan_for(name: str, dtype: str, targets: tuple[str, ...]) -> DevicePlan:
    model = tiny_model(name)
    module = model.graph()
    limits = ProgramLimits(128, MAX_MODEL_LEN, model.vocab_size)
    for each in device_passes(DeviceOptions(targets, dtype, limits)):
        each.apply(module)
        module.verify()
    groups = [op for op in entry_function(module).body.block.ops if isinstance(op, GroupOp)]
    lowered = lower_for_devices(groups, targets)
    shared = describe_program(module, lowered, limits)
    program = describe_launches(shared.description, shared.weights, lowered, targets[0])
    return DevicePlan(module, groups, lowered, shared.description, program, shared.weights)


def cut_into_tiles(sequences: Array, most: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Tiles of consecutive tokens of one sequence, and the rows of tokens that are alone."""
    tiles: list[tuple[int, int]] = []
    singles = []
    row = 0
    while row < len(sequences):
        end = row + 1
        while end < len(sequences) and sequences[end] == sequences[row] and end - row < most:
            end += 1
        if end - row > 1:
            tiles.append((row, end - row))
        else:
            singles.append(row)
        row = end
    return tiles, singles


class DeviceMachine:
    """Memory of a device: weights, cache, arena. Everything not written yet is NaN or a pattern."""

    def __init__(
        self, plan: DevicePlan, target: str, tensors: dict[str, Array], run: Runner, tokens: int | None = None
    ) -> None:
        """Rows from `tokens` on are padding, if that is said."""
        self._tokens = tokens
        self._plan, self._target, self._run = plan, target, run
        self._kernels = plan.lowered.kernels()
        self._weights = [_weight(tensors[recipe.name], recipe) for recipe in plan.recipes]
        plan_of_cache = plan.lowered.cache
        self._cache: dict[str, Array] = {}
        for index, layer in enumerate(plan_of_cache.layers):
            for part in ("key", "value"):
                width = plan_of_cache.bytes_per_block // BYTES[layer.element]
                self._cache[f"cache_{part}:{index}"] = np.full((CACHE_BLOCKS, width), np.nan, np.float32)
        self.feedback = np.zeros(4 * 16, np.int32)
        self.launched: list[str] = []

    def step(self, token_ids: Array, positions: Array, sequences: Array, tables: Array, rows: Array) -> Array:
        program = self._plan.program
        known = sequences[: self._tokens]
        tiles, singles = cut_into_tiles(known, program["cache"]["tile_tokens"])
        inputs = {
            "token_ids": token_ids,
            "positions": positions,
            "sequences": sequences,
            "block_tables": tables.reshape(-1),
            "logit_rows": rows,
            "tiles": np.array([*tiles, (0, 0)], np.int32).reshape(-1),
            "singles": np.array([*singles, -1], np.int32),
        }
        width = tables.shape[1]
        chunks = -(-width * BLOCK_TOKENS // program["cache"]["chunk_tokens"])
        sizes = {"T": len(token_ids), "L": len(rows), "Q": len(tiles) + 1, "D": len(singles) + 1, "C": chunks}
        buffers = [_blank(buffer, sizes) for buffer in program["buffers"]]
        for launch in program["launches"]:
            kernel = self._choose(launch["group"], sizes)
            if kernel is None:
                continue
            self.launched.append(kernel.symbol)
            arguments = [self._argument(each, inputs, buffers) for each in launch["args"][:-3]]
            found = self._run(
                kernel,
                arguments,
                tokens=sizes["T"],
                logit_rows=sizes["L"],
                table_width=width,
                tiles=sizes["Q"],
                singles=sizes["D"],
                chunks=chunks,
            )
            for given, after in zip(arguments, found, strict=True):
                given[...] = after.reshape(given.shape)
        output = program["buffers"][program["output"]]
        return np.array(buffers[program["output"]][:, : output["shape"][0]])

    def _choose(self, group: str, sizes: dict[str, int]) -> dialect.KernelOp | None:
        for stage in (stage for group_ in self._plan.lowered.groups.values() for stage in group_.stages):
            if stage.name == group:
                for variant in stage.variants[self._target]:
                    if all(sizes[symbol] <= limit for symbol, limit in variant.limits.items()):
                        return variant.kernel
        raise KeyError(group)

    def _argument(self, argument: str, inputs: dict[str, Array], buffers: list[Array]) -> Array:
        kind, _, which = argument.partition(":")
        if kind == "input":
            return inputs[which]
        if kind == "weight":
            return self._weights[int(which)]
        if kind == "buffer":
            return buffers[int(which)]
        if argument == "seat:feedback":
            return self.feedback
        return self._cache[argument]


def run_in_numpy(kernel: dialect.KernelOp, buffers: Sequence[Array], **counts: int) -> list[Array]:
    from tessera_compiler.targets.reference.interpreter import run_kernel

    run_kernel(kernel, buffers, **counts)  # type: ignore[arg-type]
    return list(buffers)


def _blank(buffer: dict[str, Any], sizes: dict[str, int]) -> Array:
    rows = buffer["rows"] if isinstance(buffer["rows"], int) else sizes[buffer["rows"]]
    if buffer["dtype"] == "i64":  # between kernels that draw, which is not done here
        return np.empty((rows, 0), np.int64)
    dtype = numpy_dtype(buffer["dtype"])
    width = buffer["row_bytes"] // BYTES[buffer["dtype"]]
    return np.full((rows, width), np.nan if dtype == np.float32 else 77, dtype)


def _weight(stored: Array, recipe: WeightRecipe) -> Array:
    values = stored.view(np.int32)[..., 0] if recipe.layout == "columns4" else stored
    if recipe.layout == "matrix4":
        values = stored.view(np.int32)
    if recipe.layout == "matrix_signed":
        values = stored.view(np.int8)
    if recipe.dtype == "f8_e4m3":
        values = float8_values(stored)
    if recipe.dtype == "bf16":
        values = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.ascontiguousarray(values.reshape(1, -1) if values.ndim == 1 else values.reshape(-1, values.shape[-1]))


def logical_weight(plan: DevicePlan, tensors: dict[str, Array], name: str) -> Array:
    """A weight as Schedule IR's evaluator wants it, without padding."""
    recipe = next(recipe for recipe in plan.recipes if recipe.name == name)
    if recipe.layout == "matrix4":
        pairs = tensors[name].reshape(*tensors[name].shape[:2], 16, 4).transpose(1, 0, 3, 2)
        numbers = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(len(pairs), -1)
        return numbers[: recipe.shape[0], : recipe.shape[1]]
    values = _weight(tensors[name], recipe)
    if recipe.layout == "matrix_signed":
        values = (values.astype(np.int16) + 128).astype(np.uint8)
    if recipe.layout == "columns4":
        values = tensors[name].transpose(1, 0, 2).reshape(tensors[name].shape[1], -1)
    if len(recipe.shape) < 2:
        return values[0, : recipe.shape[0] if recipe.shape else 1].reshape(recipe.shape)
    rows = int(np.prod(recipe.shape[:-1]))
    return values[:rows, : recipe.shape[-1]].reshape(recipe.shape)
