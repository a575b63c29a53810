"""Checkpoints of any size, written shard by shard: noise in bf16, in the shape of a Llama."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "text"))

from tokenizer_zoo import byte_level

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int = 16
    key_value_heads: int = 4

    def shards(self) -> list[Shapes]:
        """One shard for each layer, one for the table of tokens, one for the head."""
        narrow = self.hidden // self.heads * self.key_value_heads
        shards: list[Shapes] = [{"model.embed_tokens.weight": (self.vocabulary, self.hidden)}]
        for layer in range(self.layers):
            path = f"model.layers.{layer}"
            shards.append(
                {
                    f"{path}.self_attn.q_proj.weight": (self.hidden, self.hidden),
                    f"{path}.self_attn.k_proj.weight": (narrow, self.hidden),
                    f"{path}.self_attn.v_proj.weight": (narrow, self.hidden),
                    f"{path}.self_attn.o_proj.weight": (self.hidden, self.hidden),
                    f"{path}.mlp.gate_proj.weight": (self.intermediate, self.hidden),
                    f"{path}.mlp.up_proj.weight": (self.intermediate, self.hidden),
                    f"{path}.mlp.down_proj.weight": (self.hidden, self.intermediate),
                    f"{path}.input_layernorm.weight": (self.hidden,),
                    f"{path}.post_attention_layernorm.weight": (self.hidden,),
                }
            )
        shards.append({"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)})
        return shards

    def largest_tensor(self) -> int:
        """Its size in the checkpoint, in bytes."""
        return max(2 * math.prod(shape) for shard in self.shards() for shape in shard.values())


def write_checkpoint(folder: Path, sizes: Sizes) -> int:
    """Writes it and returns the size of its tensors in bytes."""
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    byte_level().save(str(folder / "tokenizer.json"))
    numbers = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32) * np.float32(0.02)
    noise = (numbers.view(np.uint32) >> 16).astype("<u2").tobytes()
    weight_map: dict[str, str] = {}
    total = 0
    shards = sizes.shards()
    for number, shapes in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, size = {}, 0
        for tensor, shape in shapes.items():
            end = size + 2 * math.prod(shape)
            header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [size, end]}
            weight_map[tensor] = name
            size = end
        text = json.dumps(header).encode()
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, size, len(noise)):
                file.write(noise[: size - start])
        total += size
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


def main() -> None:
    """`python synthetic.py FOLDER LAYERS HIDDEN INTERMEDIATE VOCABULARY`, to measure by hand."""
    size = write_checkpoint(Path(sys.argv[1]), Sizes(*map(int, sys.argv[2:6])))
    print(f"{size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
