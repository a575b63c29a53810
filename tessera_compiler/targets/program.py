"""The part of program.json that all targets share (docs/spec/program.md): what is launched, on what, in what order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.dialects.func import ReturnOp
from xdsl.ir import BlockArgument, Operation, SSAValue

from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.evaluator import entry_function
from tessera_compiler.graph.types import rows_of, type_of
from tessera_compiler.module import WeightRecipe
from tessera_compiler.schedule import dialect as schedule
from tessera_compiler.schedule.passes.plan_phases import caches_of
from tessera_compiler.schedule.physical import BLOCK_TOKENS, row_bytes
from tessera_compiler.schedule.views import row_shape
from tessera_compiler.tile.lowering.chunk_sizes import partial_bytes
from tessera_compiler.tile.lowering.context import CacheLayer, CachePlan, GroupArguments

ABI = 3
INPUTS = ("token_ids", "positions", "logit_rows", "sequences", "block_tables")
"""The function's arguments, in order."""

TILES = "tiles"
"""The input that only kernels see: how a step's tokens are cut for attention."""
SCRATCH = "scratch"
"""The argument that stands for memory at the end of the arena, which no other launch uses."""


@dataclass(frozen=True)
class ProgramLimits:
    max_tokens: int
    max_model_len: int
    vocab_size: int


