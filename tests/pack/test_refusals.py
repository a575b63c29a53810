"""What `tessera pack` refuses: one sentence, an exit code that is not 0, and nothing left in the output's folder."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ended_command import Ended, Run
from safetensors.numpy import load_file, save_file
from tiny_checkpoints import ODD, native_class, save_checkpoint, save_tokenizer
from tiny_models import Case

from tessera_pack import packing

ROOT = Path(__file__).resolve().parent.parent.parent
MLP = "model.layers.1.mlp.down_proj.weight"
SHARD = "model-00002-of-00004.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in one file that packs."""
    folder = tmp_path_factory.mktemp("good") / "checkpoint"
    save_checkpoint(Case("llama", ODD), folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of several shards that packs."""
    folder = tmp_path_factory.mktemp("sharded") / "checkpoint"
    save_checkpoint(Case("llama", ODD), folder, max_shard_size="100KB")
    assert (folder / SHARD).is_file()
    return folder


@pytest.fixture
def checkpoint(good: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(good, tmp_path / "checkpoint"))


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> Path:
    """A copy in shards to spoil."""
    return Path(shutil.copytree(sharded, tmp_path / "checkpoint"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a package is asked for; the folder around it is empty."""
    folder = tmp_path / "packages"
    folder.mkdir()
    return folder / "model.tspkg"


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """What was compiled before, by dtype."""
    return {}


@pytest.fixture
def compiled_once(monkeypatch: pytest.MonkeyPatch, compiled: dict[str, Any]) -> None:
    """For checkpoints with one configuration: compiled once per dtype, and for this machine only."""
    compile_checkpoint = packing._compile

    def compile_once(directory: Path, checkpoint: Any, options: packing.PackOptions) -> Any:
        if options.dtype not in compiled:
            here = replace(options, cpu_classes=(native_class(),))
            compiled[options.dtype] = compile_checkpoint(directory, checkpoint, here)
        return compiled[options.dtype]

    monkeypatch.setattr(packing, "_compile", compile_once)


def refused(ended: Ended, out: Path, words: str, code: int = 2) -> None:
    """One sentence (and a hint) that says `words`; nothing was left behind."""
    lines = ended.err.strip().splitlines()
    assert ended.code == code, ended
    assert lines[0].startswith("error: ") and lines[0].endswith(".") and len(lines[0]) < 600, lines
    assert [line for line in lines[1:] if not line.startswith("hint: ")] == [] and len(lines) <= 2, lines
    assert re.search(words, ended.err), ended.err
    assert ended.out == "" and os.listdir(out.parent) == []


def config_with(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_tensors(folder: Path, change: Callable[[dict[str, np.ndarray[Any, Any]]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_the_checkpoint_that_is_spoilt_here_does_pack(good: Path, out: Path, run: Run, compiled_once: None) -> None:
    """Otherwise a refusal below would say nothing."""
    ended = run("pack", "--from-hf", good, "--out", out, "--json")
    report = json.loads(ended.out)
    assert ended.code == 0 and ended.err == "" and report["evidence"]["top1_agreement"] > 0.9
    assert os.listdir(out.parent) == [out.name]


# Folders that are no checkpoint.


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no config.json"),
        ({"config.json": "{"}, "not a readable JSON file"),
        ({"config.json": "[1]"}, "names no model_type"),
        ({"config.json": "{}"}, "names no model_type"),
        ({"config.json": '{"model_type": "martian"}'}, "has no weights"),
        ({"config.json": '{"model_type": "llama"}', "pytorch_model.bin": "x"}, "are pickled"),
        ({"config.json": '{"model_type": "llama"}', "a.safetensors": "", "b.safetensors": ""}, "2 safetensors files"),
        ({"config.json": '{"model_type": "llama"}', "model.safetensors.index.json": "[]"}, "not an index"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,
)
def test_a_folder_that_is_no_checkpoint(files: dict[str, str], words: str, tmp_path: Path, out: Path, run: Run) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    if "config.json" in files and words in ("not a readable JSON file", "names no model_type"):
        save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors")
        save_tokenizer(folder)
    refused(run("pack", "--from-hf", folder, "--out", out), out, words)


def test_a_path_that_does_not_exist(tmp_path: Path, out: Path, run: Run) -> None:
    refused(run("pack", "--from-hf", tmp_path / "absent", "--out", out), out, "There is no folder")
    refused(run("pack", "--from-gguf", tmp_path / "absent.gguf", "--out", out), out, "absent.gguf")


def test_a_file_instead_of_a_folder(good: Path, out: Path, run: Run) -> None:
    refused(run("pack", "--from-hf", good / "model.safetensors", "--out", out), out, "There is no folder")
    refused(run("pack", "--from-gguf", good / "config.json", "--out", out), out, "config.json")


def test_a_hub_that_cannot_be_reached(out: Path) -> None:
    """The name of a model, with a hub at a port where nobody listens."""
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(out.parent.parent / "hub")}
    started = time.perf_counter()
    command = [sys.executable, "-m", "tessera", "pack", "--from-hf", "someone/model", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60)
    refused(Ended(done.returncode, done.stdout, done.stderr), out, "'someone/model' is not a folder here, and the")
    assert time.perf_counter() - started < 30


# Models that are not compiled.


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "martian"}, "no model of type 'martian'"),
        ({"model_type": "martian", "auto_map": {"AutoConfig": "a.B"}}, "never run"),
        ({"model_type": "t5"}, "not a causal language model"),
        ({"model_type": "mixtral"}, "mixture of experts"),
        ({"model_type": "gptj"}, "attention interface"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "stored quantized"),
        ({"hidden_size": "many"}, "no configuration of a 'llama' model"),
        ({"num_attention_heads": 0}, "no configuration of a 'llama' model"),
        ({"num_attention_heads": 5}, "hidden size .* not a multiple of the number of attention heads"),
        ({"num_key_value_heads": 2}, "module 'model.layers.0.self_attn' .* number of heads that divides the query's"),
        ({"layer_types": ["other", "full_attention"]}, "layer"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "spiral"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"vocab_size": 2**62}, "embed_tokens|cannot build"),
        ({"hidden_act": "wobble"}, "cannot build LlamaForCausalLM .* KeyError: 'wobble'"),
        ({"num_hidden_layers": 3}, "lacks .*model.layers.2"),
        (
            {"intermediate_size": 101},
            r"'model\.layers\.0\.mlp.*has shape \[100, 72\]; config.json calls for \[101, 72\]",
        ),
    ],
    ids=str,
)
def test_a_configuration_that_is_not_compiled(
    fields: dict[str, Any], words: str, checkpoint: Path, out: Path, run: Run
) -> None:
    config_with(checkpoint, **fields)
    refused(run("pack", "--from-hf", checkpoint, "--out", out), out, words)


