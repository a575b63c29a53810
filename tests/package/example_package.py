"""A small package, whole and valid, made by the writer: tests open it and spoil it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tessera_pack.safetensors_writer import SafetensorsLayout, TensorPlan
from tessera_pack.writer import PackageWriter
from tessera_runtime.package import manifest as model


def example_program(target: str = "cpu") -> dict[str, Any]:
    return {
        "abi": 1,
        "target": target,
        "limits": {"max_tokens": 8, "max_model_len": 64, "vocab_size": 32},
        "weights": [{"name": "head", "dtype": "u8", "shape": [32, 16], "layout": "panels_k4"}],
        "buffers": [],
        "arena": {"bytes": 0, "bytes_per_token": 64, "bytes_per_logit_row": 128},
        "cache": {"block_tokens": 16, "bytes_per_block": 2048, "layers": []},
        "launches": [],
        "layers": [],
        "output": 0,
        "groups": {},
        "classes": {},
        "exports": {},
    }


def example_manifest(**changes: Any) -> model.Manifest:
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
            parameters=512,
            vocab_size=32,
            layers=1,
            hidden_size=16,
            context_length=64,
        ),
        "memory": model.Memory(
            weights_bytes=512,
            arena=model.ArenaMemory(bytes=0, bytes_per_token=64, bytes_per_logit_row=128),
            kv=model.KvMemory(block_tokens=16, bytes_per_block=2048, bytes_per_token=128),
            max_tokens=8,
            max_model_len=64,
        ),
        "targets": (model.Target(name="cpu", abi=1, classes=("x86-64-v3",)),),
        "source": model.Source(kind="huggingface", id="someone/tiny", config_sha256="0" * 64, revision="main"),
        "tessera_version": "0.1.0",
        "licence": "apache-2.0",
        "evidence": model.Evidence(
            reference="transformers 5.23.0 fp32",
            measured_on="cpu/x86-64-v3",
            prompts=("a" * 64, "b" * 64),
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


def write_example(out: Path, *, program: dict[str, Any] | None = None, target: str = "cpu", **changes: Any) -> Path:
    """Writes the example package to `out`, with its program in the folder of `target`."""
    head = np.arange(512, dtype=np.uint8).reshape(2, 4, 16, 4)
    layout = SafetensorsLayout([TensorPlan("head", "u8", head.shape)])
    with PackageWriter(out) as writer:
        writer.write_text("graph_ir.tssa", "builtin.module {}\n")
        writer.write_text(
            f"tile_kernels/{target}/program.json", json.dumps(program or example_program(), sort_keys=True)
        )
        writer.write_bytes("tile_kernels/cpu/x86-64-v3.so", b"\x7fELF" + bytes(60))
        writer.write_text("tokenizer/tokenizer.json", "{}")
        writer.write_text("assets/generation_config.json", "{}")
        writer.write_text("schedule_cache/cpu.json", "{}")
        writer.write_weights("weights/shard_tp0_pp0.safetensors", layout, iter([head]))
        writer.seal(example_manifest(**changes))
        return writer.publish()
