"""A whole GPU program for the toy kernels: small, but with every part that a program can have."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from fake_driver import FakeDriver
from numpy.typing import NDArray
from toy_kernels import BLOCK_BYTES, BLOCK_TOKENS, KERNELS, LOGIT_ROW, ROW, SEATS, VOCABULARY

from tessera_runtime.executor.gpu.executor import GpuExecutor
from tessera_runtime.executor.gpu.program import GpuProgram, read_program

PARAMETERS: dict[str, tuple[str, ...]] = {
    "embed": (*["pointer"] * 4, "i32"),
    "cache_write": (*["pointer"] * 6, "i32", "i64"),
    "attend_singles": (*["pointer"] * 5, "i32", "pointer", "i32"),
    "attend_tiles": (*["pointer"] * 5, "i32", "pointer", "i32"),
    "head": ("pointer", "pointer", "pointer", "i32"),
    "draw": (*["pointer"] * 8, "i32"),
    "draw_greedy": (*["pointer"] * 4, "i32"),
}


def code_object(*entries: str) -> bytes:
    return json.dumps(entries).encode()


def toy_program(max_tokens: int = 16, max_model_len: int = 64) -> dict[str, Any]:
    """program.json of the toy."""

    def launch(group: str, args: list[str], writes: list[int], layer: str = "") -> dict[str, Any]:
        return {
            **{"group": group, "args": args, "layer": layer, "writes": writes, "updates": []},
            **{"reads_cache": [], "writes_cache": []},
        }

    attention = ["input:positions", "input:sequences", "input:block_tables", "cache_key:0", "buffer:2", "size:W"]
    grids: dict[str, tuple[list[Any], dict[str, int]]] = {
        "embed": (["T"], {}),
        "cache_write": (["T/4*4"], {}),
        "attend_singles": (["D"], {}),
        "attend_tiles": (["Q"], {}),
        "head": (["L", 1], {}),
        "draw": (["L"], {}),
        "draw_greedy": (["L"], {}),
    }
    codes = [code_object(*list(PARAMETERS)[:5]), code_object(*list(PARAMETERS)[5:])]
    return {
        "abi": 2,
        "target": "cuda-sm90",
        "driver": 12040,
        "warp_size": 32,
        "limits": {"max_tokens": max_tokens, "max_model_len": max_model_len, "vocab_size": VOCABULARY},
        "weights": [{"name": "scale", "dtype": "i32", "shape": [16], "layout": "rows", "bytes": 64}],
        "buffers": [
            _buffer("x", "T", 0),
            _buffer("y", "T", ROW),
            # The hashes lie where x was: nobody needs it any more.
            _buffer("hashes", "T", 0),
            {
                **_buffer("logits", "L", 2 * ROW),
                "dtype": "f32",
                "shape": [VOCABULARY],
                "row_bytes": LOGIT_ROW,
            },
        ],
        "arena": {"bytes": 0, "bytes_per_token": 2 * ROW, "bytes_per_logit_row": LOGIT_ROW},
        "cache": {
            "block_tokens": BLOCK_TOKENS,
            "bytes_per_block": BLOCK_BYTES,
            "tile_tokens": 6,
            "chunk_tokens": 16,
            "layers": [{"key_offset": 0, "key_bytes": 128, "value_offset": 128, "value_bytes": 128}],
        },
        "modules": [
            {
                "file": f"{hashlib.sha256(code).hexdigest()[:32]}.cubin",
                "kind": "cubin",
                "sha256": hashlib.sha256(code).hexdigest(),
                "bytes": len(code),
                "fallback": None,
            }
            for code in codes
        ],
        "kernels": {
            name: {
                "module": 0 if name in list(PARAMETERS)[:5] else 1,
                "entry": name,
                "warps": 4,
                "shared_bytes": 1024,
                "parameters": list(kinds),
                "tensor_maps": [],
                "scratch_pointers": 2,
                "scratch_bytes": 128 if name == "head" else 0,
                "scratch_alignment": 128,
                "cluster": 1,
                "dependent": False,
                **{"registers": 32, "spilled_bytes": 0, "code_bytes": 1000, "tuned": None},
            }
            for name, kinds in PARAMETERS.items()
        },
        "groups": {
            name: {
                "kind": "toy",
                "tuned": None,
                "source": name,
                "variants": [{"limits": limits, "kernel": name, "grid": grid}],
            }
            for name, (grid, limits) in grids.items()
        },
        "launches": [
            launch("embed", ["input:token_ids", "seat:feedback", "weight:0", "buffer:0", "size:T"], [0], "embed"),
            launch(
                "cache_write",
                ["buffer:0", *attention[:4], "buffer:1", "size:T", "size:W"],
                [1],
                "write",
            ),
            launch("attend_singles", [*attention, "input:singles", "size:D"], [2], "attend"),
            launch("attend_tiles", [*attention, "input:tiles", "size:Q"], [2], "attend"),
            launch("head", ["buffer:2", "input:logit_rows", "buffer:3", "size:L"], [3], "head"),
        ],
        "layers": [{"path": "head", "end": 5, "buffer": 3}],
        "output": 3,
        "drawing": {
            "greedy": [
                launch("draw_greedy", ["buffer:3", "input:draws", "seat:feedback", "result:ids", "size:L"], []),
            ],
            "full": [
                launch(
                    "draw",
                    [
                        *("buffer:3", "input:draws", "seat:feedback", "seat:token_counts", "seat:bias"),
                        *("seat:bitmask", "result:ids", "result:logprobs", "size:L"),
                    ],
                    [],
                ),
            ],
        },
        "seats": [{"name": name, "row_bytes": size} for name, size in SEATS.items()],
        "graph_tokens": [1, 2, 4, 8],
    }


def _buffer(name: str, rows: str, offset: int) -> dict[str, Any]:
    return {
        **{"name": name, "dtype": "i32", "shape": [16], "row_bytes": ROW, "rows": rows},
        "offset": {"tokens": offset, "logit_rows": 0, "bytes": 0},
    }


class ToyWeights:
    """Implements `weights.WeightSource`."""

    def __init__(self, factor: int = 3) -> None:
        self._scale = np.full(16, factor, np.int32).view(np.uint8)

    def size(self, name: str) -> int:
        return len(self._scale)

    def read_into(self, target: NDArray[np.uint8], name: str, start: int) -> None:
        target[:] = self._scale[start : start + len(target)]


def write_code(folder: Path, program: dict[str, Any]) -> None:
    codes = [code_object(*list(PARAMETERS)[:5]), code_object(*list(PARAMETERS)[5:])]
    for module, code in zip(program["modules"], codes, strict=True):
        (folder / module["file"]).write_bytes(code)


def toy_driver(program: GpuProgram, **options: Any) -> FakeDriver:
    """A device that knows the toy's kernels, with their two scratch pointers."""
    kinds = {kernel.entry: kernel.function_parameters for kernel in program.kernels.values()}

    def without_scratch(kernel: Any) -> Any:
        return lambda memory, values, grid: kernel(memory, values[:-2], grid)

    return FakeDriver(kinds, {name: without_scratch(kernel) for name, kernel in KERNELS.items()}, **options)


def toy_executor(folder: Path, driver: FakeDriver | None = None, **limits: int) -> tuple[GpuExecutor, FakeDriver]:
    raw = toy_program(**limits)
    write_code(folder, raw)
    program = read_program(raw)
    driver = driver or toy_driver(program)
    return GpuExecutor(driver, program, folder, ToyWeights()), driver