class _Lowered(Protocol):
    """What all programs have that are lowered for CPUs or for devices."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def arguments(self) -> Sequence[GroupArguments]: ...
    @property
    def cache(self) -> CachePlan: ...


@dataclass(frozen=True)
class SharedProgram:
    """The common part of program.json, and how its weights are made."""

    description: dict[str, Any]
    weights: tuple[WeightRecipe, ...]


def describe_program(module: ModuleOp, lowered: _Lowered, limits: ProgramLimits) -> SharedProgram:
    block = entry_function(module).body.block
    groups = [op for op in block.ops if isinstance(op, schedule.GroupOp)]
    weights: dict[SSAValue, int] = {}
    recipes: list[WeightRecipe] = []
    for op in block.ops:
        if isinstance(op, schedule.WeightOp | graph.ConstantOp):
            weights[op.results[0]] = len(recipes)
            recipes.append(_recipe(op, len(recipes)))
    buffers: dict[SSAValue, int] = {}
    described: list[dict[str, Any]] = []
    for group in groups:
        assert group.offsets is not None, "memory is planned before a program is described"
        for result, offset in zip(group.results_, group.offsets.data, strict=True):
            buffers[result] = len(described)
            described.append(_buffer(result, offset.value.data, len(described)))  # type: ignore[attr-defined]
    per_token = _extent(described, "tokens")
    for entry in described:
        # The region of rows of logits begins where that of tokens ends.
        if entry["rows"] == "L":
            entry["offset"]["tokens"] = per_token
    launches, layers = [], []
    for index, (group, name, arguments) in enumerate(zip(groups, lowered.names, lowered.arguments, strict=True)):
        reads, writes = caches_of(group)
        args = [_argument(value, weights, buffers) for value in group.inputs]
        args += [f"cache_{part}:{cache}" for part, cache in arguments.caches]
        args += [f"input:{TILES}"] * arguments.tiles
        args += [SCRATCH] * arguments.partials
        args += [f"buffer:{buffers[result]}" for result in group.results_]
        launches.append(
            {
                "group": name,
                "args": args,
                "barrier": bool(group.barrier is not None and group.barrier.value.data),
                "layer": _module_of(group),
                "reads_cache": sorted(reads),  # type: ignore[type-var]
                "writes_cache": sorted(writes),  # type: ignore[type-var]
            }
        )
        for result, value in zip(group.results_, group.yielded, strict=True):
            owner = value.owner
            mark = owner.attributes.get("layer_output") if isinstance(owner, Operation) else None
            if isinstance(mark, StringAttr):
                layers.append({"path": mark.data, "end": index + 1, "buffer": buffers[result]})
    end = block.last_op
    assert isinstance(end, ReturnOp)
    cache = lowered.cache
    description = {
        "abi": ABI,
        "limits": {
            "max_tokens": limits.max_tokens,
            "max_model_len": limits.max_model_len,
            "vocab_size": limits.vocab_size,
        },
        "weights": [
            {
                "name": recipe.name,
                "dtype": recipe.dtype,
                "shape": list(recipe.shape),
                "layout": recipe.layout,
            }
            for recipe in recipes
        ],
        "buffers": described,
        "arena": {
            "bytes_per_token": per_token,
            "bytes_per_logit_row": _extent(described, "logit_rows"),
            "bytes": _scratch_bytes(groups, lowered.arguments, limits.max_model_len),
        },
        "cache": describe_cache(cache),
        "launches": launches,
        "layers": layers,
        "output": buffers[end.operands[0]],
    }
    for value in end.operands[1:]:
        (columns,) = (
            op.group.value.data for group in groups for op in group.body.block.ops if isinstance(op, schedule.PeaksOp)
        )
        description["peaks"] = {"buffer": buffers[value], "columns": columns}
    return SharedProgram(description, tuple(recipes))


def _scratch_bytes(groups: list[schedule.GroupOp], arguments: Sequence[GroupArguments], positions: int) -> int:
    """What the launches that share contexts need to keep what the chunks of these come to; each uses it anew."""
    return max(
        (
            partial_bytes(type_of(op.query).get_shape()[1], op.value_dim.value.data, positions)
            for group, each in zip(groups, arguments, strict=True)
            for op in group.body.block.ops
            if each.partials and isinstance(op, schedule.AttendOp)
        ),
        default=0,
    )


def describe_cache(cache: CachePlan) -> dict[str, Any]:
    """Where everything lies in a block of the KV cache."""
    return {
        "block_tokens": BLOCK_TOKENS,
        "bytes_per_block": cache.bytes_per_block,
        "layers": [
            {
                "layer": index,
                "heads": layer.heads,
                "key_dim": layer.key_dim,
                "value_dim": layer.value_dim,
                "dtype": layer.element,
                "key_offset": layer.key_offset,
                "value_offset": layer.value_offset,
                **(_of_bytes(layer) if layer.quantized else {}),
            }
            for index, layer in enumerate(cache.layers)
        ],
    }


def _of_bytes(layer: CacheLayer) -> dict[str, int]:
    """What a layer has besides if it holds bytes."""
    return {
        "key_scale_offset": layer.key_scale_offset,
        "value_scale_offset": layer.value_scale_offset,
        "head_bytes": layer.head_bytes,
    }


def _recipe(op: schedule.WeightOp | graph.ConstantOp, index: int) -> WeightRecipe:
    if isinstance(op, graph.ConstantOp):
        return WeightRecipe(f"constants.{index}", op.array.shape, "f32", "rows", constant=op.array.astype("float32"))
    type_ = type_of(op.result)
    return WeightRecipe(
        name=op.weight_name.data,
        shape=type_.get_shape(),
        dtype=schedule.element_name(type_),
        layout=op.layout.data,
        sources=tuple(source.data for source in op.sources),
        transposed=op.transposed is not None,
        scales_of=op.scales_of.data if op.scales_of else None,
        part=op.part.data if op.part else None,
        group=op.group.value.data if op.group else None,
    )


def _buffer(value: SSAValue, offset: int, index: int) -> dict[str, Any]:
    type_ = type_of(value)
    rows = rows_of(type_)
    of_tokens = rows == "T"
    return {
        "name": f"b{index}",
        "dtype": schedule.element_name(type_),
        "shape": list(row_shape(type_.get_shape())),
        "row_bytes": row_bytes(type_),
        "rows": rows,
        "offset": {"tokens": offset if of_tokens else 0, "logit_rows": 0 if of_tokens else offset, "bytes": 0},
    }


def _extent(buffers: list[dict[str, Any]], region: str) -> int:
    rows = "T" if region == "tokens" else "L"
    return max((b["offset"][region] + b["row_bytes"] for b in buffers if b["rows"] == rows), default=0)


def _argument(value: SSAValue, weights: dict[SSAValue, int], buffers: dict[SSAValue, int]) -> str:
    if isinstance(value, BlockArgument):
        return f"input:{INPUTS[value.index]}"
    if value in weights:
        return f"weight:{weights[value]}"
    return f"buffer:{buffers[value]}"


def _module_of(group: schedule.GroupOp) -> str:
    for op in group.body.block.ops:
        mark = op.attributes.get("module")
        if isinstance(mark, StringAttr):
            return mark.data
    return ""
