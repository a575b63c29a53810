"""Attention as one custom op: what Hugging Face models call instead of their own attention while they are exported.

Transformers lets a model's attention and mask functions be replaced by name. Both are replaced here, so that attention
arrives in the exported graph as `tessera::attention` with everything that decides its result in plain arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tessera_compiler.errors import UnsupportedOperation

IMPLEMENTATION = "tessera"
"""The name under which transformers finds the functions of this file."""

_WINDOW = "tessera_window"
# Keyword arguments that models pass along and that do not change what attention computes here.
_HARMLESS = frozenset(
    {"cache_position", "output_attentions", "output_hidden_states", "output_router_logits", "position_embeddings"}
    | {"position_ids", "return_dict", "use_cache", "logits_to_keep", "num_items_in_batch"}
)
# How far mask functions are probed: further than any sliding window in use.
_PROBED_POSITIONS = 1 << 18


@torch.library.custom_op("tessera::attention", mutates_args=())
def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int, softcap: float
) -> torch.Tensor:
    """Causal attention of query [1, h, T, d] to key [1, hk, T, d] and value [1, hk, T, dv]; gives [1, T, h, dv]."""
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


@attention.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int, softcap: float
) -> torch.Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


def _attention_function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that models find under `IMPLEMENTATION`; refuses options that would change the result.

    The window is the mask's: a model's own eager attention looks at the mask only, not at `sliding_window`.
    """
    who = type(module).__name__
    for name, argument in others.items():
        if argument is not None and argument is not False and name not in _HARMLESS:
            raise UnsupportedOperation(
                f"{who} passes {name!r} to its attention, which is not compiled; models without it are."
            )
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedOperation(f"{who} attends in both directions; only causal decoders are compiled.")
    window = getattr(attention_mask, _WINDOW, None)
    if window is None:
        raise UnsupportedOperation(
            f"{who} attends with a mask of its own making; only causal and sliding-window masks are compiled."
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(scale, torch.Tensor) or query.ndim != 4:
        raise UnsupportedOperation(f"{who} scales its scores by a tensor or has no heads, which is not compiled.")
    return torch.ops.tessera.attention(query, key, value, float(scale), window, float(softcap or 0.0)), None


def _mask_function(mask_function: Callable[..., Any], device: torch.device, **others: Any) -> torch.Tensor:
    """The mask function that models find under `IMPLEMENTATION`: an empty tensor that knows its window."""
    mask = torch.empty(0, device=device)
    setattr(mask, _WINDOW, window_of(mask_function))
    return mask


def window_of(mask_function: Callable[..., Any]) -> int:
    """How many positions a mask lets a token see, its own included; 0 means all before it.

    The function is asked rather than the model's configuration, because it is what decides. Raises UnsupportedOperation
    for masks that are neither causal nor a sliding window.
    """

    def visible(position: int, keys: torch.Tensor) -> torch.Tensor:
        zero = torch.tensor(0)
        return torch.as_tensor(mask_function(zero, zero, torch.tensor(position), keys)).expand(keys.shape)

    with _disable_current_modes(), torch.device("cpu"):
        last = _PROBED_POSITIONS
        count = int(visible(last, torch.arange(last + 2)).sum())
        window = 0 if count == last + 1 else count
        for position in {0, 1, 2, 7, max(window - 1, 0), window, window + 1, 3 * window // 2, 2 * window, last}:
            keys = torch.arange(position + 2)
            expected = (keys <= position) & (keys > position - window if window else keys >= 0)
            if not torch.equal(visible(position, keys), expected):
                raise UnsupportedOperation(
                    "this model's attention mask is neither causal nor a sliding window; only those two are compiled."
                )
    return window


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _attention_function)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _mask_function)