def test_an_operation_that_the_importer_does_not_know(
    good: Path, out: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: torch.cumsum(self.up_proj(x), dim=-1)[..., :72])
    words = r"aten\.cumsum\.default in module 'model\.layers\.0\.mlp' .*"
    refused(run("pack", "--from-hf", good, "--out", out), out, words)


# Weights.


def test_a_missing_shard(shards: Path, out: Path, run: Run) -> None:
    (shards / SHARD).unlink()
    refused(run("pack", "--from-hf", shards, "--out", out), out, f"'{SHARD}'.* is missing")


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_shard(keep: int, shards: Path, out: Path, run: Run) -> None:
    content = (shards / SHARD).read_bytes()
    (shards / SHARD).write_bytes(content[:keep])
    refused(run("pack", "--from-hf", shards, "--out", out), out, f"'{SHARD}'")


def test_a_corrupt_shard(shards: Path, out: Path, run: Run) -> None:
    content = bytearray((shards / SHARD).read_bytes())
    content[20:40] = b"\xff" * 20
    (shards / SHARD).write_bytes(content)
    refused(run("pack", "--from-hf", shards, "--out", out), out, f"'{SHARD}'")


def test_a_tensor_of_another_shape(checkpoint: Path, out: Path, run: Run) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.update({MLP: np.zeros((72, 99), np.float32)}))
    words = rf"'{re.escape(MLP)}' in 'model.safetensors' has shape \[72, 99\]; config.json calls for \[72, 100\]"
    refused(run("pack", "--from-hf", checkpoint, "--out", out), out, words)


def test_a_missing_tensor(checkpoint: Path, out: Path, run: Run) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.pop(MLP))
    refused(run("pack", "--from-hf", checkpoint, "--out", out), out, f"lacks {re.escape(MLP)}")


def test_a_tensor_of_integers(checkpoint: Path, out: Path, run: Run) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.update({MLP: np.zeros((72, 100), np.int8)}))
    refused(run("pack", "--from-hf", checkpoint, "--out", out), out, f"'{re.escape(MLP)}' .* stored as I8")


@pytest.mark.parametrize(("dtype", "value"), [("int8", np.nan), ("int8", np.inf), ("int8", -np.inf), ("int4", np.nan)])
def test_integers_of_what_is_no_number(
    dtype: str, value: float, checkpoint: Path, out: Path, run: Run, compiled_once: None
) -> None:
    def spoil(tensors: dict[str, np.ndarray[Any, Any]]) -> None:
        tensors[MLP][5, 7] = value

    change_tensors(checkpoint, spoil)
    ended = run("pack", "--from-hf", checkpoint, "--out", out, "--dtype", dtype, "--no-verify")
    refused(ended, out, re.escape(MLP))


def test_evidence_of_what_is_no_number(checkpoint: Path, out: Path, run: Run, compiled_once: None) -> None:
    def spoil(tensors: dict[str, np.ndarray[Any, Any]]) -> None:
        tensors[MLP][5, 7] = np.nan

    change_tensors(checkpoint, spoil)
    refused(run("pack", "--from-hf", checkpoint, "--out", out), out, r"model\.layers\.1", code=1)


