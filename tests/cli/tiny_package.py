"""A package with a small but complete program, and the parts of one to spoil."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizer_zoo import byte_level

from tessera_pack.safetensors_writer import SafetensorsLayout, TensorPlan
from tessera_pack.writer import PackageWriter
from tessera_runtime.package import manifest as model

CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"


def tiny_program(target: str = "reference") -> dict[str, Any]:
    """One linear layer behind an embedding, with a cache that nothing reads."""

    def buffer(name: str, rows: str, row_bytes: int, tokens: int, logit_rows: int) -> dict[str, Any]:
        offset = {"tokens": tokens, "logit_rows": logit_rows, "bytes": 0}
        shape = [rows, row_bytes // 4]
        entry = {"name": name, "dtype": "f32", "shape": shape, "row_bytes": row_bytes, "rows": rows, "offset": offset}
        return entry

    def launch(group: str, *args: str) -> dict[str, Any]:
        return {"group": group, "args": list(args), "barrier": True, "layer": 0, "reads_cache": 0, "writes_cache": 0}

    group: dict[str, Any] = {"kind": "linear", "tuned": [], "source": "x"}
    program: dict[str, Any] = {
        "abi": 1,
        "target": target,
        "limits": {"max_tokens": 8, "max_model_len": 64, "vocab_size": 400},
        "weights": [
            {"name": "embedding", "dtype": "f32", "shape": [400, 16], "layout": "rows"},
            {"name": "head", "dtype": "u8", "shape": [400, 16], "layout": "panels_k4"},
        ],
        "buffers": [
            buffer("hidden", "T", 64, 0, 0),
            buffer("last", "L", 64, 64, 0),
            buffer("logits", "L", 1600, 64, 64),
        ],
        "arena": {"bytes": 0, "bytes_per_token": 64, "bytes_per_logit_row": 1664},
        "cache": {
            "block_tokens": 16,
            "bytes_per_block": 2048,
            "layers": [
                {
                    "layer": 0,
                    "heads": 1,
                    "key_dim": 16,
                    "value_dim": 16,
                    "dtype": "f32",
                    "key_offset": 0,
                    "value_offset": 1024,
                }
            ],
        },
        "launches": [
            launch("embed", "input:token_ids", "weight:0", "buffer:0", "cache_key:0"),
            launch("select", "buffer:0", "input:logit_rows", "buffer:1"),
            launch("head", "buffer:1", "weight:1", "buffer:2"),
        ],
        "layers": [],
        "output": 2,
        "groups": {"embed": {**group, "kind": "embedding"}, "select": {**group, "kind": "rows"}, "head": group},
    }
    if target == "cpu":
        variants: list[dict[str, Any]] = [
            {"max_tokens": 4, "symbol": "small", "grid": ["T", 9], "tile": {}},
            {"max_tokens": None, "symbol": "large", "grid": ["T/4"], "tile": {}},
        ]
        kernels = {name: [dict(variant) for variant in variants] for name in program["groups"]}
        program["classes"] = {"x86-64-v3": {"object": "x86-64-v3.so", "features": [], "kernels": kernels}}
        program["exports"] = ["tessera_abi", "tessera_begin", "tessera_step", "tessera_worker"]
    return program


def tiny_manifest(targets: tuple[str, ...], **changes: Any) -> model.Manifest:
    classes = {"cpu": ("x86-64-v3",), "reference": ()}
    fields: dict[str, Any] = {
        "format": model.FORMAT,
        "name": "tiny",
        "version": "1.0.0",
        "entry": "main.decode_graph",
        "mesh": model.Mesh(tp=1, pp=1, dp=1),
        "dtypes": ("int8",),
        "kv_cache": model.KvCache(pages=4, page_size="2KiB", swap="none"),
        "autotune": model.Autotune(required=False, min_arch="x86-64-v3"),
        "compat": model.Compat(api="openai-v1"),
        "dtype": "int8",
        "model": model.Model(
            architecture="LlamaForCausalLM",
            model_type="llama",
            parameters=12_800,
            vocab_size=400,
            layers=1,
            hidden_size=16,
            context_length=64,
        ),
        "memory": model.Memory(
            weights_bytes=32_768,
            arena=model.ArenaMemory(bytes=0, bytes_per_token=64, bytes_per_logit_row=1664),
            kv=model.KvMemory(block_tokens=16, bytes_per_block=2048, bytes_per_token=128),
            max_tokens=8,
            max_model_len=64,
        ),
        "targets": tuple(model.Target(name=name, abi=1, classes=classes[name]) for name in targets),
        "source": model.Source(kind="huggingface", id="someone/tiny", config_sha256="0" * 64, revision="main"),
        "tessera_version": "0.1.0",
        "evidence": model.Evidence(
            reference="transformers fp32",
            measured_on="reference",
            prompts=("a" * 64,),
            tokens=96,
            max_logit_error=1e-05,
            mean_logit_error=2.5e-07,
            kl=0.0,
            top1_agreement=1.0,
            perplexity_delta=-0.0001,
            budget={"kl": 0.01},
        ),
        "files": (),
    }
    return model.Manifest(**{**fields, **changes})


def write_tiny(
    out: Path,
    *,
    programs: dict[str, dict[str, Any]] | None = None,
    generation: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Writes the package to `out`; by default with a reference program, which any machine can verify."""
    programs = {"reference": tiny_program()} if programs is None else programs
    embedding = np.arange(400 * 16, dtype=np.float32).reshape(400, 16)
    head = np.full((28, 4, 16, 4), 128, np.uint8)
    layout = SafetensorsLayout([TensorPlan("embedding", "f32", embedding.shape), TensorPlan("head", "u8", head.shape)])
    arrays: list[NDArray[Any]] = [embedding, head]
    with PackageWriter(out) as writer:
        writer.write_text("graph_ir.tssa", "builtin.module {}\n")
        writer.write_text("tile_kernels/cpu/schedule_ir.tssa", "schedule.module {}\n")
        writer.write_text("tile_kernels/cpu/tile_ir.tssa", "tile.module {}\n")
        for target, program in programs.items():
            writer.write_text(f"tile_kernels/{target}/program.json", json.dumps(program, sort_keys=True))
        writer.write_bytes("tile_kernels/cpu/x86-64-v3.so", b"\x7fELF" + bytes(60))
        writer.write_text("tokenizer/tokenizer.json", byte_level().to_str())
        writer.write_text("tokenizer/chat_template.jinja", CHAT_TEMPLATE)
        writer.write_text("assets/generation_config.json", json.dumps(generation or {}))
        writer.write_text("schedule_cache/cpu.json", "{}")
        writer.write_weights("weights/shard_tp0_pp0.safetensors", layout, arrays)
        writer.seal(tiny_manifest(tuple(programs), **changes))
        return writer.publish()
