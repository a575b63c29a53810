"""GGUF conversion, on tiny files that are written here the way llama.cpp writes them."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import pre_tokenizers

from tessera_pack.errors import CheckpointNotFound, DiskFull, GgufInvalid, OutputExists
from tessera_pack.gguf import convert_gguf
from tessera_pack.gguf_rope import llama3_divisors, rope_parameters
from tessera_pack.gguf_shards import ShardWriter

HIDDEN, HEADS, KV_HEADS, HEAD, FEED, LAYERS = 64, 4, 2, 16, 96, 2
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll", "ĠĠ"]
MERGES = ["h e", "l l", "Ġ Ġ"]


def reference_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """The weights as a Hugging Face checkpoint would name and lay them out."""
    random = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(len(TOKENS), HIDDEN), "model.norm.weight": matrix(HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "self_attn.q_proj.weight": matrix(HEADS * HEAD, HIDDEN),
            prefix + "self_attn.k_proj.weight": matrix(KV_HEADS * HEAD, HIDDEN),
            prefix + "self_attn.v_proj.weight": matrix(KV_HEADS * HEAD, HIDDEN),
            prefix + "self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD),
            prefix + "mlp.gate_proj.weight": matrix(FEED, HIDDEN),
            prefix + "mlp.up_proj.weight": matrix(FEED, HIDDEN),
            prefix + "mlp.down_proj.weight": matrix(HIDDEN, FEED),
            prefix + "input_layernorm.weight": matrix(HIDDEN),
            prefix + "post_attention_layernorm.weight": matrix(HIDDEN),
        }
    return tensors


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of rotary rows: pairs stand side by side, not half a head apart."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    *,
    split: str = "smollm",
    quantized: str = "",
    extra: dict[str, np.ndarray] | None = None,
    strings: dict[str, str] | None = None,
    floats: dict[str, float] | None = None,
    numbers: dict[str, int] | None = None,
) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for key, text in (strings or {}).items():
        writer.add_string(key, text)
    for key, real in (floats or {}).items():
        writer.add_float32(key, real)
    for key, number in (numbers or {}).items():
        writer.add_uint32(key, number)
    for name, values in tensors.items():
        if "q_proj" in name or "k_proj" in name:
            values = interleaved(values, HEADS if "q_proj" in name else KV_HEADS)
        if quantized and quantized in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name(name), gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_weights_come_back_bit_for_bit_without_a_tied_head(tmp_path: Path) -> None:
    tensors = reference_tensors()
    out = convert_gguf(write_gguf(tmp_path / "m.gguf", tensors), tmp_path / "out")
    found = load_file(out / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, values in tensors.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_transformers_reads_the_directory_and_the_config_says_what_the_file_says(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = convert_gguf(write_gguf(tmp_path / "m.gguf", reference_tensors()), tmp_path / "out")
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (HEADS, KV_HEADS, HEAD)
    assert config["tie_word_embeddings"] is True
    assert model.config.max_position_embeddings == 256


def test_quantized_blocks_are_dequantized(tmp_path: Path) -> None:
    tensors = reference_tensors()
    out = convert_gguf(write_gguf(tmp_path / "m.gguf", tensors, quantized="mlp"), tmp_path / "out")
    found = load_file(out / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    error = np.abs(found[name] - tensors[name]).max()
    assert 0 < error < np.abs(tensors[name]).max() / 127


def test_an_untied_head_is_kept(tmp_path: Path) -> None:
    head = np.random.default_rng(5).standard_normal((len(TOKENS), HIDDEN)).astype(np.float32)
    source = write_gguf(tmp_path / "m.gguf", reference_tensors(), extra={"output.weight": head})
    out = convert_gguf(source, tmp_path / "out")
    np.testing.assert_array_equal(load_file(out / "model.safetensors")["lm_head.weight"], head)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_the_tokenizer_the_template_and_the_stops_come_along(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = write_gguf(tmp_path / "m.gguf", reference_tensors(), numbers={"tokenizer.ggml.eot_token_id": 0})
    out = convert_gguf(source, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer("hello 42")["input_ids"]) == "hello 42"
    assert tokenizer("<|im_start|>he")["input_ids"] == [1, TOKENS.index("he")]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


@pytest.mark.parametrize(("split", "pieces"), [("smollm", ["ĠĠ", "4", "2"]), ("gpt-2", ["Ġ", "Ġ", "4", "2"])])
def test_text_is_split_as_the_file_says(tmp_path: Path, split: str, pieces: list[str]) -> None:
    from transformers import AutoTokenizer

    out = convert_gguf(write_gguf(tmp_path / "m.gguf", reference_tensors(), split=split), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).tokenize("  42") == pieces


def test_an_unknown_split_is_refused_unless_a_tokenizer_lies_beside(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", reference_tensors(), split="martian")
    with pytest.raises(GgufInvalid, match="'martian'"):
        convert_gguf(source, tmp_path / "refused")
    good = convert_gguf(write_gguf(tmp_path / "good.gguf", reference_tensors()), tmp_path / "good")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((good / name).read_bytes())
    convert_gguf(source, tmp_path / "accepted")


def test_a_missing_file_and_a_full_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="no GGUF file"):
        convert_gguf(tmp_path / "absent.gguf", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "keep.txt").write_text("mine")
    with pytest.raises(OutputExists):
        convert_gguf(write_gguf(tmp_path / "m.gguf", reference_tensors()), tmp_path / "out")
    assert (tmp_path / "out" / "keep.txt").read_text() == "mine"


@pytest.mark.parametrize("keep", [0, 3, 40, 2000, -64])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    whole = write_gguf(tmp_path / "m.gguf", reference_tensors()).read_bytes()
    short = tmp_path / "short.gguf"
    short.write_bytes(whole[:keep])
    with pytest.raises(GgufInvalid):
        convert_gguf(short, tmp_path / "out")


def test_a_missing_tensor_and_one_without_a_place_are_named(tmp_path: Path) -> None:
    tensors = reference_tensors()
    del tensors["model.layers.1.self_attn.v_proj.weight"]
    with pytest.raises(GgufInvalid, match=r"layers\.1\.self_attn\.v_proj"):
        convert_gguf(write_gguf(tmp_path / "a.gguf", tensors), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    odd = {"blk.0.surprise.weight": np.ones(4, np.float32)}
    with pytest.raises(GgufInvalid, match=r"blk\.0\.surprise"):
        convert_gguf(write_gguf(tmp_path / "b.gguf", reference_tensors(), extra=odd), tmp_path / "b")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DiskFull, match="GB"):
        convert_gguf(write_gguf(tmp_path / "m.gguf", reference_tensors()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = reference_tensors()
    tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((FEED - 32, HIDDEN), np.float32)
    with pytest.raises(GgufInvalid, match=r"layers\.0\.mlp\.up_proj"):
        convert_gguf(write_gguf(tmp_path / "m.gguf", tensors), tmp_path / "out")


def test_llama3_divisors_agree_with_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = rope_parameters(
        {"general.architecture": "llama"}, llama3_divisors(500000.0, 64, 32.0).astype(np.float32), 500000.0, 64
    )
    assert parameters is not None and parameters["rope_type"] == "llama3" and parameters["factor"] == 32.0
    config = LlamaConfig(hidden_size=128, num_attention_heads=2, head_dim=64, rope_parameters=parameters)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(plain / llama3_divisors(500000.0, 64, 32.0), scaled.numpy(), rtol=1e-5)


def test_rope_divisors_in_the_file_reach_the_config(tmp_path: Path) -> None:
    divisors = llama3_divisors(10000.0, HEAD, 8.0).astype(np.float32)
    source = write_gguf(tmp_path / "m.gguf", reference_tensors(), extra={"rope_freqs.weight": divisors})
    config = json.loads((convert_gguf(source, tmp_path / "out") / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "llama3"
    assert config["rope_parameters"]["factor"] == 8.0


def test_rope_keys_reach_the_config(tmp_path: Path) -> None:
    source = write_gguf(
        tmp_path / "m.gguf",
        reference_tensors(),
        strings={"llama.rope.scaling.type": "linear"},
        floats={"llama.rope.scaling.factor": 4.0},
    )
    config = json.loads((convert_gguf(source, tmp_path / "out") / "config.json").read_text())
    assert config["rope_parameters"] == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize(
    "metadata",
    [{"llama.rope.scaling.type": "longrope"}, {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0}],
)
def test_rope_scaling_that_cannot_be_expressed_is_refused(metadata: dict[str, Any]) -> None:
    with pytest.raises(GgufInvalid, match="scales rotary"):
        rope_parameters({"general.architecture": "llama"} | metadata, None, 10000.0, 64)


def test_divisors_that_follow_no_rule_are_refused() -> None:
    with pytest.raises(GgufInvalid, match="rope_freqs"):
        rope_parameters({"general.architecture": "llama"}, np.linspace(1, 9, 32, dtype=np.float32), 10000.0, 64)


def test_shards_with_an_index_hold_what_was_written_in_any_order(tmp_path: Path) -> None:
    from transformers.modeling_utils import load_state_dict

    tensors = {name: np.full((4, 8), index, np.float32) for index, name in enumerate("abcde")}
    with ShardWriter(tmp_path, {name: (4, 8) for name in tensors}, shard_bytes=256) as writer:
        for name in reversed(tensors):
            writer.write(name, tensors[name])
        assert writer.missing() == []
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    for name, shard in index["weight_map"].items():
        np.testing.assert_array_equal(load_state_dict(str(tmp_path / shard))[name].numpy(), tensors[name])


@pytest.mark.slow
def test_the_real_model_answers(smollm2_checkpoint: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_checkpoint)
    model = AutoModelForCausalLM.from_pretrained(smollm2_checkpoint, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=16)
    text = tokenizer.decode(answer[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == "The capital of France is Paris."
