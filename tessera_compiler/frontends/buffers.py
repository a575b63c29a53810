"""Buffers that no checkpoint holds, such as inverse frequencies: their values, fixed for one maximum length.

Some rotary embeddings choose their frequencies by the longest position of a batch while they run, so that a token's
result depends on its neighbours. Here the choice is made once, from `max_model_len`:

- `longrope` takes its short factors if `max_model_len` is at most `original_max_position_embeddings`, else the long;
- `dynamic` takes the frequencies of a sequence of `max_model_len` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.initialization import no_init_weights
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """While active, modules are made without memory for their parameters, but with the values of their buffers."""
    original = torch.nn.Module.register_parameter

    def register(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        original(module, name, parameter)

    torch.nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        with no_init_weights():
            yield
    finally:
        torch.nn.Module.register_parameter = original  # type: ignore[method-assign]


def fix_rotary_embeddings(model: torch.nn.Module, max_model_len: int) -> None:
    """Replaces every choice of frequencies at run time by the one for `max_model_len`."""
    for module in model.modules():
        rope_type = getattr(module, "rope_type", None)
        if isinstance(rope_type, str):
            module.rope_type = _fix(module, rope_type, None, max_model_len)  # type: ignore[assignment]
        elif isinstance(rope_type, dict):
            fixed = {key: _fix(module, each, key, max_model_len) for key, each in rope_type.items() if each is not None}
            module.rope_type = fixed  # type: ignore[assignment]


def _fix(module: Any, rope_type: str, layer_type: str | None, max_model_len: int) -> str:
    """Sets the frequencies of one rotary embedding; returns the type under which it no longer changes them."""
    if "dynamic" not in rope_type and rope_type != "longrope":
        return rope_type
    extra = {} if layer_type is None else {"layer_type": layer_type}
    frequencies, scaling = ROPE_INIT_FUNCTIONS[rope_type](module.config, None, seq_len=max_model_len, **extra)
    prefix = "" if layer_type is None else f"{layer_type}_"
    getattr(module, f"{prefix}inv_freq").copy_(frequencies)
    setattr(module, f"{prefix}attention_scaling", scaling)
    return "default"
