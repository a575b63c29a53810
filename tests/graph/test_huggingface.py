"""What the importer reads, decides and refuses."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_models import Case, checkpoint, random_model, reference_logits, relative_error, rope
from transformers import AutoConfig, LlamaForCausalLM
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)
from xdsl.ir import Block

from tessera_compiler.errors import (
    ExportFailed,
    InvalidCheckpoint,
    MissingWeights,
    UnsupportedModel,
    UnsupportedOperation,
)
from tessera_compiler.frontends import attention_op
from tessera_compiler.frontends.attention_op import window_of
from tessera_compiler.frontends.huggingface import import_checkpoint, import_model, load_config
from tessera_compiler.frontends.importer import Importer, Shape, Tracked, canonical_axes, graph_type
from tessera_compiler.frontends.weight_names import resolve_weight_names
from tessera_compiler.graph import dialect as graph
from tessera_compiler.graph.pipeline import simplify
from tessera_compiler.graph.types import F32

MASKS = {
    0: causal_mask_function,
    1: sliding_window_causal_mask_function(1),
    16: sliding_window_causal_mask_function(16),
    131072: sliding_window_causal_mask_function(131072),
}
LONGROPE = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [3.0 + i for i in range(8)]}


def operations(model: Any, kind: type[graph.GraphOp]) -> list[Any]:
    return [op for op in model.module.walk() if isinstance(op, kind)]


def test_a_saved_checkpoint_is_imported(tmp_path: Path) -> None:
    model = random_model(Case("gpt2").config())
    model.save_pretrained(tmp_path)
    imported = import_checkpoint(tmp_path)
    simplify(imported.module)
    stored = load_file(tmp_path / "model.safetensors")
    assert set(imported.weights) == set(stored)
    assert relative_error(imported.module, stored.__getitem__, reference_logits(model)) < 2e-5
    assert (imported.vocab_size, imported.max_model_len) == (160, 512)
    assert imported.layer_paths == ("transformer.h.0", "transformer.h.1")
    assert imported.config["model_type"] == "gpt2" and imported.base_prefix == "transformer"


def test_tied_weights_are_one_weight_of_the_checkpoint() -> None:
    imported = import_model(Case("llama", {"tie_word_embeddings": True}).config())
    simplify(imported.module)
    assert "lm_head.weight" not in imported.weights
    assert imported.aliases == {"model.embed_tokens.weight": ("lm_head.weight",)}
    table = operations(imported, graph.EmbeddingOp)[0].table
    assert operations(imported, graph.LinearOp)[-1].weight is table


def test_merged_weights_name_their_sources() -> None:
    imported = import_model(Case("llama").config())
    simplify(imported.module)
    merged = {op.weight_name.data: op.values["sources"] for op in operations(imported, graph.WeightOp)}
    path = "model.layers.0.self_attn"
    assert merged[f"{path}.q_proj+k_proj+v_proj.weight"] == tuple(f"{path}.{name}_proj.weight" for name in "qkv")
    path = "model.layers.1.mlp"
    assert merged[f"{path}.gate_proj+up_proj.weight"] == tuple(f"{path}.{name}_proj.weight" for name in ("gate", "up"))
    assert sorted(source for sources in merged.values() for source in sources) == sorted(imported.weights)


def test_ops_name_the_module_they_came_from() -> None:
    imported = import_model(Case("llama").config())
    assert [op.module.data for op in operations(imported, graph.AttentionOp)] == [
        "model.layers.0.self_attn",
        "model.layers.1.self_attn",
    ]
    assert [op.layer.value.data for op in operations(imported, graph.AttentionOp)] == [0, 1]


@pytest.mark.parametrize("window", MASKS)
def test_windows_are_read_from_the_mask(window: int) -> None:
    assert window_of(MASKS[window]) == window


@pytest.mark.parametrize(
    "mask",
    [
        bidirectional_mask_function,
        chunked_causal_mask_function(64, torch.zeros(1, dtype=torch.int64)),
        and_masks(causal_mask_function, lambda batch, head, query, key: key % 2 == 0),
    ],
)
def test_other_masks_are_refused(mask: Any) -> None:
    with pytest.raises(UnsupportedOperation, match="neither causal nor a sliding window"):
        window_of(mask)


def test_windows_and_caps_reach_the_attention() -> None:
    options = {"head_dim": 16, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    imported = import_model(Case("gemma2", {**options, "attn_logit_softcapping": 2.0}).config())
    assert [op.window.value.data for op in operations(imported, graph.AttentionOp)] == [16, 0]
    assert {op.softcap.value.data for op in operations(imported, graph.AttentionOp)} == {2.0}


class Attention(torch.nn.Module):
    is_causal = True


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"s_aux": torch.zeros(2)}, "'s_aux'"),
        ({"head_mask": torch.zeros(2)}, "'head_mask'"),
        ({"is_causal": False}, "both directions"),
        ({"attention_mask": torch.zeros(1, 1, 3, 3)}, "mask of its own making"),
        ({"attention_mask": None}, "mask of its own making"),
        ({"scaling": torch.ones(1)}, "by a tensor"),
    ],
)
def test_attention_refuses_what_it_would_have_to_ignore(options: dict[str, Any], words: str) -> None:
    query = torch.zeros(1, 2, 3, 4)
    mask = attention_op._mask_function(causal_mask_function, torch.device("cpu"))
    arguments = {"attention_mask": mask, "position_ids": torch.zeros(1, 3), "use_cache": False, "unset": None} | options
    with pytest.raises(UnsupportedOperation, match=words):
        attention_op._attention_function(Attention(), query, query, query, **arguments)


def test_longrope_is_fixed_by_the_maximum_length() -> None:
    case = Case("phi3", {**rope("longrope", **LONGROPE), "original_max_position_embeddings": 16})
    model = random_model(case.config())
    weights = checkpoint(model)
    short, long = import_model(case.config(), 16), import_model(case.config(), 512)
    assert import_model(case.config()).max_model_len == 16
    brief = reference_logits(model, 12)
    assert relative_error(short.module, weights.__getitem__, brief, (0, 11)) < 2e-5
    assert relative_error(long.module, weights.__getitem__, brief, (0, 11)) > 1e-3
    assert relative_error(long.module, weights.__getitem__, reference_logits(model)) < 2e-5


def test_dynamic_rope_is_fixed_by_the_maximum_length() -> None:
    case = Case("llama", {**rope("dynamic", factor=2.0), "max_position_embeddings": 16})
    model = random_model(case.config())
    weights = checkpoint(model)
    longer = import_model(case.config(), 37)
    assert relative_error(longer.module, weights.__getitem__, reference_logits(model)) < 2e-5
    assert relative_error(import_model(case.config()).module, weights.__getitem__, reference_logits(model)) > 1e-3


@pytest.mark.parametrize(
    ("case", "error", "words"),
    [
        (Case("t5"), UnsupportedModel, "not a causal language model"),
        (Case("gptj"), UnsupportedModel, "attention interface"),
        (Case("qwen3_moe"), UnsupportedModel, "mixture of experts"),
        (Case("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}), UnsupportedModel, "quantized"),
        (Case("mamba"), ExportFailed, "could not trace MambaForCausalLM"),
        (Case("llama", {"is_causal": False}), UnsupportedOperation, "neither causal nor"),
    ],
    ids=str,
)
def test_models_that_are_not_compiled(case: Case, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        import_model(AutoConfig.for_model("t5") if case.kind == "t5" else case.config())
    assert len(re.findall(r"[.;] ", str(caught.value))) <= 3 and "\n" not in str(caught.value)


def test_models_that_take_more_than_text_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="more than text"):
        import_model(AutoConfig.for_model("gemma3"))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: torch.cumsum(x, dim=-1), r"aten.cumsum.default in module 'model.layers.0.mlp' has no counterpart"),
        (lambda x: x - x.mean(dim=1, keepdim=True), "only reductions over the last dimension"),
        (lambda x: x - x[:, :1], "tokens are cut apart"),
        (lambda x: x + x.flip(1), "aten.flip.default"),
        (lambda x: x.to(torch.bfloat16).to(torch.float32), "computes in torch.bfloat16"),
        (lambda x: x + x.transpose(1, 2) @ x, "T|tokens|product"),
    ],
)
def test_operations_that_graph_ir_lacks_are_named(monkeypatch: pytest.MonkeyPatch, function: Any, words: str) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: function(x))
    with pytest.raises((UnsupportedOperation, ExportFailed), match=words):
        import_model(Case("llama").config())


@pytest.mark.parametrize(
    ("before", "after", "fits"),
    [
        ((1, "T", 8), (1, "T", 2, 4), True),
        ((1, 2, "T", 2, 2), (1, 2, "T", 4), True),
        ((1, 2, "T", 4), ("T", 8), False),
        ((1, 8, "T"), (1, "T", 8), False),
        ((2, "T", 4), (4, "T", 2), False),
    ],
)
def test_views_do_not_mix_tokens_with_other_dimensions(before: Shape, after: Shape, fits: bool) -> None:
    importer = Importer.__new__(Importer)
    importer._node = SimpleNamespace(target="aten.view.default", meta={})
    importer._block = Block(arg_types=[graph_type(before, F32, canonical_axes(before))])
    viewed = partial(importer.viewed, Tracked(importer._block.args[0], before), after)
    if fits:
        assert viewed().value.type == graph_type(after, F32, canonical_axes(after))
    else:
        with pytest.raises(UnsupportedOperation, match="mixes tokens with other dimensions"):
            viewed()


def test_what_only_masks_use_needs_no_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    original = LlamaForCausalLM.forward

    def forward(self: Any, input_ids: Any = None, logits_to_keep: Any = 0, **options: Any) -> Any:
        input_ids.cumsum(-1).sort()
        return original(self, input_ids=input_ids, logits_to_keep=logits_to_keep, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    assert import_model(Case("llama").config()).weights


def test_the_configuration_is_read(tmp_path: Path) -> None:
    Case("llama").config().save_pretrained(tmp_path)
    assert load_config(tmp_path).hidden_size == load_config(tmp_path / "config.json").hidden_size == 64


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (None, InvalidCheckpoint, "not a readable JSON file"),
        ("{", InvalidCheckpoint, "not a readable JSON file"),
        ("[]", InvalidCheckpoint, "names no model_type"),
        (json.dumps({"hidden_size": 4}), InvalidCheckpoint, "names no model_type"),
        (
            json.dumps({"model_type": "someone_elses", "auto_map": {"AutoConfig": "code.Config"}}),
            UnsupportedModel,
            "auto_map names is never run",
        ),
        (json.dumps({"model_type": "llama", "num_attention_heads": "many"}), InvalidCheckpoint, "expected int"),
    ],
)
def test_bad_configurations_are_refused(tmp_path: Path, text: str | None, error: type[Exception], words: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
    (tmp_path / "code.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    with pytest.raises(error, match=words):
        load_config(tmp_path)


@pytest.mark.parametrize(("length", "words"), [(0, "at least 1"), (513, "made for 512 positions")])
def test_impossible_lengths_are_refused(length: int, words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        import_model(Case("llama").config(), length)


def test_weight_names_are_resolved() -> None:
    needed = ["transformer.wte.weight", "lm_head.weight"]
    assert resolve_weight_names(needed, set(needed), "transformer") == {name: name for name in needed}
    bare = resolve_weight_names(needed, {"wte.weight", "lm_head.weight"}, "transformer")
    assert bare == {"transformer.wte.weight": "wte.weight", "lm_head.weight": "lm_head.weight"}
    added = resolve_weight_names(["wte.weight"], {"transformer.wte.weight"}, "transformer")
    assert added == {"wte.weight": "transformer.wte.weight"}
    tied = resolve_weight_names(["wte.weight"], {"lm_head.weight"}, "", {"wte.weight": ("lm_head.weight",)})
    assert tied == {"wte.weight": "lm_head.weight"}


def test_missing_weights_are_listed() -> None:
    with pytest.raises(MissingWeights, match="lacks a, b, c, d, e and 2 more, .* holds 1 tensors"):
        resolve_weight_names("gfedcba", {"x"})


def test_random_weights_are_random_everywhere() -> None:
    """The models that others are compared with must not hide mistakes behind ones and zeros."""
    for name, value in checkpoint(random_model(Case("phi").config())).items():
        assert np.std(value) > 0.05, name