# Text files.


def test_a_missing_tokenizer(checkpoint: Path, out: Path, run: Run, compiled_once: None) -> None:
    (checkpoint / "tokenizer.json").unlink()
    refused(run("pack", "--from-hf", checkpoint, "--out", out), out, "has no tokenizer that can be packed")


def test_a_corrupt_tokenizer(checkpoint: Path, out: Path, run: Run, compiled_once: None) -> None:
    (checkpoint / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Telepathy"}}')
    refused(run("pack", "--from-hf", checkpoint, "--out", out), out, "tokenizer.json' cannot be read")


# Options.


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        ("tp=2", "tp and pp must be 1"),
        ("tp=1,pp=3", "tp and pp must be 1"),
        ("tp=0", "whole numbers"),
        ("dp=-1", "whole numbers"),
        ("tp", "A mesh is written like"),
        ("", "A mesh is written like"),
        ("zp=1", "A mesh is written like"),
        ("tp=1,tp=1", "twice"),
        ("dp=²", "whole numbers"),
        ("dp=" + "9" * 5000, "whole numbers"),
    ],
    ids=lambda value: value[:12],
)
def test_a_bad_mesh(mesh: str, words: str, good: Path, out: Path, run: Run) -> None:
    refused(run("pack", "--from-hf", good, "--out", out, f"--mesh={mesh}"), out, words)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--target=abacus", "abacus"),
        ("--max-model-len=257", "257.* 256"),
        ("--name=../up", "The name of a package .* found '../up'"),
        ("--name=", "The name of a package"),
        ("--version=one", "three numbers such as 1.0.0"),
        ("--kv-dtype=int8 --target=cpu --target=cuda-sm90", "chosen for cpu alone; .* int8 with cuda-sm90"),
    ],
)
def test_bad_options(option: str, words: str, good: Path, out: Path, run: Run) -> None:
    refused(run("pack", "--from-hf", good, "--out", out, "--no-verify", *option.split(" ")), out, words)


# The output.


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_output_that_exists(kind: str, good: Path, out: Path, run: Run) -> None:
    {"folder": out.mkdir, "file": out.touch, "dangling link": lambda: out.symlink_to("nowhere")}[kind]()
    ended = run("pack", "--from-hf", good, "--out", out)
    assert ended.code == 2 and "exists already" in ended.err
    assert os.listdir(out.parent) == [out.name] and not list(out.parent.glob(".*"))


def test_an_output_without_a_folder(good: Path, out: Path, run: Run) -> None:
    refused(
        run("pack", "--from-hf", good, "--out", out.parent.parent / "no" / "x"), out, "The folder .* does not exist"
    )


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file can grow past 100 kB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_disk_that_fills_up(good: Path, out: Path, run: Run, compiled_once: None, small_files: None) -> None:
    refused(run("pack", "--from-hf", good, "--out", out, "--no-verify"), out, "The disk became full")


def test_a_disk_that_is_known_to_be_too_small(
    good: Path, out: Path, run: Run, compiled_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=10**9, free=2**20))
    words = "The package needs .* but .* has only 1.0 MiB free"
    refused(run("pack", "--from-hf", good, "--out", out, "--no-verify"), out, words)


# The evidence.


@pytest.mark.parametrize(("tensor", "layer"), [("layers.0.mlp", 0), ("layers.1.self_attn", 1)])
def test_a_package_that_computes_something_else(
    tensor: str, layer: int, good: Path, out: Path, run: Run, compiled_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_weights = packing.pack_weights

    def spoil(*arguments: Any) -> Iterable[Any]:
        for packed in pack_weights(*arguments):
            if tensor in packed.name and packed.array.ndim > 1:
                packed.array[...] = packed.array[::-1].copy()
            yield packed

    monkeypatch.setattr(packing, "pack_weights", spoil)
    ended = run("pack", "--from-hf", good, "--out", out)
    refused(ended, out, rf"first layer astray is model\.layers\.{layer}, with a relative error of", code=1)


def test_the_error_as_json(good: Path, out: Path, run: Run) -> None:
    ended = run("pack", "--from-hf", good, "--out", out, "--mesh", "tp=2", "--json")
    assert ended.code == 2 and json.loads(ended.out)["error"]["code"] == "mesh-invalid"


def test_a_tokenizer_saved_with_padding_is_packed_as_it_is(
    checkpoint: Path, out: Path, run: Run, compiled_once: None
) -> None:
    """Evidence is measured on text, not on the padding."""
    from tokenizers import Tokenizer

    save_tokenizer(checkpoint)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    ended = run("pack", "--from-hf", checkpoint, "--out", out, "--json")
    assert ended.code == 0 and json.loads(ended.out)["evidence"]["top1_agreement"] > 0.9
