"""What can go wrong while tokens are drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.errors import NumericalError


class LogitsNotFinite(NumericalError):
    """Some rows of a step's logits hold NaN or +Inf, or nothing that could be drawn.

    `rows` says which; `tokens` has the tokens of all others (and -1 in `rows`), so that one request's numbers end that
    request alone.
    """

    def __init__(
        self, message: str, *, hint: str = "", rows: tuple[int, ...] = (), tokens: NDArray[np.int64] | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.rows = rows
        self.tokens = np.empty(0, np.int64) if tokens is None else tokens
