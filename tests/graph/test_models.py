"""Models of many architectures: imported, simplified and evaluated, against transformers in float32."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from programs import slow_from
from tiny_models import (
    ARCHITECTURES,
    TOKENS,
    VARIANTS,
    Case,
    checkpoint,
    random_model,
    reference_logits,
    relative_error,
)

from tessera_compiler.frontends.huggingface import import_model
from tessera_compiler.graph.passes.rewriting import graph_ops
from tessera_compiler.graph.pipeline import simplify
from tessera_compiler.graph.text import parse_module, print_module

BUDGET = 2e-5
# Ops that are in the simplified graph of a model only if a rule did not recognise what it should have.
SPELLED_OUT = {
    "rsqrt",
    "sqrt",
    "cos",
    "sin",
    "tanh",
    "neg",
    "pow",
    "cast",
    "reduce_mean",
    "sigmoid",
    "silu",
    "transpose",
}
# Spellings that stay: quick_gelu is no activation of the dialect.
EXPECTED = {"gpt2-unscaled": {"sigmoid"}}


# An export takes a second: the first run always, the others in `make test`.
FAST_AND_SLOW = slow_from(7, ARCHITECTURES + VARIANTS)


@pytest.mark.parametrize("case", FAST_AND_SLOW, ids=str)
def test_model_computes_what_transformers_does(case: Case) -> None:
    imported = import_model(case.config())
    model = random_model(case.config())
    weights, reference = checkpoint(model), reference_logits(model)
    assert {name: weights[name].shape for name in imported.weights} == dict(imported.weights)
    imported.module.verify()
    assert relative_error(imported.module, weights.__getitem__, reference) < BUDGET

    simplify(imported.module)
    assert relative_error(imported.module, weights.__getitem__, reference) < BUDGET
    # One token alone: what the first of many gives, because attention is causal.
    assert relative_error(imported.module, weights.__getitem__, reference[:1], (0,)) < BUDGET
    counts = Counter(op.name.removeprefix("graph.") for op in graph_ops(imported.module))
    assert set(counts) & SPELLED_OUT == EXPECTED.get(str(case), set())
    text = print_module(imported.module)
    assert print_module(parse_module(text)) == text


def counts_of(case: Case) -> Counter[str]:
    imported = import_model(case.config())
    simplify(imported.module)
    return Counter(op.name.removeprefix("graph.") for op in graph_ops(imported.module))


def test_llama_becomes_what_a_person_would_write() -> None:
    counts = counts_of(Case("llama"))
    assert counts == {
        "constant": 1,
        "rope_table": 1,
        "weight": 15,
        "embedding": 1,
        "rms_norm": 5,
        "linear": 9,
        "slice": 10,
        "reshape": 8,
        "rope": 4,
        "attention": 2,
        "add": 4,
        "gated": 2,
        "select_rows": 1,
    }


def test_two_kinds_of_layers_have_two_rope_tables() -> None:
    gemma3 = next(case for case in ARCHITECTURES if case.kind == "gemma3_text")
    assert counts_of(gemma3)["rope_table"] == 2


def test_evaluation_notices_a_wrong_weight() -> None:
    """The comparison above is worth something only if a small mistake shows."""
    case = Case("llama")
    imported, model = import_model(case.config()), random_model(case.config())
    weights = checkpoint(model)
    name = "model.layers.1.input_layernorm.weight"
    weights[name] = weights[name] + np.float32(0.001)
    assert relative_error(imported.module, weights.__getitem__, reference_logits(model)) > BUDGET


def test_rows_are_those_asked_for() -> None:
    case = Case("qwen2")
    imported, model = import_model(case.config()), random_model(case.config())
    simplify(imported.module)
    every = tuple(range(TOKENS))
    weights = checkpoint(model)
    assert relative_error(imported.module, weights.__getitem__, reference_logits(model), every) < BUDGET
    assert relative_error(imported.module, weights.__getitem__, reference_logits(model), (9, 3, 9)) < BUDGET
