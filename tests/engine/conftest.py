"""What the engine's tests share: a small real package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "text"))


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with two layers, packed for the CPU class of this machine."""
    import torch
    from tokenizer_zoo import byte_level
    from transformers import LlamaConfig, LlamaForCausalLM

    from tessera_compiler.targets.cpu.object_code import CPU_CLASSES
    from tessera_pack.packing import PackOptions, pack
    from tessera_runtime.executor.cpu.processor import choose_class, read_processor

    folder = tmp_path_factory.mktemp("engine")
    config = LlamaConfig(
        vocab_size=330,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)  # the usual initialisation gives logits that differ too little to tell answers apart
    model.save_pretrained(folder / "checkpoint")
    byte_level().save(str(folder / "checkpoint" / "tokenizer.json"))
    features = {name: {"features": entry.required_flags} for name, entry in CPU_CLASSES.items()}
    options = PackOptions(
        out=folder / "tiny.tspkg",
        from_hf=str(folder / "checkpoint"),
        dtype="fp32",
        verify=False,
        cpu_classes=(choose_class(features, read_processor()),),
    )
    pack(options, progress=lambda phase, done, total: None)
    return options.out
