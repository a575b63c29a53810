"""The models that GPUs are measured with: their shapes, compiled where there is a compiler, with random weights where
there is a GPU. Speed does not need sense.
"""

from __future__ import annotations

import base64
import contextlib
import json
import zlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.executor.gpu.program import GpuProgram, read_program

_QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "head_dim": 128,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        **_QWEN3,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "qwen2.5-1.5b": {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        **_QWEN3,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}
CONSTANTS, BUILT = "constants.json", "built.json"
TINY = "qwen3-tiny"
"""For tests of numbers; nobody is interested in its speed. Its vocabulary is so large that few rows of its head's
product are turned, while the products before are not, and its down projection so long that its columns are cut: all are
compared with those of many rows. Three heads share keys, which makes query tiles of no power of two."""
CONFIGS[TINY] = {
    **_QWEN3,
    "hidden_size": 256,
    "intermediate_size": 2048,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 6144,
    "tie_word_embeddings": False,
}
MEASURED = ("qwen3-0.6b", "qwen2.5-1.5b", "qwen3-8b")
MAX_MODEL_LEN = 4096
MAX_TOKENS = 4096
_BLOCK = 4 << 20
_SCALE = 0.02
_SPREAD = {"u8": 73.9, "u4": 4.61, "f8_e4m3": 0.591}
"""Standard deviation of random weights of these elements, about their zero points and before their scales."""
_STEPS, _ZEROS = 128, 120
"""The scale of each group of four bits, as bytes hold it, and the zero point, 7.5 in sixteenths."""
BASE_DTYPE = "bf16"
QUANTIZED_DTYPES = ("int8", "int4", "fp8")
BITS: dict[str, Any] = {"bf16": np.uint16, "f16": np.float16, "f32": np.float32, "u8": np.uint8, "i8": np.int8}


