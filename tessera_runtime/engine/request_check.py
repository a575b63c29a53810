"""What can be said against a request before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from tessera_runtime.errors import ContextLengthExceeded, InvalidRequest
from tessera_runtime.executor.interface import ExecutorLimits


def check_prompt(prompt_ids: Sequence[int], limits: ExecutorLimits) -> None:
    """Raises unless the prompt has tokens, all of them the model's, and leaves room for an answer."""
    if not prompt_ids:
        raise InvalidRequest("The prompt has no tokens.", hint="Give at least one token.")
    if len(prompt_ids) >= limits.max_model_len:
        raise ContextLengthExceeded(
            f"The prompt has {len(prompt_ids)} tokens, but the context holds {limits.max_model_len}, answer included.",
            hint="Shorten the prompt, or serve the model with a larger --max-model-len.",
        )
    check_ids(prompt_ids, limits.vocab_size)


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raises unless all are tokens of the model."""
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        wrong = next(token for token in ids if not 0 <= token < vocab_size)
        raise InvalidRequest(f"Token id {wrong} is not one of the model's, which are 0 to {vocab_size - 1}.")
