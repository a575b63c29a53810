"""The larger model has the sizes it is named after."""

from __future__ import annotations

import math

from benchmarks.cpu.large_model import tensors


def test_it_has_the_parameters_of_qwen2_5_1_5b() -> None:
    assert sum(math.prod(shape) for _, _, shape in tensors()) == 1_543_714_304


def test_every_tensor_has_one_name_in_each_format() -> None:
    names = list(tensors())
    assert len({name for name, _, _ in names}) == len({name for _, name, _ in names}) == len(names) == 28 * 12 + 2
    assert ("model.layers.27.self_attn.v_proj.bias", "blk.27.attn_v.bias", (256,)) in names