@dataclass(frozen=True)
class GpuModel:
    """A compiled model without weights: a folder with program.json, its code objects and config.json."""

    name: str
    folder: Path
    config: dict[str, Any]
    raw: dict[str, Any]
    program: GpuProgram

    @classmethod
    def read(cls, folder: Path) -> GpuModel:
        raw = json.loads((folder / "program.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return cls(folder.name, folder, config, raw, read_program(raw))

    @property
    def built(self) -> dict[str, Any]:
        """How it was compiled, for people."""
        path = self.folder / BUILT
        groups = [group["tuned"] for group in self.raw["groups"].values() if group.get("tuned") is not None]
        built: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {**built, "products": len(groups), "tuned": sum(groups)}

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def step_bytes(self) -> int:
        """Of weights that every step reads: all but tables that are only looked up."""
        read = {
            argument.index
            for launch in self.program.launches
            if all(each.name != "token_ids" for each in launch.arguments)
            for argument in launch.arguments
            if argument.kind == "weight"
        }
        return sum(self.program.weights[index].size for index in read)

    @property
    def bytes_per_position(self) -> float:
        """Of the cache, what one position takes in all layers."""
        return self.program.cache.bytes_per_block / self.program.cache.block_tokens

    @property
    def matrix_elements(self) -> int:
        """Multiply-adds of one token, the head's included."""
        matrices = {
            argument.index
            for launch in self.program.launches
            for argument in launch.arguments
            if argument.kind == "weight"
            and self.is_matrix(argument.index)
            and all(each.name != "token_ids" for each in launch.arguments)
        }
        return sum(int(np.prod(self.raw["weights"][index]["shape"])) for index in matrices)

    def is_matrix(self, index: int) -> bool:
        """Whether a weight is one that rows are multiplied with; what belongs to its groups of columns is none."""
        entry = self.raw["weights"][index]
        return len(entry["shape"]) == 2 and entry["layout"] != "columns4"


class RandomSource:
    """Implements `weights.WeightSource`: the same numbers for the same seed, made as fast as they are copied."""

    def __init__(self, model: GpuModel, seed: int) -> None:
        self._entries = {entry["name"]: entry for entry in model.raw["weights"]}
        self._elements = {
            name.removesuffix(".matrix").removesuffix(".matrix_signed"): entry["dtype"]
            for name, entry in self._entries.items()
            if entry["dtype"] in ("u8", "f8_e4m3")
        }
        """Of what has a scale for each row."""
        # Tables that belong to the model, as those of rotary positions, are what they are.
        self._constants = {
            name: np.frombuffer(base64.b64decode(text), np.uint8)
            for name, text in json.loads((model.folder / CONSTANTS).read_text(encoding="utf-8")).items()
        }
        random = np.random.default_rng(seed)
        normal = (random.standard_normal(_BLOCK, np.float32) * _SCALE).astype(np.float32)
        self._blocks: dict[str, NDArray[np.uint8]] = {
            "bf16": (normal.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.uint8),
            "f16": normal.astype(np.float16).view(np.uint8),
            "f32": normal.view(np.uint8),
            "u8": random.integers(0, 256, 2 * _BLOCK, np.uint8),
            # Of either sign, and none that is no number: at most 1.75.
            "f8_e4m3": random.integers(0, 2, 2 * _BLOCK, np.uint8) << 7 | random.integers(0, 64, 2 * _BLOCK, np.uint8),
        }

    def size(self, name: str) -> int:
        return int(self._entries[name]["bytes"])

    def read_into(self, target: NDArray[np.uint8], name: str, start: int) -> None:
        entry = self._entries[name]
        if name in self._constants:
            target[:] = self._constants[name][start : start + len(target)]
            return
        value = self._value(name)
        if value is not None:
            self._fill(target, entry["dtype"], value)
            return
        block = self._blocks[entry["dtype"] if entry["dtype"] in self._blocks else "u8"]
        offset = (zlib.crc32(name.encode()) * 64 + start) % len(block)
        done = 0
        while done < len(target):
            piece = block[offset : offset + len(target) - done]
            target[done : done + len(piece)] = piece
            done += len(piece)
            offset = 0

    def _value(self, name: str) -> float | None:
        """Of all elements, where they are equal: norms multiply by one, biases add nothing, and what belongs to
        quantized weights makes these as large as others are."""
        if name.endswith(".columns4"):
            return _ZEROS if name.endswith(".zeros.columns4") else _STEPS
        if len(self._entries[name]["shape"]) > 1:
            return None
        if name.endswith(".factors"):
            return _SCALE / _SPREAD["u4"] / _STEPS
        if name.endswith(".scales"):
            return _SCALE / _SPREAD[self._elements[name.removesuffix(".scales")]]
        return 1.0 if "norm" in name else 0.0

    @staticmethod
    def _fill(target: NDArray[np.uint8], dtype: str, value: float) -> None:
        if dtype == "bf16":
            pattern = (np.full(1, value, np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        else:
            pattern = np.full(1, value, BITS.get(dtype, np.uint8))
        raw = pattern.view(np.uint8)
        target[:] = np.tile(raw, -(-len(target) // len(raw)))[: len(target)]


def _stored(constant: NDArray[np.float32], size: int) -> bytes:
    """A constant in the layout `rows`: rows of whole 16 elements, and zeros to the end."""
    rows = constant.reshape(-1, constant.shape[-1]) if constant.ndim > 1 else constant.reshape(1, -1)
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 16))).astype(np.float32).tobytes()
    return padded.ljust(size, b"\0")


def write_config(name: str, folder: Path) -> Path:
    """Writes `folder`/NAME/config.json, which is all of a checkpoint that `tessera autotune` reads; returns its
    folder."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(CONFIGS[name], indent=2) + "\n", encoding="utf-8")
    return place


def variant_of(name: str, dtype: str) -> str:
    """What the folder of a model's program is called that computes with another dtype than `BASE_DTYPE`, beside it."""
    return name if dtype == BASE_DTYPE else f"{name}-{dtype}"


def prepare(name: str, target: str, folder: Path, dtype: str = BASE_DTYPE, called: str | None = None) -> int:
    """Compiles a model into `folder`/NAME, or what it is to be `called`, for `run` on a machine that has the GPU;
    returns the bytes of its code.

    Raises `UnsupportedModel` for a dtype that the target has no products of."""
    from transformers import AutoConfig

    from tessera_compiler.device_driver import DeviceOptions, compile_for_devices
    from tessera_compiler.frontends.huggingface import import_model
    from tessera_compiler.graph.pipeline import simplify
    from tessera_compiler.schedule.device_tuned_cache import load_device_tuned
    from tessera_compiler.schedule.tuned_cache import shipped_cache
    from tessera_compiler.targets.program import ProgramLimits

    config = CONFIGS[name]
    imported = import_model(AutoConfig.for_model(**config), MAX_MODEL_LEN)
    simplify(imported.module)
    limits = ProgramLimits(MAX_TOKENS, MAX_MODEL_LEN, imported.vocab_size)
    tuned = load_device_tuned(shipped_cache(), (target,))
    options = DeviceOptions((target,), dtype, limits, tuned=tuned)
    compiled_all = compile_for_devices(imported.module, options)
    compiled = compiled_all.targets[0]
    place = folder / (called or name)
    place.mkdir(parents=True, exist_ok=True)
    for file, data in compiled.files.items():
        (place / file).write_bytes(data)
    (place / "program.json").write_text(json.dumps(compiled.program), encoding="utf-8")
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    built = {"target": target, "dtype": dtype}
    with contextlib.suppress(metadata.PackageNotFoundError):
        built["triton"] = metadata.version("triton")
    (place / BUILT).write_text(json.dumps(built), encoding="utf-8")
    recipes = {recipe.name: [*recipe.sources] for recipe in compiled_all.weights}
    (place / "recipes.json").write_text(json.dumps(recipes), encoding="utf-8")
    constants = {
        recipe.name: base64.b64encode(_stored(recipe.constant, entry["bytes"])).decode()
        for recipe, entry in zip(compiled_all.weights, compiled.program["weights"], strict=True)
        if recipe.constant is not None
    }
    (place / CONSTANTS).write_text(json.dumps(constants), encoding="utf-8")
    return sum(map(len, compiled.files.values()))
